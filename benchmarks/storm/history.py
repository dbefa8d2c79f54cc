"""What the log of batches says of one trial: the steps that count, and those that had to be made again.

A step was *completed* when a later one had begun. If a step comes again after that, all completed ones from it on are
*redone*. A step that comes again without a later one having begun was *in flight* when its replicas changed or were
lost: it is retried, not redone (a step that was completed in the very last moment before the loss cannot be told
from it). What is left when all that was begun again is dropped is the history that survives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from storm.batch_log import Batch

__all__ = ["History", "Rollback", "first_after", "history"]


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Completed steps that were begun again."""

    at_s: float
    """When, monotonic seconds."""
    num_steps: int


@dataclass(kw_only=True)
class History:
    """What became of one trial's steps."""

    rollbacks: list[Rollback] = field(default_factory=list)
    num_retried: int = 0
    """Times a step in flight was begun again."""
    num_skipped: int = 0
    """Steps that were never begun though later ones were."""
    num_strayed: int = 0
    """Batches that an old generation was handed after a newer one had begun."""
    steps: dict[int, list[Batch]] = field(default_factory=dict)
    """Number → the batches of its last attempt: what survives, in order."""

    @property
    def num_redone(self) -> int:
        return sum(rollback.num_steps for rollback in self.rollbacks)

    @property
    def num_padding(self) -> int:
        """Samples computed with weight 0."""
        return sum(len(batch.samples) for batches in self.steps.values() for batch in batches if batch.padding)

    def lost_and_repeated(self, num_samples: int, num_epochs: int) -> tuple[int, int]:
        """Samples that were missing in a pass, and that came more than once in one, over all passes."""
        seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(num_epochs)}
        for batches in self.steps.values():
            for batch in batches:
                if not batch.padding:
                    seen[batch.epoch].update(batch.samples)
        lost = sum(num_samples - len(counts) for counts in seen.values())
        repeated = sum(counts.total() - len(counts) for counts in seen.values())
        return lost, repeated


def history(batches: Sequence[Batch]) -> History:
    """Of one trial, given all its batches in the order of time."""
    found = History()
    newest, generation = -1, -1
    for batch in batches:
        if batch.generation < generation:
            found.num_strayed += 1
            continue
        if batch.step > newest:
            found.num_skipped += batch.step - newest - 1
            found.steps[batch.step] = []
        elif batch.step < newest:
            found.rollbacks.append(Rollback(at_s=batch.handed_s, num_steps=newest - batch.step))
            for step in range(batch.step, newest + 1):
                found.steps.pop(step, None)
            found.steps[batch.step] = []
        elif batch.generation > generation:
            found.num_retried += 1
            found.steps[batch.step] = []
        found.steps[batch.step].append(batch)
        newest, generation = batch.step, batch.generation
    return found


def first_after(batches: Iterable[Batch], at_s: float, generation: int) -> Batch | None:
    """The first batch after `at_s` that a later generation than this one was handed."""
    return next((batch for batch in batches if batch.handed_s > at_s and batch.generation > generation), None)
