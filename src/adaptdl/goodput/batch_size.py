"""The best batch size for given replicas (Pollux, OSDI 2021, section 3.3).

  N, K     num_nodes, num_replicas      nodes and replicas                                           1 ≤ N ≤ K
  m        atomic_batch_size            samples in one forward-backward pass of one replica          samples
  s        accum_steps                  passes without synchronisation before the last one           ≥ 0
  M        batch_size                   K·m·(s + 1)                                                  samples
  M₀       init_batch_size              the user's batch size                                        samples
  goodput  throughput · efficiency      useful samples per second                                    samples/s

The search is exact, by two facts about T_iter. For given M and K, fewer passes are never slower, so that s passes are
of interest only for batches that s − 1 do not hold. And for given K and s, 1/goodput is a convex function of 1/m
(T_iter is convex and increasing in m), so that bisection over the integers m finds the largest goodput.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptdl.errors import UsageError
from adaptdl.goodput.efficiency import GradParams, efficiency
from adaptdl.goodput.throughput import PerfParams, step_time_s

__all__ = ["BatchSizeBounds", "BatchSizeChoice", "GoodputModel"]

MAX_PASS_COUNTS = 64
"""Numbers of passes tried per K. Local bounds that need more are so narrow that a geometric choice loses nothing."""

SMALL_BATCH = 256
"""Samples. Up to here all numbers of passes are tried: a further one can be what makes K·m·(s + 1) fit the bounds. With
larger batches rounding is no matter."""


@dataclass(frozen=True, kw_only=True)
class BatchSizeBounds:
    """The user's limits. Raises UsageError if they contradict each other or if one replica could not train in them."""

    init_batch_size: int
    """M₀: the smallest batch size of a step, and the only one if `max_batch_size` is the same."""
    max_batch_size: int
    """The largest batch size of a step."""
    local_bsz_bounds: tuple[int, int] | None = None
    """Smallest and largest m, what a replica may be given for one pass (memory bounds it from above); None: no bounds.
    As a job may always be reduced to one replica, M₀ must lie within unless passes can be accumulated."""
    gradient_accumulation: bool = False
    """Whether s > 0 is allowed."""

    def __post_init__(self) -> None:
        init, largest = self.init_batch_size, self.max_batch_size
        both = f"(init_batch_size={init}, max_batch_size={largest})"
        if init < 1:
            raise UsageError(f"`init_batch_size >= 1` must hold, but got {both}.")
        if init > largest:
            raise UsageError(f"`init_batch_size <= max_batch_size` must hold, but got {both}.")
        if self.local_bsz_bounds is None:
            return
        low, high = self.local_bsz_bounds
        if not 1 <= low <= high:
            raise UsageError(f"`1 <= low <= high` must hold for `local_bsz_bounds`, but got ({low}, {high}).")
        if not self.gradient_accumulation and not low <= init <= high:
            raise UsageError(
                "`init_batch_size` must lie within `local_bsz_bounds`, since one replica must be able to hold it (or "
                f"set gradient_accumulation=True), but got (init_batch_size={init}, local_bsz_bounds={(low, high)})."
            )
        if not _search(self, None, np.ones(1, np.int64), np.ones(1, np.int64)).atomic_batch_size[0]:
            raise UsageError(
                "one replica must be able to train with a batch size in [init_batch_size, max_batch_size], but no "
                f"number of passes within `local_bsz_bounds` gives one: got {both} and local_bsz_bounds={(low, high)}."
            )

    @property
    def fixed(self) -> bool:
        """Whether M is always M₀: replicas then get shares of it that may differ by one."""
        return self.init_batch_size == self.max_batch_size


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSizeChoice:
    """The best batch sizes, arrays of one shape; all 0 where none is possible."""

    goodput: NDArray[np.float64]
    """Useful samples per second."""
    atomic_batch_size: NDArray[np.int64]
    """m; with a fixed batch size the largest share of a replica."""
    accum_steps: NDArray[np.int64]
    """s."""
    batch_size: NDArray[np.int64]
    """M: K·m·(s + 1), or M₀ if it is fixed."""


@dataclass(frozen=True, kw_only=True)
class GoodputModel:
    """What a job's training is worth on given replicas."""

    perf_params: PerfParams
    grad_params: GradParams
    bounds: BatchSizeBounds

    def goodput(
        self, num_nodes: ArrayLike, num_replicas: ArrayLike, atomic_batch_size: ArrayLike, accum_steps: ArrayLike = 0
    ) -> NDArray[np.float64]:
        """Useful samples per second, throughput · efficiency, at any m and s; broadcast shape of the arguments.

        Bounds are not looked at, but for one thing: a fixed batch size stays M₀ even where K·m·(s + 1) exceeds it,
        since shares differ.
        """
        per_replica = np.asarray(atomic_batch_size) * (np.asarray(accum_steps) + 1)
        batch_size = np.asarray(num_replicas) * per_replica
        if self.bounds.fixed:
            batch_size = np.minimum(batch_size, self.bounds.init_batch_size)
        step = step_time_s(self.perf_params, num_nodes, num_replicas, atomic_batch_size, accum_steps)
        worth = efficiency(self.grad_params, self.bounds.init_batch_size, batch_size)
        return np.asarray(batch_size / step * worth)[()]

    def best_batch_size(self, num_nodes: ArrayLike, num_replicas: ArrayLike) -> BatchSizeChoice:
        """The m and s of largest goodput for each (N, K); arrays of the broadcast shape of the arguments.

        The total batch size is always within [M₀, max_batch_size] and m within the local bounds. Where that is
        impossible (too many replicas for so small a batch, say), and where not 1 ≤ N ≤ K, all is 0. If M may vary it is
        a multiple of K·(s + 1), starting at the smallest one ≥ M₀; if it is fixed it is M₀ for any K.
        """
        nodes, replicas = np.broadcast_arrays(np.asarray(num_nodes, np.int64), np.asarray(num_replicas, np.int64))
        possible = (nodes >= 1) & (nodes <= replicas)
        # The model knows one node and several only, so that a table has few different entries.
        codes = np.where(possible, 2 * replicas + (nodes > 1), 0).ravel()  # (nodes * replicas,)
        unique, where = np.unique(codes, return_inverse=True)
        choice = _search(self.bounds, self, 1 + unique % 2, unique // 2)

        where = where.reshape(nodes.shape)
        return BatchSizeChoice(
            goodput=choice.goodput[where],
            atomic_batch_size=choice.atomic_batch_size[where],
            accum_steps=choice.accum_steps[where],
            batch_size=choice.batch_size[where],
        )


def _search(
    bounds: BatchSizeBounds, model: GoodputModel | None, nodes: NDArray[np.int64], replicas: NDArray[np.int64]
) -> BatchSizeChoice:
    """The best choices for N and K of shape (n,), K = 0 being impossible; with no model any choice that is possible."""
    find = _fixed_candidates if bounds.fixed else _candidates
    count = np.maximum(replicas, 1)[:, None]  # (n, 1), K without zeros
    passes, low, high = find(bounds, count)  # (n, p) each: s + 1, and the range of m it allows
    possible = (low <= high) & (replicas[:, None] > 0)
    low, high = np.where(possible, low, 1), np.where(possible, high, 1)
    if model is None:
        value = np.ones(passes.shape)
    else:
        while np.any(low < high):
            middle = (low + high) // 2
            here, next_one = model.goodput(nodes[:, None], count, np.stack([middle, middle + 1]), passes - 1)
            rising = next_one > here
            low, high = np.where(rising & (low < high), middle + 1, low), np.where(rising, high, middle)
        value = model.goodput(nodes[:, None], count, low, passes - 1)
    value = np.where(possible, value, 0.0)
    best = np.arange(len(replicas)), np.argmax(value, axis=1)  # the fewest passes among equals
    atomic = np.where(possible, low, 0)[best]
    accum_steps = np.where(possible, passes - 1, 0)[best]
    total = replicas * atomic * (accum_steps + 1)
    if bounds.fixed:
        total = np.minimum(total, bounds.init_batch_size)
    return BatchSizeChoice(goodput=value[best], atomic_batch_size=atomic, accum_steps=accum_steps, batch_size=total)


_Candidates: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _candidates(bounds: BatchSizeBounds, replicas: NDArray[np.int64]) -> _Candidates:
    """Numbers of passes p = s + 1 for K of shape (n, 1), and the m with M₀ ≤ K·m·p ≤ max_batch_size; each (n, p)."""
    low, high = bounds.local_bsz_bounds or (1, bounds.max_batch_size)
    fewest = _ceil_div(bounds.init_batch_size, replicas * high)
    passes = fewest
    if bounds.gradient_accumulation:
        # More passes than hold the largest batch are of no use, but where fewer do not divide a small batch well.
        most = int(np.max(_ceil_div(bounds.max_batch_size, replicas * high) - fewest, initial=0))
        if bounds.max_batch_size <= SMALL_BATCH:
            passes = fewest + np.arange(max(1, int(np.max(bounds.max_batch_size // (replicas * low)))))
        else:
            passes = fewest + _steps_up_to(most)
    smallest = np.maximum(low, _ceil_div(bounds.init_batch_size, replicas * passes))
    largest = np.minimum(high, bounds.max_batch_size // (replicas * passes))
    if not bounds.gradient_accumulation:
        largest = np.where(passes == 1, largest, 0)
    return passes, smallest, largest


def _fixed_candidates(bounds: BatchSizeBounds, replicas: NDArray[np.int64]) -> _Candidates:
    """The fewest passes whose largest share ⌈M₀/(K·p)⌉ is within the local bounds, and that share; each (n, 1)."""
    low, high = bounds.local_bsz_bounds or (1, bounds.max_batch_size)
    passes = _ceil_div(bounds.init_batch_size, replicas * high)
    share = _ceil_div(bounds.init_batch_size, replicas * passes)
    smallest_share = bounds.init_batch_size // (replicas * passes)
    allowed = (smallest_share >= low) & ((passes == 1) | bounds.gradient_accumulation)
    return passes, share, np.where(allowed, share, 0)


def _steps_up_to(most: int) -> NDArray[np.int64]:
    """0, 1, … most; thinned out geometrically beyond the first if they are too many."""
    if most < MAX_PASS_COUNTS:
        return np.arange(most + 1)
    dense = MAX_PASS_COUNTS // 2
    sparse = np.geomspace(dense, most, MAX_PASS_COUNTS - dense).astype(np.int64)
    return np.unique(np.concatenate([np.arange(dense), sparse, [most]]))


def _ceil_div(dividend: int, divisor: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-dividend // divisor)
