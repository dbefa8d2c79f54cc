"""One job in simulated time: what it is, what it has done, and what it knows of itself.

  ┌─────────┐ allocation  ┌──────────┐ delay over ┌─────────┐ last epoch ends  ┌──────────┐
  │ waiting ├────────────▶│ starting ├───────────▶│ running ├─────────────────▶│ complete │
  └────▲────┘             └────▲─┬───┘            └──┬─┬────┘ or it is stopped └──────────┘
       │      nothing          │ └───────────────────┘ │
       └───────────────────────┴──────────────── a new allocation

A new allocation that needs replicas which take time to start (`boot_s`) leaves the job running, on those that it has and
keeps, until they join.

What it does is the application's truth (:class:`~adaptdl.sim.application.Application`); what it knows is what real jobs
know, the step times it has made and the gradient statistics of where it is, from which the real fit and the real goodput
model make its report.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptdl.errors import UsageError
from adaptdl.goodput import (
    BatchSizeBounds,
    GoodputModel,
    GradParams,
    JobReport,
    Observation,
    PerfParams,
    ProfileKey,
    fit_perf_params,
    gain,
)
from adaptdl.sim.application import Application, BatchSplit, split_batch

__all__ = ["JobSpec", "SimulatedJob"]

_PROFILED_STEPS = 100
"""Steps that one entry of a profile stands for: so many that their mean is taken as certain."""

_INSTANT_S = 1e-6
"""An epoch that is so near its end has ended: less is lost in adding up seconds."""

_NO_SPLIT = BatchSplit(0, 0)


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job of a workload."""

    job_id: str
    application: Application
    submitted_s: float
    """When it is submitted, seconds from the start."""
    requested_replicas: int = 1
    """What its user would ask for, for policies that give that."""
    requested_batch_size: int | None = None
    """What its user would train with; None: M₀."""
    min_replicas: int = 1
    max_replicas: int | None = None
    """None: as many as the application can use."""
    rungs: tuple[tuple[int, float], ...] = ()
    """For early stopping: numbers of epochs after which it is judged, ascending, and its score there (higher is
    better)."""
    score: float = 0.0
    """Its score when complete, higher is better: says which trial of a tuning workload is the best one."""


@dataclass(eq=False)
class SimulatedJob:
    """One job's state. The simulator alone changes it."""

    spec: JobSpec
    adaptive: bool
    """Whether it chooses its batch size; else it trains with the requested one."""
    resolution_s: float = 0.0
    """Epochs end at multiples of so many seconds (0: at any time)."""
    allocation: Mapping[str, int] = field(default_factory=dict)
    """What it holds. Its shape is the order of the nodes in it."""
    members: Mapping[str, int] = field(default_factory=dict)
    """What it trains with: the allocation, but for newcomers that are still starting."""
    changed_s: float = -math.inf
    """When it last got another allocation."""
    delay_s: float = 0.0
    """What is left of a start or a reallocation."""
    boot_s: float = 0.0
    """What is left of the start of newcomers, beside training."""
    join_s: float = 0.0
    """What it will cost when they join."""
    epoch: int = 0
    progress: float = 0.0
    service_s: float = 0.0
    """Replicas held × seconds, delays included."""
    waited_s: float = 0.0
    num_starts: int = 0
    """Allocations it was given that are not empty."""
    lost_progress: float = 0.0
    """Progress made twice, since it was lost with a node."""
    completed_s: float | None = None
    stopped: bool = False
    """Whether it was complete because it was stopped early."""
    rungs_passed: set[int] = field(default_factory=set)
    split: BatchSplit = _NO_SPLIT
    profile: dict[ProfileKey, Observation] = field(default_factory=dict)
    perf_params: PerfParams | None = None
    trained_batch_size: int = 0
    """M of the last steps it made."""
    _report: JobReport | None = None
    _fits: dict[tuple[ProfileKey, ...], PerfParams] = field(default_factory=dict)
    """Made by itself or by a copy that looked ahead."""

    @property
    def job_id(self) -> str:
        return self.spec.job_id

    @property
    def num_replicas(self) -> int:
        return sum(self.allocation.values())

    @property
    def num_members(self) -> int:
        return sum(self.members.values())

    @property
    def settles_s(self) -> float:
        """Seconds until it trains on all that it was given."""
        return self.boot_s + self.join_s if self.boot_s > 0 else self.delay_s

    @property
    def num_restarts(self) -> int:
        return max(self.num_starts - 1, 0)

    @property
    def batch_size(self) -> int:
        """M at present; 0 without replicas."""
        return self.num_members * self.split.atomic_batch_size * (self.split.accum_steps + 1)

    @property
    def max_profiled_replicas(self) -> int:
        return max((key.num_replicas for key in self.profile), default=0)

    @property
    def is_complete(self) -> bool:
        return self.completed_s is not None

    @property
    def total_progress(self) -> float:
        return self.spec.application.epoch_ends[-1]

    def saved(self) -> SimulatedJob:
        """A copy that goes on by itself, for looking ahead."""
        twin = copy.copy(self)
        twin.profile = dict(self.profile)
        return twin

    def reallocate(self, allocation: Mapping[str, int], delay_s: float, now_s: float, *, boot_s: float = 0.0) -> None:
        """A new allocation.

        One that is not empty costs `delay_s` without progress, whatever was left of the last. If the job has members and
        is given more replicas, these start first, for `boot_s`.
        """
        before, self.allocation, self.changed_s = self.allocation, dict(allocation), now_s
        if not allocation:
            self.members, self.boot_s = {}, 0.0
            return
        self.num_starts += 1
        if not (self.members and boot_s > 0):
            self._train_on(self.allocation, delay_s)
            return
        if any(count > before.get(node_id, 0) for node_id, count in allocation.items()):
            self.boot_s = boot_s  # else they are those that start already, or fewer
        self.join_s = delay_s
        kept = {n: min(count, self.members[n]) for n, count in allocation.items() if n in self.members}
        if kept == self.allocation:
            self.boot_s = 0.0
        if kept and kept != self.members:
            self._train_on(kept, delay_s)

    def _train_on(self, members: Mapping[str, int], delay_s: float) -> None:
        self.members, self.delay_s = dict(members), delay_s
        if members == self.allocation:
            self.boot_s = 0.0
        self._choose_batch_size()

    def lose(self, progress: float) -> None:
        """Progress that has to be made again."""
        before = self.progress
        self.progress = max(self.progress - progress, 0.0)
        ends = self.spec.application.epoch_ends
        while self.epoch and self.progress < ends[self.epoch - 1]:
            self.epoch -= 1
        self.lost_progress += before - self.progress

    def rate(self) -> float:
        """Progress per second, outside of delays."""
        if not self.members:
            return 0.0
        application = self.spec.application
        grad_params = application.grad_params(self.epoch, self.batch_size)
        return float(gain(grad_params, application.init_batch_size, self.batch_size)) / self._step_time_s()

    def advance(self, duration_s: float, now_s: float, *, until: int | None = None) -> float:
        """Trains for `duration_s` from `now_s`, or up to the end of epoch number `until` (1-based), or to the last
        one's. Returns the seconds used."""
        if not self.allocation:
            self.waited_s += duration_s
            return duration_s
        used_s = 0.0
        while used_s < duration_s and not self.is_complete and self.epoch != until:
            part_s = duration_s - used_s
            if self.boot_s > 0:
                part_s = min(part_s, self.boot_s)
            trained_s = self._train(part_s, now_s + used_s, until)
            used_s += trained_s
            if self.boot_s > 0:
                self.boot_s -= trained_s
                if self.boot_s <= 0:
                    self._train_on(self.allocation, self.join_s)
        self.service_s += self.num_replicas * used_s
        return used_s

    def _train(self, duration_s: float, now_s: float, until: int | None) -> float:
        """As :meth:`advance`, on the present members."""
        left_s = duration_s
        delayed_s = min(self.delay_s, left_s)
        self.delay_s -= delayed_s
        left_s -= delayed_s
        ends = self.spec.application.epoch_ends
        while left_s > 0 and not self.is_complete:
            rate = self.rate()
            needed_s = (ends[self.epoch] - self.progress) / rate
            if self.resolution_s and math.isfinite(needed_s):
                needed_s = round(needed_s / self.resolution_s) * self.resolution_s
            if needed_s > left_s + _INSTANT_S:
                self.progress += rate * left_s
                left_s = 0.0
            else:
                self.progress = ends[self.epoch]
                left_s = max(left_s - needed_s, 0.0)
                self.epoch += 1
                if self.epoch == len(ends):
                    self.completed_s = now_s + duration_s - left_s
            self._learn()
            if self.epoch == until:
                break
        return duration_s - left_s

    def report(self) -> JobReport | None:
        """What it says about itself; None before its first step."""
        if not self.profile:
            return None
        if self._report is None:
            application, bounds = self.spec.application, self._bounds()
            at = self._grad_params()
            remaining = self.total_progress - self.progress
            if bounds.init_batch_size != application.init_batch_size:
                # Progress in steps at the batch size that the job itself takes for M₀.
                remaining /= float(gain(at, application.init_batch_size, bounds.init_batch_size))
            self._report = JobReport(
                bounds=bounds,
                perf_params=self.perf_params,
                grad_params=at,
                max_profiled_replicas=self.max_profiled_replicas,
                progress=self.progress,
                remaining_progress=remaining,
                batch_size=self.batch_size,
                num_replicas=self.num_members,
            )
        return self._report

    def _bounds(self) -> BatchSizeBounds:
        return self.spec.application.bounds

    def _grad_params(self) -> GradParams:
        application = self.spec.application
        epoch = min(self.epoch, len(application.epoch_ends) - 1)
        return application.grad_params(epoch, self.trained_batch_size or application.bounds.init_batch_size)

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.members.values())

    def _step_time_s(self) -> float:
        times = self.spec.application.step_times(self._shape(), self.split.atomic_batch_size)
        return times.with_accumulation(self.split.accum_steps)

    def _learn(self) -> None:
        """Notes the step time, fits anew if it is of a new configuration, and chooses the batch size again."""
        self._report = None
        self.trained_batch_size = self.batch_size
        if not self.adaptive:
            return
        shape, (atomic, accum_steps) = self._shape(), self.split
        key = ProfileKey(
            num_nodes=len(shape), num_replicas=sum(shape), atomic_batch_size=atomic, accum_steps=accum_steps
        )
        if key not in self.profile:
            times = self.spec.application.step_times(shape, atomic)
            self.profile[key] = Observation(
                step_time_s=times.with_accumulation(accum_steps), sync_time_s=times.sync_time_s, count=_PROFILED_STEPS
            )
            known = tuple(self.profile)
            if known not in self._fits:
                self._fits[known] = fit_perf_params(self.profile).perf_params
            self.perf_params = self._fits[known]
        if not self.is_complete:
            self._choose_batch_size()

    def _choose_batch_size(self) -> None:
        application, bounds, num_replicas = self.spec.application, self._bounds(), self.num_members
        if not self.adaptive:
            batch_size = self.spec.requested_batch_size or application.init_batch_size
        elif self.perf_params is None:
            low = bounds.local_bsz_bounds[0] if bounds.local_bsz_bounds else 1
            batch_size = max(bounds.init_batch_size, low * num_replicas)
        else:
            model = GoodputModel(perf_params=self.perf_params, grad_params=self._grad_params(), bounds=bounds)
            choice = model.best_batch_size(len(self.members), num_replicas)
            batch_size, accum_steps = int(choice.batch_size), int(choice.accum_steps)
            if batch_size == 0:
                raise UsageError(
                    f"job {self.job_id!r}: no batch size within {bounds} can be trained on {num_replicas} replicas."
                )
            if num_replicas > 1 or accum_steps or batch_size <= application.init_batch_size:
                self.split = BatchSplit(int(choice.atomic_batch_size), accum_steps)
                return
        self.split = split_batch(application, num_replicas, batch_size)
