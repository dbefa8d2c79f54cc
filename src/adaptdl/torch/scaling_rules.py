"""How the learning rate follows the batch size.

=====  ========================================================
M, M₀  batch size, and the one the user's learning rate is for
φ      gradient noise scale
r      factor for the learning rate
=====  ========================================================
"""

from __future__ import annotations

import abc
import math
from typing import Any

import torch

from adaptdl.errors import UsageError
from adaptdl.goodput import GradParams, gain

__all__ = ["AdaScale", "LEGWScale", "LinearScale", "ScalingRule", "SqrtScale", "default_scaling_rule", "is_adam_like"]


class ScalingRule(abc.ABC):
    """Gives the factor for the learning rate of one step."""

    @abc.abstractmethod
    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        """r.

        Args:
            scale: M / M₀, > 0.
            grad_params: gradient statistics at M₀; None while there are none.
            progress: steps at M₀ that the job has made.
        """


class AdaScale(ScalingRule):
    """r = the gain, (φ/M₀ + 1) / (φ/M + 1) (Johnson et al., AdaScale SGD, ICML 2020): between 1 and M/M₀. The default for SGD."""

    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        if scale == 1.0 or grad_params is None:
            return 1.0
        return float(gain(grad_params, 1.0, scale))


class LinearScale(ScalingRule):
    """r = M/M₀ (Goyal et al., 2017)."""

    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        return scale


class SqrtScale(ScalingRule):
    """r = √(M/M₀) (Krizhevsky, 2014). The default for the Adam family."""

    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        return math.sqrt(scale)


class LEGWScale(ScalingRule):
    """r = √(M/M₀), reached linearly over ``warmup_steps · M/M₀`` steps at M₀ (You et al., Linear-Epoch Gradual-Warmup, 2019).

    Args:
        warmup_steps: steps of the warm-up at M₀, ≥ 0.

    Raises:
        UsageError: `warmup_steps` is negative.
    """

    def __init__(self, warmup_steps: float) -> None:
        if warmup_steps < 0:
            raise UsageError(f"warmup_steps must be ≥ 0, but got {warmup_steps}")
        self.warmup_steps = warmup_steps

    def factor(self, *, scale: float, grad_params: GradParams | None, progress: float) -> float:
        length = self.warmup_steps * scale
        return math.sqrt(scale) * (min(1.0, (progress + 1) / length) if length > 0 else 1.0)


_ADAM_LIKE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")


def is_adam_like(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `optimizer` divides gradients by a running size of theirs."""
    return any(base.__name__ in _ADAM_LIKE for base in type(optimizer).__mro__)


def default_scaling_rule(optimizer: torch.optim.Optimizer) -> ScalingRule:
    """Square-root for the Adam family, AdaScale for the others."""
    return SqrtScale() if is_adam_like(optimizer) else AdaScale()


def check_scaling_rule(rule: Any) -> None:
    """Raises UsageError if `rule` is not a ScalingRule."""
    if not isinstance(rule, ScalingRule):
        raise UsageError(f"scaling_rule must be an adaptdl.torch.ScalingRule such as AdaScale(), but got {rule!r}")
