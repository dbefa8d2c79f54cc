"""One run: trains until the target is reached, and tells how it went."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import adaptdl.torch as adl
from adaptdl.goodput import GradParams
from learning.held import hold
from learning.tasks import PREDICTED, TIMED, Task

__all__ = ["RULES", "Point", "Run", "train"]

_SMOOTHED = 3
"""Validations of which the mean is taken."""
_MAX_DATA_SETS = 6
"""Whoever needs more progress than so many times the data does not reach the target."""


class _Unscaled(adl.ScalingRule):
    """r = 1: the learning rate as the user has it."""

    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        return 1.0


RULES: dict[str, adl.ScalingRule | None] = {"default": None, "linear": adl.LinearScale(), "unscaled": _Unscaled()}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be trained, and how."""

    task: str
    timed: bool
    """Whether the task is one of those of `time_to_accuracy.py`."""
    batch_size: int | None
    """M, held; None: it follows the goodput."""
    seed: int
    rule: str = "default"
    rate: float | None = None
    """None: the task's own."""

    @property
    def definition(self) -> Task:
        return (TIMED if self.timed else PREDICTED)[self.task]


@dataclass(frozen=True, kw_only=True)
class Point:
    """How training stands."""

    steps: int
    progress: float
    seconds: float
    """Of training: validation and the start of processes are not counted."""
    batch_size: int
    lr_factor: float
    grad_params: GradParams | None
    value: float
    """Mean of the last three validations."""


def train(run: Run) -> list[Point]:
    """Trains in the session that is open; all validations, the last one at or after the target. Empty but on rank 0."""
    training = _Training(run)
    if not run.timed:
        hold(training.session, training.loader, training.task.init_batch_size)
        training.loop(training.task.warm_up_steps)
    if run.batch_size is not None:
        hold(training.session, training.loader, run.batch_size)
    for _ in adl.remaining_epochs_until(_MAX_DATA_SETS):
        training.loop()
        if training.has_reached():
            break
    return training.points


class _Training:
    """What one replica has of it."""

    def __init__(self, run: Run) -> None:
        torch.manual_seed(run.seed)
        self.task, self.session = run.definition, adl.current_session()
        init, largest = self.task.init_batch_size, self.task.init_batch_size * self.task.max_scale
        data, self.validation = self.task.problem.load()
        self.loader = adl.AdaptiveDataLoader(data, init, shuffle=True, drop_last=True, seed=run.seed)
        self.loader.autoscale_batch_size(largest, (init // 2, largest // 2), gradient_accumulation=not run.timed)
        self.module, self.validated = self.task.problem.make(), self.task.problem.make()
        optimizer = self.optimizer = self.task.make_optimizer(self.module, run.rate or self.task.rate)
        self.model = adl.AdaptiveDataParallel(self.module, optimizer, scaling_rule=RULES[run.rule])
        self.seconds = 0.0
        self.due = 0.0
        """Progress at which the model is kept next, to be validated after the loop: no validation disturbs the clock."""
        self.kept: list[tuple[torch.Tensor, Point]] = []
        self.values: list[float] = []
        self.points: list[Point] = []

    def loop(self, most_steps: int | None = None) -> None:
        """Trains for a data set's worth of progress, or until so many steps are made."""
        began = time.perf_counter() - self.seconds
        for inputs, targets in self.loader:
            if self.session.num_steps == most_steps:
                break
            if self.session.rank == 0 and self.session.progress >= self.due:
                self._keep(time.perf_counter() - began)
            self.optimizer.zero_grad()
            self.task.problem.loss(self.model, inputs, targets).backward()
            self.optimizer.step()
        self.seconds = time.perf_counter() - began

    def _keep(self, seconds: float) -> None:
        session = self.session
        self.due = session.progress + self.task.interval
        point = Point(
            steps=session.num_steps,
            progress=session.progress,
            seconds=seconds,
            batch_size=self.loader.current_batch_size,
            lr_factor=self.model.lr_factor,
            grad_params=session.grad_params,
            value=float("nan"),
        )
        self.kept.append((parameters_to_vector(self.module.parameters()).detach().clone(), point))

    def has_reached(self) -> bool:
        """Validates what was kept; whether the target was reached, for all replicas."""
        group = self.session.group
        assert group is not None
        reached = False
        for parameters, point in self.kept:
            vector_to_parameters(parameters, self.validated.parameters())
            self.values.append(self._validate())
            value = statistics.fmean(self.values[-_SMOOTHED:])
            self.points.append(dataclasses.replace(point, value=value))
            reached = reached or self.task.reached(value)
        self.kept.clear()
        return bool(group.broadcast_object(reached))

    @torch.no_grad()
    def _validate(self) -> float:
        inputs, targets = self.validation.tensors
        if self.task.by_accuracy:
            return float((self.validated(inputs).argmax(-1) == targets).float().mean())
        return float(self.task.problem.loss(self.validated, inputs, targets))
