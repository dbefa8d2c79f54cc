"""How noisy gradients are: running estimates of |g|² and tr Σ from norms that a step has anyway.

=============  ==============================================================================
g, S           true gradient; trace of the covariance of one sample's gradient
b < B          two numbers of samples over which gradients were averaged in one step
|g_b|², |g_B|²  squared norms of those averages; E|g_b|² = |g|² + S/b
=============  ==============================================================================

S = (|g_b|² − |g_B|²) / (1/b − 1/B) and |g|² = |g_B|² − S/B are unbiased (McCandlish et al., An Empirical Model of
Large-Batch Training, 2018, appendix A). A step on several replicas, or of several parts, has both norms. One replica whose
batch is a single part has not, and consecutive steps cannot stand in: the second gradient is taken after a step along the
noise of the first, and where that noise dominates, curvature makes their product negative whatever |g|² is. So a loader that
adapts its batch size has such a replica compute a step in two parts now and then.

Where noise dominates, |g|² is a small difference of large numbers, and with few samples it may come out as nothing: batches of
any size would seem as efficient as small ones. So it is taken for no less than its standard error, by the spread of samples.
"""

from __future__ import annotations

import math
from typing import Any

from adaptdl.goodput import GradParams

__all__ = ["GradientNoise"]

_WINDOW_SHARE, _SHORTEST_WINDOW_STEPS, _LONGEST_WINDOW_STEPS = 0.25, 20.0, 500.0
"""Estimates are averaged over this share of the steps at M₀ made so far, within these bounds: long against the noise of one step,
short against training. Gradients shrink fastest at its start, and what they were then must not stay for long."""
_WINDOW_SAMPLES = 20
"""But over so many samples at least, however many steps each of them stands for."""
_MIN_SAMPLES = 20
_LARGEST_RATIO = 1e4
"""tr Σ / |g|² at M₀ beyond this is not told apart from pure noise."""


class GradientNoise:
    """Exponential averages of |g|² and S, corrected for their start."""

    def __init__(self) -> None:
        self._sqr = self._trace = self._total = 0.0
        self._spread = self._total_sqr = 0.0
        """Average of the samples' |g|⁴; sum of the squares of their weights, as `_total` is of the weights."""
        self._age = 0.0
        """Steps at M₀ that all samples stand for."""
        self.num_samples = 0
        self._known: tuple[int, int, GradParams | None] = (0, 0, None)
        """The newest answer, and to what: samples, M₀."""
        self.num_skipped = 0
        """Samples left out because they were not finite."""

    def add_norms(
        self, small_sqr: float, large_sqr: float, *, inverse_small: float, inverse_large: float, weight: float
    ) -> None:
        """One step with gradients over two numbers of samples.

        Args:
            small_sqr, large_sqr: |g_b|², |g_B|².
            inverse_small, inverse_large: 1/b > 1/B.
            weight: steps at M₀ that the sample stands for.
        """
        trace = (small_sqr - large_sqr) / (inverse_small - inverse_large)
        self._add(large_sqr - trace * inverse_large, trace, weight)

    def _add(self, sqr: float, trace: float, weight: float) -> None:
        if not (math.isfinite(sqr * sqr) and math.isfinite(trace)):
            self.num_skipped += 1
            return
        self._age += weight
        window = min(_LONGEST_WINDOW_STEPS, max(_SHORTEST_WINDOW_STEPS, _WINDOW_SHARE * self._age))
        keep = math.exp(-weight / max(window, _WINDOW_SAMPLES * weight))
        self._sqr = keep * self._sqr + (1 - keep) * sqr
        self._trace = keep * self._trace + (1 - keep) * trace
        self._spread = keep * self._spread + (1 - keep) * sqr * sqr
        self._total = keep * self._total + (1 - keep)
        self._total_sqr = keep**2 * self._total_sqr + (1 - keep) ** 2
        self.num_samples += 1

    def grad_params(self, init_batch_size: int) -> GradParams | None:
        """|g|² and the variance of a gradient over M₀ samples, S/M₀; None before there are enough samples."""
        if self.num_samples < _MIN_SAMPLES:
            return None
        if self._known[:2] != (self.num_samples, init_batch_size):
            self._known = (self.num_samples, init_batch_size, self._estimate(init_batch_size))
        return self._known[2]

    def _estimate(self, init_batch_size: int) -> GradParams | None:
        grad_var = max(0.0, self._trace / self._total) / init_batch_size
        grad_sqr = max(self._sqr / self._total, self._standard_error, grad_var / _LARGEST_RATIO)
        if grad_sqr == 0.0 and grad_var == 0.0:
            return None
        return GradParams(grad_sqr=grad_sqr, grad_var=grad_var)

    @property
    def _standard_error(self) -> float:
        """Of the average |g|²."""
        mean = self._sqr / self._total
        variance = max(0.0, self._spread / self._total - mean * mean)
        return math.sqrt(variance * self._total_sqr) / self._total

    def state_dict(self) -> dict[str, Any]:
        return {
            "sqr": self._sqr,
            "trace": self._trace,
            "spread": self._spread,
            "total": self._total,
            "total_sqr": self._total_sqr,
            "age": self._age,
            "num_samples": self.num_samples,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sqr, self._trace, self._total, self._age = (state[name] for name in ("sqr", "trace", "total", "age"))
        # Snapshots of before have no spread: it is 0 at first then, and so is the standard error.
        self._spread, self._total_sqr = state.get("spread", 0.0), state.get("total_sqr", 0.0)
        self.num_samples, self.num_skipped = state["num_samples"], state["num_skipped"]
        self._known = (0, 0, None)
