"""What happened to a trial's replicas while it ran, from the results it reported."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ReplicaHistory:
    """The numbers of replicas that a trial was seen with, one after the other."""

    changes: tuple[tuple[float, int], ...]
    """(seconds into the trial, number of replicas), where it changed; 0 replicas: paused."""
    num_restarts: int
    """Reallocations in all; some may have come and gone between two results."""

    @property
    def grew(self) -> bool:
        return any(after > before > 0 for before, after in self._steps)

    @property
    def shrank(self) -> bool:
        """With fewer replicas than before, or with none."""
        return any(after < before for before, after in self._steps)

    @property
    def _steps(self) -> list[tuple[int, int]]:
        numbers = [number for _, number in self.changes]
        return list(itertools.pairwise(numbers))

    def __str__(self) -> str:
        numbers = " → ".join(f"{number} ({at_s:.0f} s)" for at_s, number in self.changes)
        return f"{numbers or 'never trained'}; {self.num_restarts} reallocations"


def replica_history(results: Iterable[Mapping[str, Any]]) -> ReplicaHistory:
    """The history in a trial's results, in their order."""
    changes: list[tuple[float, int]] = []
    num_restarts = 0
    for result in results:
        number = int(result["adaptdl/num_replicas"])
        if not changes or changes[-1][1] != number:
            changes.append((float(result["time_total_s"]), number))
        num_restarts = max(num_restarts, int(result["adaptdl/num_restarts"]))
    return ReplicaHistory(changes=tuple(changes), num_restarts=num_restarts)
