"""What the optimal policy maximises.

  s_j        speedup of job j with its allocation                                ≥ 0
  c_j        `move_cost`, 0 if the allocation is the current one                 [0, 1)
  w_j        `weight`                                                            > 0
  p          exponent of the power mean, 1 − fairness / (1 − fairness)           ≤ 1
  u_p(s)     utility, ((1 + s)^p − 1) / (2^p − 1), log₂(1 + s) for p = 0         ≥ 0
  objective  Σ_j w_j·u_p((1 − c_j)·s_j)

Maximising Σ u_p is maximising the power mean of exponent p over (1 + s_j), and u_p(0) = 0, u_p(1) = 1 whatever p:
fairness 0 is the total speedup (p = 1), 1/2 proportional fairness (p = 0), 2/3 the harmonic mean (p = −1), and towards
1 only the worst-off job counts. The 1 under the power keeps the utility of a job with nothing finite, for there may be
more jobs than devices. A move costs time, hence it is the speedup that it reduces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError
from adaptdl.policy.cluster import Allocation, Job, num_nodes, num_replicas

__all__ = ["Objective"]

LOWEST_EXPONENT = -8.0
"""Max-min in practice: beyond, a second replica is worth less than a solver's tolerance."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weighted utility of all jobs. Raises UsageError unless 0 ≤ fairness ≤ 1."""

    fairness: float = 0.5
    """From 0, the total speedup, to 1, the smallest speedup."""

    def __post_init__(self) -> None:
        if not 0 <= self.fairness <= 1:
            raise UsageError(f"`0 <= fairness <= 1` must hold, but got (fairness={self.fairness}).")

    @property
    def exponent(self) -> float:
        """p."""
        if self.fairness == 1:
            return LOWEST_EXPONENT
        return max(1 - self.fairness / (1 - self.fairness), LOWEST_EXPONENT)

    def utility(self, speedup: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """u_p of speedups of any shape."""
        p = self.exponent
        if abs(p) < 1e-9:
            return np.asarray(np.log2(1 + np.asarray(speedup)))
        return np.asarray(((1 + np.asarray(speedup)) ** p - 1) / (2**p - 1))

    def values(self, job: Job, speedup: NDArray[np.float64] | float, *, moved: bool) -> NDArray[np.float64]:
        """w·u_p((1 − c)·s) of one job at speedups of any shape."""
        return np.asarray(job.weight * self.utility(np.asarray(speedup) * (1 - job.move_cost * moved)))

    def total(
        self, jobs: Iterable[Job], current: Mapping[str, Allocation], allocations: Mapping[str, Allocation]
    ) -> float:
        """The objective at `allocations`, coming from `current`."""
        nothing: Mapping[str, Any] = {}
        total = 0.0
        for job in jobs:
            allocation = allocations.get(job.job_id, nothing)
            moved = dict(allocation) != dict(current.get(job.job_id, nothing))
            speedup = job.speedup_at(num_nodes(allocation), num_replicas(allocation))
            total += float(self.values(job, speedup, moved=moved))
        return total
