"""A line per training step, written by whoever trains, and what the lines say of the changes between them.

All processes are on one machine, whose monotonic clock they share. Nothing here asks a library how long it has paused,
or whether it has made a step twice: a step is known by the samples it was made of.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TextIO

__all__ = ["Step", "StepLog", "StepWriter", "Transition", "median_step_s", "steps_per_s", "transitions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step on one replica."""

    generation: int
    """Set of replicas that forms one process group; later ones have higher numbers."""
    rank: int
    num_replicas: int
    steps: int
    """Optimizer steps before this one, as the trainer counts them."""
    batch: int
    """Global batches before the one that was handed out, as its samples show: they are read in order."""
    handed_s: float
    """When the batch was handed out, monotonic seconds."""
    done_s: float
    """When `optimizer.step()` had returned."""
    node_id: str

    @classmethod
    def parse(cls, line: str) -> Step:
        generation, rank, num_replicas, steps, batch, handed_s, done_s, node_id = line.split()
        return cls(
            generation=int(generation),
            rank=int(rank),
            num_replicas=int(num_replicas),
            steps=int(steps),
            batch=int(batch),
            handed_s=float(handed_s),
            done_s=float(done_s),
            node_id=node_id,
        )


class StepWriter:
    """Appends the steps of one replica to its own file in `directory`."""

    def __init__(self, directory: str, name: str) -> None:
        self._file = os.open(Path(directory, f"{name}.steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, step: Step) -> None:
        os.write(self._file, (" ".join(map(str, astuple(step))) + "\n").encode())


class StepLog:
    """Reads the files of all replicas in `directory`, as they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[Path, TextIO] = {}
        self._unfinished: dict[Path, str] = {}
        self._leaders: dict[int, list[Step]] = {}

    def read(self) -> None:
        """Takes the lines that have come since the last time."""
        for path in self._directory.glob("*.steps"):
            if path not in self._files:
                self._files[path] = path.open()
            *lines, rest = (self._unfinished.get(path, "") + self._files[path].read()).split("\n")
            self._unfinished[path] = rest
            for step in map(Step.parse, lines):
                if step.rank == 0:
                    self._leaders.setdefault(step.generation, []).append(step)

    @property
    def generations(self) -> list[list[Step]]:
        """The steps of each generation's rank 0, in order; generations without steps are left out."""
        return [steps for _, steps in sorted(self._leaders.items())]

    @property
    def newest(self) -> list[Step]:
        """The steps of the newest generation's rank 0."""
        return self._leaders[max(self._leaders)] if self._leaders else []

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, kw_only=True)
class Transition:
    """From one generation that made steps to the next one that did."""

    last: Step
    """The last step of the old one."""
    first: Step
    """The first step of the new one."""
    old: Sequence[Step]
    """All steps of the old one."""
    step_s: float
    """Median time of a step in the new one, from end to end."""

    @property
    def pause_s(self) -> float:
        """From the end of the last step to the first batch handed out."""
        return self.first.handed_s - self.last.done_s

    @property
    def extra_s(self) -> float:
        """From the end of the last step to the end of the first one, less what a step takes anyway."""
        return self.first.done_s - self.last.done_s - self.step_s

    @property
    def redone(self) -> int:
        """Steps made again: that the samples were read again, or that the trainer counted again, whichever is more."""
        return max(0, *(1 - difference for difference in self._differences()))

    @property
    def left_out(self) -> int:
        """Steps that were never made."""
        return max(0, *(difference - 1 for difference in self._differences()))

    def _differences(self) -> tuple[int, int]:
        return self.first.steps - self.last.steps, self.first.batch - self.last.batch


def transitions(generations: Sequence[Sequence[Step]]) -> Iterator[Transition]:
    """The changes between generations of at least two steps each.

    Raises:
        ValueError: within a generation, where nothing has changed, a step was made twice or left out.
    """
    for steps in generations:
        for one, other in itertools.pairwise(steps):
            if other.steps - one.steps != 1 or other.batch - one.batch != 1:
                raise ValueError(f"steps must follow each other, but {other} came after {one}")
    for old, new in itertools.pairwise(generations):
        yield Transition(last=old[-1], first=new[0], old=old, step_s=median_step_s(new))


def median_step_s(steps: Sequence[Step]) -> float:
    """The time of a step, from end to end."""
    return statistics.median(other.done_s - one.done_s for one, other in itertools.pairwise(steps))


def steps_per_s(steps: Sequence[Step], begin_s: float, end_s: float) -> float:
    """Steps per second between the first and the last one that ended between `begin_s` and `end_s`."""
    ends = [step.done_s for step in steps if begin_s <= step.done_s <= end_s]
    if len(ends) < 2:
        raise ValueError(f"at least two steps must end within {end_s - begin_s:.2f} s, but {len(ends)} did")
    return (len(ends) - 1) / (ends[-1] - ends[0])
