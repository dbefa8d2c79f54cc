"""The noise from pairs of consecutive steps, for a single replica whose steps have one part.

Of g_t and g_{t+1}, each over M₀ samples, ⟨g_t, g_{t+1}⟩ is taken for |g|², and |g_t − g_{t+1}|² / 2 for the variance. Both would
be right if the second gradient were taken where the first one was; but a step lies between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noises.truth import Noise

__all__ = ["Consecutive"]

_KEEP = math.exp(-1 / 500)
"""The library's window."""


class Consecutive:
    """Exponential averages over all pairs, corrected for their start."""

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._sqr = self._var = self._total = 0.0

    def see(self, gradients: Sequence[Tensor]) -> None:
        """The gradient of one step, by parameter."""
        gradient = torch.cat([part.reshape(-1) for part in gradients])
        if self._before is not None:
            self._sqr = _KEEP * self._sqr + (1 - _KEEP) * float(gradient @ self._before)
            self._var = _KEEP * self._var + (1 - _KEEP) * float((gradient - self._before).square().sum()) / 2
            self._total = _KEEP * self._total + (1 - _KEEP)
        self._before = gradient

    @property
    def noise(self) -> Noise:
        """At M₀; there must have been a pair."""
        return Noise(grad_sqr=self._sqr / self._total, grad_var=self._var / self._total)
