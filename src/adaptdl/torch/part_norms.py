"""Squared norms of the gradients of the parts of a step, each taken as it arrives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from adaptdl.torch.loop import Micro
from adaptdl.torch.norm_pace import NormPace
from adaptdl.torch.second_moments import SecondMoments

__all__ = ["PartNorms"]

_BATCH_ELEMENTS = 1 << 16
"""Gradients are held back, unless one is larger, until there are so many elements: small ones are dear one by one."""


class PartNorms:
    """One step of several parts on one replica. A gradient is seen on its way to its parameter, where it is added to those of the
    parts before: none is copied, and none is kept.

    Args:
        micro: the step's first part.
        parameters: at which gradients may arrive.
        moments: what the optimizer divides their gradients by; None if it does not.
        pace: is told what it costs.
    """

    def __init__(
        self, micro: Micro, parameters: Sequence[torch.Tensor], moments: SecondMoments | None, pace: NormPace
    ) -> None:
        self.micro = micro
        self._pace = pace
        self._moments = moments
        self._num_arrived = [0] * len(parameters)
        self._held: list[tuple[int, torch.Tensor]] = []
        self._num_held = 0
        self._sums: list[torch.Tensor] = []
        self._nodes: list[Any] = []
        self._handles: list[Any] = []
        for index, parameter in enumerate(parameters):
            if parameter.requires_grad:
                node = torch.autograd.graph.get_gradient_edge(parameter).node
                self._nodes.append(node)
                self._handles.append(node.register_prehook(functools.partial(self._arrive, index)))

    def _arrive(self, index: int, gradients: tuple[torch.Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is None:
            return
        self._num_arrived[index] += 1
        self._held.append((index, gradient.detach()))
        self._num_held += gradient.numel()
        if self._num_held >= _BATCH_ELEMENTS:
            self.end_part()

    def end_part(self) -> None:
        """Lets go of all gradients: they may be changed from now on."""
        held, self._held, self._num_held = self._held, [], 0
        if not held:
            return
        gradients = [gradient for _, gradient in held]
        with self._pace.spending():
            if self._moments is None:
                self._sums.append(_foreach_sqr(gradients))
            else:
                self._sums.append(self._moments.of([index for index, _ in held]).sqr(gradients))

    def remove(self) -> None:
        """Looks at no gradient any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._nodes, self._held = [], [], []

    def take(self) -> torch.Tensor | None:
        """Ends it. The mean over the parts of their gradients' squared norms, in units of single parts; None if the parts cannot
        be told apart, since a backward pass was made in pieces."""
        self.end_part()
        self.remove()
        if not self._sums or max(self._num_arrived) != self.micro.count:
            return None
        return torch.stack(self._sums).sum() / self.micro.count


def _foreach_sqr(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared norm of all `tensors` together, a tensor of one element."""
    norms: Any = torch._foreach_norm(list(tensors))
    return torch.stack([norm.float() for norm in norms]).square().sum()
