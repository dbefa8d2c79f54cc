"""What a job says about itself, and the tables a policy reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adaptdl.goodput.batch_size import BatchSizeBounds, GoodputModel
from adaptdl.goodput.efficiency import GradParams
from adaptdl.goodput.throughput import PerfParams

__all__ = ["JobReport", "unit_goodput"]

_UNKNOWN_PERF = PerfParams(alpha_c=0.0, beta_c=1.0, alpha_n=0.0, beta_n=0.0, alpha_r=0.0, beta_r=0.0, gamma=1.0)
"""Perfect scaling, at one sample per second and replica."""

_UNKNOWN_GRAD = GradParams(grad_sqr=1.0, grad_var=0.0)
"""No noise: a larger batch is of no use until statistics show that it is."""


CREDIT = 4
"""How many times the replicas it was profiled on a job is credited with. Pollux (OSDI 2021, section 4.1) takes 2. With a
prior that expects nodes to be slower to synchronise than the devices of one (see `fit`), 4 reaches a good allocation in half
the reallocations, and lets jobs finish 4 to 10 % sooner in simulations of the published workloads; 16 overshoots."""


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """The newest state of one job, as its rank 0 sees it."""

    bounds: BatchSizeBounds | None = None
    """Limits of the batch size; None as long as there is no data loader."""
    perf_params: PerfParams | None = None
    """Fitted step time; None before the first fit."""
    grad_params: GradParams | None = None
    """Gradient statistics at M₀; None before the first estimate."""
    max_profiled_replicas: int = 0
    """The largest number of replicas whose steps have been timed."""
    progress: float = 0.0
    """Scale-invariant steps done, in steps at M₀."""
    remaining_progress: float | None = None
    """Steps at M₀ to go; None if unknown."""
    pause_s: float | None = None
    """What a reallocation of this job costs, measured; None before the first."""
    batch_size: int = 0
    """M at present, in samples."""
    num_replicas: int = 0
    """K at present."""

    def goodput_table(self, max_nodes: int, max_replicas: int) -> NDArray[np.float64]:
        """Goodput on N nodes and K replicas, shape (max_nodes + 1, max_replicas + 1).

        In useful samples per second; without `perf_params`, in multiples of one replica's (perfect scaling). 0 where
        not 1 ≤ N ≤ K, where the bounds allow no batch size, and beyond what the job is credited with: CREDIT times the
        replicas it has been profiled on, one replica if on none. (The bounds always allow one.)
        """
        # A cluster may hold thousands of replicas: what is not credited is not computed.
        credited = min(max(CREDIT * self.max_profiled_replicas, 1), max_replicas)
        table = np.zeros((max_nodes + 1, max_replicas + 1))
        table[:, : credited + 1] = _goodput_table(self._model(max_replicas), max_nodes, credited)
        if self.perf_params is None:
            table = np.where(table > 0, np.arange(max_replicas + 1), 0.0)
        return table

    def speedup_table(self, max_nodes: int, max_replicas: int) -> NDArray[np.float64]:
        """:meth:`goodput_table` relative to one replica or, if that is impossible, to the smallest possible K (on the
        fewest nodes it is possible on). All 0 if nothing is possible."""
        table = self.goodput_table(max_nodes, max_replicas)
        unit = unit_goodput(table)
        return table / unit if unit else table

    def _model(self, max_replicas: int) -> GoodputModel:
        bounds = self.bounds
        if bounds is None:
            # No limit is known: a batch that any of these numbers of replicas could share.
            size = max(self.batch_size, max_replicas, 1)
            bounds = BatchSizeBounds(init_batch_size=size, max_batch_size=size)
        return GoodputModel(
            perf_params=self.perf_params or _UNKNOWN_PERF,
            grad_params=self.grad_params or _UNKNOWN_GRAD,
            bounds=bounds,
        )


def unit_goodput(table: NDArray[np.float64]) -> float:
    """The goodput in a :meth:`JobReport.goodput_table` that counts as a speedup of 1: that of one replica or, if that is
    impossible, of the smallest possible K (on the fewest nodes it is possible on). 0 if nothing is possible."""
    possible = np.argwhere(table.T > 0)  # (entries, 2), by K and then N
    if not possible.size:
        return 0.0
    fewest_replicas, fewest_nodes = possible[0]
    return float(table[fewest_nodes, fewest_replicas])


@lru_cache(maxsize=1024)
def _goodput_table(model: GoodputModel, max_nodes: int, max_replicas: int) -> NDArray[np.float64]:
    """Of all N and K. Jobs report more often than what their goodput depends on changes."""
    nodes = np.arange(max_nodes + 1)[:, None]
    replicas = np.arange(max_replicas + 1)[None, :]
    table = model.best_batch_size(nodes, replicas).goodput
    table.setflags(write=False)
    return table
