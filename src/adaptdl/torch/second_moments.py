"""Squared norms of gradients as an optimizer that divides by a running root mean square sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from adaptdl.torch.scaling_rules import is_adam_like

__all__ = ["SecondMoments", "has_second_moments", "second_moments"]

_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
"""Names under which optimizers keep running squares of gradients (the Adam family, RMSprop, Adagrad)."""
_EPSILON = 1e-8
_MAX_PIECE, _PIECES = 1 << 16, 64
"""Norms are taken in pieces of so many elements at most, and of so small a part of a bucket, as long as that is not tiny: what
it takes in memory is a small share of the gradients."""
_MIN_PIECE = 1 << 14
_LEAST_SHARE = 0.01
"""A second moment counts as at least this share of the mean over its parameter. Where gradients are rarely other than zero (the
rows of rare tokens in an embedding) it is next to nothing, and when one comes, a few elements would outweigh all others, though
an update of Adam's is at most (1 − β₁) / √(1 − β₂) learning rates, 3.2 with its defaults (Kingma and Ba, Adam, 2015, section
2.1). Cutting off what is divided would not do: it takes more from the gradients of few samples than from those of many, which is
what noise is told by."""
_SETTLED_STEPS = 20
"""A second moment over t steps makes what it divides larger by t / (t − 2) on average, and much larger at times while t is
small: the optimizer's first steps are not measured."""


class _Moment(NamedTuple):
    """Of one parameter."""

    moment: torch.Tensor
    """v."""
    least: torch.Tensor
    """What an element of it counts as at least, a tensor of one element."""
    correction: Any
    """1 − β₂ᵗ (Kingma and Ba, Adam, 2015, section 3), or 1 for optimizers that do not correct. A number, or a tensor of one
    element where the optimizer counts its steps on the device."""


@dataclass(frozen=True)
class SecondMoments:
    """v of some parameters, in their order, with what makes v̂ of it."""

    moments: Sequence[_Moment | None]
    """None for a parameter that was never updated, which is left out of norms; for all, if they are not settled."""
    num_steps: float
    """Over which they were averaged, t; infinite where that is not known without waiting for a device."""

    @property
    def is_settled(self) -> bool:
        """Whether norms that they divide tell of the gradients, and not of chance."""
        return self.num_steps >= _SETTLED_STEPS

    def of(self, indices: Sequence[int]) -> SecondMoments:
        """The same of these parameters alone."""
        return SecondMoments([self.moments[index] for index in indices], self.num_steps)

    def sqr(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Σ g² / v̂ over all elements of `gradients`, which are the parameters' in their order; float32 or wider."""
        pairs = [
            (gradient, moment)
            for gradient, moment in zip(gradients, self.moments, strict=True)
            if moment is not None and gradient.numel()
        ]
        if not pairs:
            return torch.zeros((), device=gradients[0].device)
        total = sum(gradient.numel() for gradient, _ in pairs)
        size = max(_MIN_PIECE, min(_MAX_PIECE, total // _PIECES))
        pieces = list(_pieces(pairs, size))
        if all(gradient.is_cpu and gradient.dtype == of.moment.dtype == torch.float32 for gradient, of in pairs):
            sums = _sums_in_one_buffer(pieces)
        else:
            sums = _foreach_sums(pieces, size)
        corrections = [piece.correction for piece in pieces]
        if any(isinstance(correction, torch.Tensor) for correction in corrections):
            factors = torch.stack([torch.as_tensor(value, device=sums.device) for value in corrections])
        else:
            factors = torch.tensor(corrections, dtype=sums.dtype, device=sums.device)
        return torch.dot(sums, factors.to(sums.dtype))


class _Piece(NamedTuple):
    """Of a parameter, flat."""

    gradient: torch.Tensor
    moment: torch.Tensor
    least: torch.Tensor
    correction: Any


def _pieces(pairs: Sequence[tuple[torch.Tensor, _Moment]], size: int) -> Iterator[_Piece]:
    """Gradients and what divides them, in pieces of so many elements at most."""
    for gradient, (moment, least, correction) in pairs:
        flat, divisor = gradient.reshape(-1), moment.reshape(-1)
        if flat.numel() <= size:
            yield _Piece(flat, divisor, least, correction)
        else:
            for piece, divisor_piece in zip(flat.split(size), divisor.split(size), strict=True):
                yield _Piece(piece, divisor_piece, least, correction)


def _sums_in_one_buffer(pieces: Sequence[_Piece]) -> torch.Tensor:
    """Σ g² / v of each. On a CPU new memory costs more than computing, and a product of vectors less than a norm."""
    size = max(piece.gradient.numel() for piece in pieces)
    buffer = torch.empty(size)
    sums = []
    for gradient, moment, least, _ in pieces:
        out = buffer if gradient.numel() == size else buffer[: gradient.numel()]
        torch.maximum(moment, least, out=out)
        torch.div(gradient, out, out=out)
        sums.append(torch.dot(out, gradient))
    return torch.stack(sums)


def _foreach_sums(pieces: Sequence[_Piece], size: int) -> torch.Tensor:
    """The same by calls for as many pieces as have so many elements together: on a device, calls are dear."""
    sums: list[torch.Tensor] = []
    batch: list[_Piece] = []
    num_in_batch = 0
    for piece in pieces:
        if batch and num_in_batch + piece.gradient.numel() > size:
            sums += _foreach_sums_of_batch(batch)
            batch, num_in_batch = [], 0
        batch.append(piece)
        num_in_batch += piece.gradient.numel()
    return torch.stack(sums + _foreach_sums_of_batch(batch))


def _foreach_sums_of_batch(pieces: Sequence[_Piece]) -> list[torch.Tensor]:
    gradients = [piece.gradient for piece in pieces]
    values: Any = torch._foreach_maximum([piece.moment for piece in pieces], [piece.least for piece in pieces])
    values = torch._foreach_div(gradients, values)
    torch._foreach_mul_(values, gradients)
    values = torch._foreach_norm(values, 1)  # none is negative
    return [value.float() for value in values]


def has_second_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `optimizer` keeps running squares of gradients. Adamax keeps a running maximum, which is not one."""
    return is_adam_like(optimizer) and not isinstance(optimizer, torch.optim.Adamax)


def second_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> SecondMoments | None:
    """What `optimizer` has of these parameters; None before its first step."""
    if not optimizer.state:
        return None
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    steps = [state.get("step", math.inf) for state in states]
    num_steps = min((float(step) for step in steps if not _is_on_device(step)), default=math.inf)
    if num_steps < _SETTLED_STEPS:
        return SecondMoments([None] * len(states), num_steps)
    betas = _betas(optimizer)
    moments: list[_Moment | None] = []
    for parameter, state in zip(parameters, states, strict=True):
        name = next((name for name in _MOMENTS if name in state), None)
        if name is None:
            moments.append(None)
            continue
        moment = state[name].detach()
        least = _LEAST_SHARE * moment.mean(dtype=torch.float32) + _EPSILON**2
        correction = _correction(state, betas.get(parameter)) if name.endswith("exp_avg_sq") else 1.0
        moments.append(_Moment(moment, least, correction))
    return SecondMoments(moments, num_steps)


def _betas(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, float]:
    return {
        parameter: group["betas"][1]
        for group in optimizer.param_groups
        if "betas" in group
        for parameter in group["params"]
    }


def _correction(state: Mapping[str, Any], beta: float | None) -> Any:
    step = state.get("step")
    if beta is None or step is None:
        return 1.0
    return 1.0 - float(beta) ** (step if _is_on_device(step) else float(step))


def _is_on_device(step: Any) -> bool:
    """Whether a number of steps is where it must not be waited for."""
    return isinstance(step, torch.Tensor) and not step.is_cpu
