"""Statistical efficiency of a batch size (Pollux, OSDI 2021, section 3.1).

M₀    ``init_batch_size``           batch size the user's learning rate is for      samples
M     ``batch_size``                samples per optimizer step                      samples
|g|²  ``GradParams.grad_sqr``       squared norm of the true gradient               ≥ 0
tr Σ  ``GradParams.grad_var``       variance of the gradient estimated from M₀      ≥ 0
φ     :func:`noise_scale`           M₀·tr Σ / |g|²                                  samples
      :func:`efficiency`            (φ + M₀) / (φ + M)                              (0, 1] for M ≥ M₀
      :func:`gain`                  efficiency · M / M₀                             [1, M/M₀]

All functions are vectorised over the batch sizes. They are computed from the share r = tr Σ / (tr Σ + |g|²) of noise,
efficiency = 1 / (r + (1 − r)·M/M₀), which has no singular point: φ → ∞ is r = 1 and φ = 0 is r = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["GradParams", "efficiency", "gain", "noise_scale"]


@dataclass(frozen=True, kw_only=True)
class GradParams:
    """Gradient statistics of one job at one moment. Raises ValueError unless both are finite and ≥ 0."""

    grad_sqr: float
    """Squared norm of the true gradient, |g|²."""
    grad_var: float
    """Total variance of the gradient at the initial batch size, tr Σ."""

    def __post_init__(self) -> None:
        for name, value in (("grad_sqr", self.grad_sqr), ("grad_var", self.grad_var)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be finite and >= 0, but got ({name}={value}).")


def noise_scale(grad_params: GradParams, init_batch_size: ArrayLike) -> NDArray[np.float64]:
    """Gradient noise scale φ = M₀·tr Σ / |g|², in samples: infinite without signal, 0 without noise or either."""
    init = np.asarray(init_batch_size, dtype=np.float64)
    if grad_params.grad_var == 0:
        return init * 0.0
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.float64(grad_params.grad_var) / np.float64(grad_params.grad_sqr)
        return np.asarray(init * ratio)[()]


def efficiency(grad_params: GradParams, init_batch_size: ArrayLike, batch_size: ArrayLike) -> NDArray[np.float64]:
    """Progress per sample at M relative to M₀, (φ + M₀)/(φ + M): 1 at M₀, falling with M, never under M₀/M.

    Without signal (|g|² = 0) it is 1 throughout; with neither signal nor noise the batch is taken as noiseless, M₀/M.
    """
    noise = _noise_share(grad_params)
    scale = np.asarray(batch_size, dtype=np.float64) / np.asarray(init_batch_size, dtype=np.float64)
    return np.asarray(1.0 / (noise + (1.0 - noise) * scale))[()]


def gain(grad_params: GradParams, init_batch_size: ArrayLike, batch_size: ArrayLike) -> NDArray[np.float64]:
    """Steps at M₀ that one step at M is worth, efficiency · M/M₀: in [1, M/M₀] for M ≥ M₀, in [M/M₀, 1] below."""
    if isinstance(batch_size, int | float) and isinstance(init_batch_size, int | float):
        return _gain_of_step(grad_params, batch_size / init_batch_size)
    scale = np.asarray(batch_size, dtype=np.float64) / np.asarray(init_batch_size, dtype=np.float64)
    value = scale * efficiency(grad_params, init_batch_size, batch_size)
    # The clip only removes rounding.
    return np.asarray(np.clip(value, np.minimum(1.0, scale), np.maximum(1.0, scale)))[()]


def _gain_of_step(grad_params: GradParams, scale: float) -> Any:
    """Every step of a training asks for it, and ten calls of numpy's take as long as such a step may be slowed by."""
    noise = _noise_share(grad_params)
    value = scale / (noise + (1.0 - noise) * scale)
    return np.float64(min(max(value, min(1.0, scale)), max(1.0, scale)))


def _noise_share(grad_params: GradParams) -> float:
    """r = tr Σ / (tr Σ + |g|²), in [0, 1]; 0 if both are 0."""
    largest = max(grad_params.grad_var, grad_params.grad_sqr)
    if largest == 0:
        return 0.0
    noise, signal = grad_params.grad_var / largest, grad_params.grad_sqr / largest
    return noise / (noise + signal)
