"""What the logs of batches show of each change."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from first_batches.samples import num_fetched
from first_batches.training import Handed

__all__ = ["Change", "changes"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, as the replica that was there before and after it saw it."""

    name: str
    """Batch sizes, or numbers of replicas: before→after."""
    delay_s: float
    """End of the last step → first batch."""
    data_s: float
    """That part of it in which data was waited for."""
    newcomer_s: float | None
    """The same for a replica that came with the change."""
    peer_s: float
    """A new DataLoader → its first batch."""
    step_delay_s: float
    """Mean of step's end → batch where nothing changed, until the next change: batches come in turns, one for each worker."""
    num_thrown: int
    """Samples that were fetched once more than they were handed out."""
    num_forked: int
    """Processes that fetched after the change, but not before it."""


def changes(log: Sequence[Handed], newcomers: Sequence[Sequence[Handed]], counts: Path) -> Iterator[Change]:
    """All changes in the log of the replica that is there throughout.

    Args:
        newcomers: logs of those that came and went.
        counts: file of the numbers of fetches.
    """
    parts = [list(part) for _, part in itertools.groupby(log, lambda handed: (handed.generation, handed.batch_size))]
    joined = {newcomer[0].generation: newcomer[0] for newcomer in newcomers}
    for before, after in itertools.pairwise(parts):
        first, end = after[0], after[-1].first
        moved = before[0].num_replicas != first.num_replicas
        since_s = first.chosen_s if moved else first.before_s
        names = (one.num_replicas if moved else one.batch_size for one in (before[0], first))
        newcomer = joined.get(first.generation) if moved else None
        yield Change(
            name="→".join(map(str, names)),
            delay_s=first.handed_s - first.before_s,
            data_s=first.handed_s - since_s,
            newcomer_s=None if newcomer is None else newcomer.handed_s - since_s,
            peer_s=next(handed.peer_s for handed in after if handed.peer_s is not None),
            step_delay_s=statistics.fmean(handed.handed_s - handed.before_s for handed in after[1:]),
            num_thrown=num_fetched(counts, first.first, end) - (end - first.first),
            num_forked=len(_pids(after) - _pids(before)),
        )


def _pids(part: Sequence[Handed]) -> frozenset[int]:
    return frozenset().union(*(handed.pids for handed in part))
