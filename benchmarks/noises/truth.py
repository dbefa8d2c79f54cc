"""The true noise of gradients, from those of all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from noises.problems import Problem

__all__ = ["Noise", "true_noise"]

_LARGEST_RATIO = 1e4
"""As in the library: more is not told apart from pure noise."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """At M₀."""

    grad_sqr: float
    grad_var: float

    @property
    def ratio(self) -> float:
        """φ / M₀."""
        return self.grad_var / max(self.grad_sqr, self.grad_var / _LARGEST_RATIO)


def true_noise(
    problem: Problem, module: nn.Module, weights: Sequence[Tensor] | None = None, *, bf16: bool = False
) -> Noise:
    """|g|² and tr Σ / M₀ of all samples. |g|² is the mean product of two different samples' gradients, |mean|² − tr Σ / n: a step
    has no sample twice.

    Args:
        weights: of the squares of each parameter's coordinates; None: all count alike.
    """
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = functional_call(module, parameters, (inputs[None],))
        return problem.loss(output.float(), targets[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    inputs, targets = problem.load().tensors
    n = len(inputs)
    sums = [torch.zeros(parameter.numel(), dtype=torch.float64) for parameter in parameters.values()]
    squares = [torch.zeros_like(total) for total in sums]
    for chunk in torch.arange(n).split(problem.chunk):
        found = gradients(parameters, inputs[chunk], targets[chunk])
        for total, square, name in zip(sums, squares, parameters, strict=True):
            per_sample = found[name].reshape(len(chunk), -1)
            total += per_sample.sum(0, dtype=torch.float64)
            square += per_sample.square().sum(0, dtype=torch.float64)
    sqr = trace = 0.0
    for index, (total, square) in enumerate(zip(sums, squares, strict=True)):
        mean = total / n
        weight = torch.ones_like(mean) if weights is None else weights[index].double().reshape(-1)
        sqr += float(mean.square() @ weight)
        trace += float((square / n - mean.square()) @ weight) * n / (n - 1)
    return Noise(grad_sqr=sqr - trace / n, grad_var=trace / problem.init_batch_size)
