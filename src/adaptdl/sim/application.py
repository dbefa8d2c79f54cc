"""What a job of the simulation really is: step times and gradients, which nobody in the simulation is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams, gain, grad_time_s, step_time_s

__all__ = ["Application", "BatchSplit", "ModelApplication", "StepTimes", "split_batch"]


class StepTimes(NamedTuple):
    """Times of one synchronised forward-backward pass and update, in seconds."""

    step_time_s: float
    sync_time_s: float
    """The part that is communication not hidden behind computing."""

    def with_accumulation(self, accum_steps: int) -> float:
        """Seconds of a whole optimizer step with `accum_steps` further passes that are not synchronised."""
        return self.step_time_s + accum_steps * (self.step_time_s - self.sync_time_s)


class BatchSplit(NamedTuple):
    """How a batch is divided: M = K·m·(s + 1)."""

    atomic_batch_size: int
    accum_steps: int


class Application(Protocol):
    """The truth about one model's training. Immutable; many jobs may share one."""

    @property
    def name(self) -> str: ...

    @property
    def init_batch_size(self) -> int:
        """M₀, which progress and gradient statistics refer to."""

    @property
    def bounds(self) -> BatchSizeBounds:
        """Limits of a batch size that adapts."""

    @property
    def max_replicas(self) -> int:
        """More are of no use to it."""

    @property
    def epoch_ends(self) -> Sequence[float]:
        """Cumulative progress at the end of each epoch, steps at M₀; after the last one the job is complete."""

    def step_times(self, shape: tuple[int, ...], atomic_batch_size: int) -> StepTimes:
        """Of m samples per replica on nodes with `shape` replicas each, in the order of the allocation."""

    def grad_params(self, epoch: int, batch_size: int) -> GradParams:
        """At M₀, as a training with M samples per step has them in that epoch (0-based)."""

    def iterations(self, epoch: int, batch_size: int) -> float:
        """Optimizer steps that a training with M samples per step has made at the end of that epoch (0-based)."""


def split_batch(application: Application, num_replicas: int, batch_size: int) -> BatchSplit:
    """m and s of a batch size that is given (Pollux artifact, OSDI 2021): the fewest passes that fit.

    One replica makes at least two passes of a batch larger than M₀, since it could not measure its gradient noise
    from one. The real batch size, K·m·(s + 1), may differ from `batch_size` by rounding.
    """
    bounds = application.bounds
    high = bounds.local_bsz_bounds[1] if bounds.local_bsz_bounds else bounds.max_batch_size
    local = -(-batch_size // num_replicas)
    accum_steps = -(-local // high) - 1
    if num_replicas == 1 and batch_size > application.init_batch_size:
        accum_steps = max(1, accum_steps)
    atomic = -(-local // (accum_steps + 1))
    return BatchSplit(max(1, min(atomic, bounds.max_batch_size // (num_replicas * (accum_steps + 1)))), accum_steps)


@dataclass(frozen=True, kw_only=True)
class ModelApplication:
    """An application that is as the models of goodput say: its true parameters, and gradients that get noisier.

    Raises UsageError if the numbers contradict each other.
    """

    name: str
    perf_params: PerfParams
    bounds: BatchSizeBounds
    num_epochs: int
    epoch_progress: float
    """Progress of one epoch: steps at M₀."""
    first_grad_params: GradParams
    """Of the first epoch."""
    last_grad_params: GradParams
    """Of the last one; in between they change geometrically."""
    max_replicas: int = 1_000_000
    _step_times: dict[tuple[int, int, int], StepTimes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _iterations: dict[int, list[float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or not self.epoch_progress > 0:
            raise UsageError(
                f"application {self.name!r}: `num_epochs >= 1` and `epoch_progress > 0` must hold, but got "
                f"(num_epochs={self.num_epochs}, epoch_progress={self.epoch_progress})."
            )

    @property
    def init_batch_size(self) -> int:
        return self.bounds.init_batch_size

    @cached_property
    def epoch_ends(self) -> Sequence[float]:
        return [self.epoch_progress * (epoch + 1) for epoch in range(self.num_epochs)]

    def step_times(self, shape: tuple[int, ...], atomic_batch_size: int) -> StepTimes:
        key = (len(shape), sum(shape), atomic_batch_size)
        if key not in self._step_times:
            step = float(step_time_s(self.perf_params, *key))
            self._step_times[key] = StepTimes(step, step - float(grad_time_s(self.perf_params, atomic_batch_size)))
        return self._step_times[key]

    def grad_params(self, epoch: int, batch_size: int) -> GradParams:
        first, last = self.first_grad_params, self.last_grad_params
        share = epoch / max(self.num_epochs - 1, 1)
        return GradParams(
            grad_sqr=_between(first.grad_sqr, last.grad_sqr, share),
            grad_var=_between(first.grad_var, last.grad_var, share),
        )

    def iterations(self, epoch: int, batch_size: int) -> float:
        if batch_size not in self._iterations:
            gains = [
                gain(self.grad_params(e, batch_size), self.init_batch_size, batch_size) for e in range(self.num_epochs)
            ]
            self._iterations[batch_size] = list(accumulate(self.epoch_progress / float(each) for each in gains))
        return self._iterations[batch_size][epoch]


def _between(first: float, last: float, share: float) -> float:
    if first <= 0 or last <= 0:
        return first + (last - first) * share
    return math.exp(math.log(first) * (1 - share) + math.log(last) * share)
