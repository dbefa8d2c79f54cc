"""What rank 0 knows of its own speed, and the batch size it chooses from that.

The profile holds one line per (N, K, m, s), of the last steady steps: the median of what they took, and apart from it the mean
of the time for which they waited for data, stalls left out. It is fitted off the training thread.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Collection
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adaptdl.goodput import (
    BatchSizeBounds,
    Fit,
    GoodputModel,
    GradParams,
    Observation,
    PerfParams,
    ProfileKey,
    fit_perf_params,
)

__all__ = ["Batch", "Tuner", "fit_to"]

_WINDOW = 50
"""Steps of which a line of the profile is the median."""
_WORTH = 1.05
"""A batch size is changed only if that multiplies the goodput by at least this."""
_STALLS = 0.1
"""Share of the steps whose waits for data may be stalls."""
_MIN_STEPS = 5
"""Steps before a line of the profile counts."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How the samples of one optimizer step are divided."""

    batch_size: int
    atomic_batch_size: int
    """m of the replica with the largest share."""
    accum_steps: int = 0


class _Step(NamedTuple):
    """A steady step, in seconds."""

    computing: float
    """Whatever was not waiting for data; gradients' sums that computing did not hide are part of it."""
    syncing: float
    """That part."""
    waiting: float
    """For data."""


@dataclass
class _Line:
    """Of the profile."""

    steps: deque[_Step] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """The last ones."""
    count: int = 0
    """Of all."""


class Tuner:
    """The profile of one trial, its fit, and the choice of a batch size."""

    def __init__(self) -> None:
        self._lines: dict[ProfileKey, _Line] = {}
        self._fit: Fit | None = None
        self._pending: Future[Fit] | None = None
        self._fitted_counts: dict[ProfileKey, int] = {}
        self.max_profiled_replicas = 0
        """The largest number of replicas that the newest fit knows of: whoever is told of it has the fit, too."""

    def record(self, key: ProfileKey, step_time_s: float, sync_time_s: float, wait_s: float = 0.0) -> None:
        """One steady step; `wait_s`: the part of it for which it waited for data."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        line.steps.append(_Step(step_time_s - wait_s, sync_time_s, wait_s))
        line.count += 1

    def profile(self) -> dict[ProfileKey, Observation]:
        return {
            key: Observation(
                step_time_s=_step_time_s(line.steps),
                sync_time_s=statistics.median(step.syncing for step in line.steps),
                count=line.count,
            )
            for key, line in self._lines.items()
            if line.count >= _MIN_STEPS
        }

    def step_time_s(self, key: ProfileKey) -> float | None:
        """Median time of the last steps of this kind."""
        line = self._lines.get(key)
        return None if line is None else _step_time_s(line.steps)

    @property
    def perf_params(self) -> PerfParams | None:
        """The newest fit, if there is one."""
        if self._pending is not None and self._pending.done():
            self._fit, self._pending = self._pending.result(), None
            self.max_profiled_replicas = max(
                [self.max_profiled_replicas, *(key.num_replicas for key in self._fitted_counts)]
            )
        return None if self._fit is None else self._fit.perf_params

    def refit(self, executor: Executor) -> None:
        """Starts a fit if the profile has grown by a fifth since the last one, or has a new line."""
        if self._pending is not None and not self._pending.done():
            return
        counts = {key: line.count for key, line in self._lines.items() if line.count >= _MIN_STEPS}
        if all(count < 1.2 * self._fitted_counts.get(key, 0) for key, count in counts.items()):
            return
        self.perf_params  # noqa: B018  # takes the result of the fit before
        self._fitted_counts = counts
        self._pending = executor.submit(fit_perf_params, self.profile())

    def choose(
        self, bounds: BatchSizeBounds, grad_params: GradParams | None, num_nodes: int, num_replicas: int, current: Batch
    ) -> Batch:
        """The batch to use on (N, K): `current` as far as it fits, unless another one is worth the change.

        It is never more than twice `current` (or M₀ per replica): what a larger batch is worth was not yet seen.
        """
        kept = fit_to(bounds, num_replicas, current)
        perf_params = self.perf_params
        if perf_params is None or grad_params is None or bounds.fixed:
            return kept
        most = min(bounds.max_batch_size, max(2 * kept.batch_size, num_replicas * bounds.init_batch_size))
        bounds = dataclasses.replace(bounds, max_batch_size=most)
        model = GoodputModel(perf_params=perf_params, grad_params=grad_params, bounds=bounds)
        choice = model.best_batch_size(num_nodes, num_replicas)
        if float(choice.goodput) <= 0:
            return kept
        m, s = int(choice.atomic_batch_size), int(choice.accum_steps)
        now = float(model.goodput(num_nodes, num_replicas, kept.atomic_batch_size, kept.accum_steps))
        if kept.batch_size >= bounds.init_batch_size and float(choice.goodput) < _WORTH * now:
            return kept
        return Batch(batch_size=num_replicas * m * (s + 1), atomic_batch_size=m, accum_steps=s)

    def state_dict(self) -> dict[str, Any]:
        def plain(key: ProfileKey) -> tuple[int, int, int, int]:
            return key.num_nodes, key.num_replicas, key.atomic_batch_size, key.accum_steps

        perf = self.perf_params
        return {
            "lines": [
                (plain(key), [tuple(step) for step in line.steps], line.count) for key, line in self._lines.items()
            ],
            "fit": None if perf is None else [getattr(perf, name) for name in _PERF_NAMES],
            "max_profiled_replicas": self.max_profiled_replicas,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lines = {}
        for (num_nodes, num_replicas, m, s), line, count in state["lines"]:
            key = ProfileKey(num_nodes=num_nodes, num_replicas=num_replicas, atomic_batch_size=m, accum_steps=s)
            self._lines[key] = _Line(deque((_Step(*step) for step in line), maxlen=_WINDOW), count)
        if state["fit"] is not None:
            perf_params = PerfParams(**dict(zip(_PERF_NAMES, state["fit"], strict=True)))
            self._fit = Fit(perf_params=perf_params, is_prior=False, message="from another replica", rmsle=float("nan"))
        self.max_profiled_replicas = state["max_profiled_replicas"]


_PERF_NAMES = ("alpha_c", "beta_c", "alpha_n", "beta_n", "alpha_r", "beta_r", "gamma")


def _step_time_s(line: Collection[_Step]) -> float:
    """Where data loading cannot keep up, steps wait in turns, one for as many as there are workers, and the mean tells what that
    takes. A stall is longer, and rare: the longest waits count as the longest one that is not among them."""
    waits = sorted(step.waiting for step in line)
    longest = waits[max(0, len(waits) - 1 - max(1, int(_STALLS * len(waits))))]
    return statistics.median(step.computing for step in line) + statistics.fmean(min(wait, longest) for wait in waits)


def fit_to(bounds: BatchSizeBounds, num_replicas: int, current: Batch) -> Batch:
    """The batch nearest to `current` that can be divided over `num_replicas` within the bounds."""
    if bounds.fixed:
        size = bounds.init_batch_size
        share = -(-size // num_replicas)
        accum_steps = 0
        if bounds.gradient_accumulation and bounds.local_bsz_bounds is not None:
            accum_steps = -(-share // bounds.local_bsz_bounds[1]) - 1
        return Batch(batch_size=size, atomic_batch_size=-(-share // (accum_steps + 1)), accum_steps=accum_steps)
    low, high = bounds.local_bsz_bounds or (1, bounds.max_batch_size)
    per_replica = -(-max(current.batch_size, bounds.init_batch_size) // num_replicas)
    if per_replica <= high or not bounds.gradient_accumulation:
        m, s = min(max(per_replica, low), high), 0
    else:
        s = -(-per_replica // high) - 1
        m = max(low, -(-per_replica // (s + 1)))
    while num_replicas * m * (s + 1) > bounds.max_batch_size and m > low:
        m -= 1
    return Batch(batch_size=num_replicas * m * (s + 1), atomic_batch_size=m, accum_steps=s)
