"""How long an optimizer step takes (Pollux, OSDI 2021, section 3.2).

N, K     ``num_nodes``,           nodes and replicas of the job                         1 ≤ N ≤ K
         ``num_replicas``
m        ``atomic_batch_size``    samples in one forward-backward pass of a replica     samples
s        ``accum_steps``          passes without synchronisation before the last one    ≥ 0
T_grad   :func:`grad_time_s`      α_c + β_c·m                                           s
T_sync   :func:`sync_time_s`      0 if K = 1; α_r + β_r·(K − 2) on one node;            s
                                  α_n + β_n·(K − 2) across nodes
T_iter   :func:`step_time_s`      s·T_grad + (T_grad^γ + T_sync^γ)^(1/γ)                s
         :func:`throughput`       K·m·(s + 1) / T_iter                                  samples/s

γ says how much of the communication hides behind computing: 1 none of it, 10 nearly the shorter of the two. Everything
is vectorised: arguments broadcast against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PerfParams", "grad_time_s", "step_time_s", "sync_time_s", "throughput"]


@dataclass(frozen=True, kw_only=True)
class PerfParams:
    """The seven parameters of the step time. Raises ValueError unless all are finite, the times ≥ 0 (not both of
    computing 0) and 1 ≤ γ ≤ 10."""

    alpha_c: float
    """α_c: computing, fixed part of a pass, s."""
    beta_c: float
    """β_c: computing, s per sample."""
    alpha_n: float
    """α_n: synchronisation of two replicas across nodes, s."""
    beta_n: float
    """β_n: synchronisation across nodes, s per further replica."""
    alpha_r: float
    """α_r: synchronisation of two replicas on one node, s."""
    beta_r: float
    """β_r: synchronisation on one node, s per further replica."""
    gamma: float
    """γ: overlap of computing and synchronisation, in [1, 10]."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{field.name}` must be finite and >= 0, but got ({field.name}={value}).")
        if self.alpha_c + self.beta_c <= 0:
            raise ValueError(
                "`alpha_c + beta_c > 0` must hold (computing takes time), "
                f"but got (alpha_c={self.alpha_c}, beta_c={self.beta_c})."
            )
        if not 1 <= self.gamma <= 10:
            raise ValueError(f"`1 <= gamma <= 10` must hold, but got (gamma={self.gamma}).")


def grad_time_s(perf_params: PerfParams, atomic_batch_size: ArrayLike) -> NDArray[np.float64]:
    """Seconds of one forward-backward pass, T_grad = α_c + β_c·m."""
    return np.asarray(perf_params.alpha_c + perf_params.beta_c * np.asarray(atomic_batch_size, dtype=np.float64))[()]


def sync_time_s(perf_params: PerfParams, num_nodes: ArrayLike, num_replicas: ArrayLike) -> NDArray[np.float64]:
    """Seconds of one gradient synchronisation, T_sync, were nothing of it hidden behind computing; 0 if K = 1."""
    nodes, replicas = np.asarray(num_nodes), np.asarray(num_replicas, dtype=np.float64)
    further = np.maximum(replicas - 2, 0)
    within = perf_params.alpha_r + perf_params.beta_r * further
    across = perf_params.alpha_n + perf_params.beta_n * further
    return np.where(replicas < 2, 0.0, np.where(nodes > 1, across, within))[()]


def step_time_s(
    perf_params: PerfParams,
    num_nodes: ArrayLike,
    num_replicas: ArrayLike,
    atomic_batch_size: ArrayLike,
    accum_steps: ArrayLike = 0,
) -> NDArray[np.float64]:
    """Seconds of one optimizer step, T_iter = s·T_grad + (T_grad^γ + T_sync^γ)^(1/γ)."""
    grad = grad_time_s(perf_params, atomic_batch_size)
    sync = sync_time_s(perf_params, num_nodes, num_replicas)
    longer, shorter = np.maximum(grad, sync), np.minimum(grad, sync)
    # Scaled by the longer one, so that tiny or huge times neither underflow nor overflow to the power of γ.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(longer > 0, shorter / longer, 0.0)
    last = longer * (1.0 + ratio**perf_params.gamma) ** (1.0 / perf_params.gamma)
    return np.asarray(np.asarray(accum_steps) * grad + last)[()]


def throughput(
    perf_params: PerfParams,
    num_nodes: ArrayLike,
    num_replicas: ArrayLike,
    atomic_batch_size: ArrayLike,
    accum_steps: ArrayLike = 0,
) -> NDArray[np.float64]:
    """Samples per second, M / T_iter with M = K·m·(s + 1)."""
    step = step_time_s(perf_params, num_nodes, num_replicas, atomic_batch_size, accum_steps)
    passes = np.asarray(accum_steps, dtype=np.float64) + 1.0
    batch_size = np.asarray(num_replicas, dtype=np.float64) * np.asarray(atomic_batch_size) * passes
    return np.asarray(batch_size / step)[()]
