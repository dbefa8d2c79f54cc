"""What is trained towards which target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from learning.problems import DIGITS, TEXT, Problem

__all__ = ["PREDICTED", "TIMED", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A problem with the user's optimizer, and the target at which training ends."""

    name: str
    problem: Problem
    make_optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    rate: float
    """Learning rate at M₀: of the grid `rates` the one that reaches the target in the fewest steps."""
    rates: tuple[float, ...]
    init_batch_size: int
    max_scale: int
    """Largest M / M₀."""
    target: float
    """Of the validation."""
    by_accuracy: bool = False
    """Whether the share of right answers is validated, and not the loss."""
    interval: int
    """Steps at M₀ between two validations."""
    warm_up_steps: int = 32
    """Of `efficiency.py`, at M₀: nothing is known of the noise before."""

    def reached(self, value: float) -> bool:
        """Whether a validation is as good as the target."""
        return value >= self.target if self.by_accuracy else value <= self.target


def _sgd(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)


def _adamw(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=rate)


_ADAMW_TEXT = Task(
    name="text",
    problem=TEXT,
    make_optimizer=_adamw,
    rate=3e-3,
    rates=(7.5e-4, 1.5e-3, 3e-3, 6e-3),
    init_batch_size=4,
    max_scale=8,
    target=2.0,
    interval=20,
)

PREDICTED = {
    "digits": Task(
        name="digits",
        problem=DIGITS,
        make_optimizer=_sgd,
        rate=0.01,
        rates=(0.00125, 0.0025, 0.005, 0.01, 0.02),
        init_batch_size=8,
        max_scale=8,
        target=0.2,
        interval=10,
    ),
    "text": Task(
        name="text",
        problem=TEXT,
        make_optimizer=_sgd,
        rate=0.2,
        rates=(0.025, 0.05, 0.1, 0.2, 0.4),
        init_batch_size=4,
        max_scale=8,
        target=2.3,
        interval=20,
    ),
    # The optimizer's second moments have to settle.
    "text, AdamW": dataclasses.replace(_ADAMW_TEXT, name="text, AdamW", warm_up_steps=64),
}
PREDICTED |= {
    f"{name}, slower": dataclasses.replace(task, name=f"{name}, slower", rate=task.rates[0], rates=())
    for name, task in PREDICTED.items()
}
"""Tasks of `efficiency.py`. The best rate at M₀ is where noise sets the limit; the lowest of the grid is far from it."""

TIMED = {
    "digits": Task(
        name="digits",
        problem=DIGITS,
        make_optimizer=_sgd,
        rate=0.01,
        rates=(0.0025, 0.005, 0.01, 0.02, 0.04),
        init_batch_size=16,
        max_scale=8,
        target=0.965,
        by_accuracy=True,
        interval=20,
    ),
    "text": _ADAMW_TEXT,
}
"""Tasks of `time_to_accuracy.py`."""
