"""From the strikes and the log of batches: who was hit, how long it took to go on, and what had to be made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from storm.batch_log import Batch
from storm.history import History, first_after
from storm.schedule import Kind
from storm.striking import Strike

__all__ = ["Recovery", "recoveries", "took_s"]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One trial that lost members of its group to one strike."""

    kind: Kind
    trial: int
    at_s: float
    """Of the strike, monotonic seconds."""
    took_s: float | None
    """To the first batch that a later group was handed. None: the trial was at its end."""
    had_survivors: bool
    """Some member of the group was not hit, by this strike or another one before training went on."""
    num_redone: int
    """Completed steps that were made again."""


def recoveries(
    strikes: Sequence[Strike], batches: Mapping[int, Sequence[Batch]], histories: Mapping[int, History]
) -> Iterator[Recovery]:
    """Of all strikes that hit members of groups that trained.

    Args:
        strikes: in the order of time.
        batches: trial → all its batches, in the order of time.
        histories: trial → what they tell.
    """
    for strike in strikes:
        for trial in sorted({trial for trial, _ in strike.hit}):
            found = _recovery(strike, strikes, trial, batches[trial], histories[trial])
            if found is not None:
                yield found


def took_s(recoveries: Sequence[Recovery], kind: Kind | None = None) -> list[float]:
    """How long those took that came to an end."""
    return [one.took_s for one in recoveries if one.took_s is not None and kind in (None, one.kind)]


def _recovery(
    strike: Strike, strikes: Sequence[Strike], trial: int, batches: Sequence[Batch], history: History
) -> Recovery | None:
    before = [batch for batch in batches if batch.handed_s <= strike.at_s]
    if not before:
        return None
    generation = max(batch.generation for batch in before)
    members = {batch.replica_id for batch in batches if batch.generation == generation}
    if not members & _hit(strike, trial):
        return None  # newcomers, or such as had left: nobody's training was disturbed
    first = first_after(batches, strike.at_s, generation)
    until_s = float("inf") if first is None else first.handed_s
    hit: set[str] = set()
    for other in strikes:
        if other.at_s <= until_s:
            hit |= _hit(other, trial)
    return Recovery(
        kind=strike.kind,
        trial=trial,
        at_s=strike.at_s,
        took_s=None if first is None else first.handed_s - strike.at_s,
        had_survivors=not members <= hit,
        num_redone=sum(rollback.num_steps for rollback in history.rollbacks if rollback.at_s == until_s),
    )


def _hit(strike: Strike, trial: int) -> set[str]:
    return {replica_id for hit_trial, replica_id in strike.hit if hit_trial == trial}
