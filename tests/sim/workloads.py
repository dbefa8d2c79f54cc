"""Small jobs whose times can be worked out by hand, and random ones."""

from __future__ import annotations

import numpy as np

from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams, gain, step_time_s
from adaptdl.policy import FairSharePolicy, OptimalPolicy, OptimusPolicy, Policy, StaticPolicy, TiresiasPolicy
from adaptdl.sim import JobSpec, ModelApplication

NOISELESS = GradParams(grad_sqr=1.0, grad_var=0.0)

FREE = {"start_s": 0.0, "pause_s": 0.0}
"""Costs of changes that are none."""

POLICIES: dict[str, tuple[type[Policy], bool]] = {
    "optimal": (OptimalPolicy, True),
    "fair share": (FairSharePolicy, True),
    "static": (StaticPolicy, False),
    "tiresias": (TiresiasPolicy, False),
    "optimus": (OptimusPolicy, False),
}
"""What makes it, and whether jobs choose their batch size."""


def perfect(total: float = 100.0, num_epochs: int = 1) -> ModelApplication:
    """One step per second and replica, for numbers of replicas that divide 12, and `total` steps in all."""
    return ModelApplication(
        name="perfect",
        perf_params=PerfParams(alpha_c=0, beta_c=1 / 12, alpha_n=0, beta_n=0, alpha_r=0, beta_r=0, gamma=1),
        bounds=BatchSizeBounds(init_batch_size=12, max_batch_size=12),
        num_epochs=num_epochs,
        epoch_progress=total / num_epochs,
        first_grad_params=NOISELESS,
        last_grad_params=NOISELESS,
    )


def spec(job_id: str, submitted_s: float = 0.0, requested_replicas: int = 1, **changes: object) -> JobSpec:
    values: dict[str, object] = {"application": perfect(), **changes}
    return JobSpec(job_id=job_id, submitted_s=submitted_s, requested_replicas=requested_replicas, **values)  # type: ignore[arg-type]


def random_workload(seed: int, *, max_jobs: int = 4, max_replicas: int = 6) -> list[JobSpec]:
    """A few short jobs that scale and grow noisier in different ways."""
    rng = np.random.default_rng(seed)
    return [
        JobSpec(
            job_id=f"j{j}",
            application=_random_application(rng, f"a{j}"),
            submitted_s=float(rng.choice([0.0, rng.uniform(0, 200)])),
            requested_replicas=int(rng.integers(1, max_replicas + 1)),
        )
        for j in range(rng.integers(1, max_jobs + 1))
    ]


def _random_application(rng: np.random.Generator, name: str) -> ModelApplication:
    alpha_r, beta_r = 0.2 * rng.random(2) * [1, 0.1]
    return ModelApplication(
        name=name,
        perf_params=PerfParams(
            alpha_c=float(0.1 * rng.random()),
            beta_c=float(0.001 + 0.02 * rng.random()),
            alpha_n=float(alpha_r * rng.uniform(1, 5)),
            beta_n=float(beta_r * rng.uniform(1, 5)),
            alpha_r=float(alpha_r),
            beta_r=float(beta_r),
            gamma=float(rng.uniform(1, 4)),
        ),
        bounds=BatchSizeBounds(
            init_batch_size=16,
            max_batch_size=int(rng.choice([16, 200])),
            local_bsz_bounds=(1, 64),
            gradient_accumulation=bool(rng.random() < 0.5),
        ),
        num_epochs=int(rng.integers(1, 4)),
        epoch_progress=float(rng.uniform(20, 300)),
        first_grad_params=GradParams(grad_sqr=1.0, grad_var=float(rng.uniform(0, 3))),
        last_grad_params=GradParams(grad_sqr=1.0, grad_var=float(rng.uniform(0, 30))),
    )


def shortest_s(application: ModelApplication, num_replicas: int) -> float:
    """Seconds that its training takes at the very least on up to so many replicas, whatever its batch size."""
    replicas = np.arange(1, num_replicas + 1)[:, None, None]
    atomic = np.arange(1, 201)[:, None]
    accum_steps = np.arange(3)
    batch_size = replicas * atomic * (accum_steps + 1)
    step_s = np.minimum(
        step_time_s(application.perf_params, 1, replicas, atomic, accum_steps),
        step_time_s(application.perf_params, np.minimum(replicas, 2), replicas, atomic, accum_steps),
    )
    total_s = 0.0
    for epoch in range(application.num_epochs):
        gains = gain(application.grad_params(epoch, 16), application.init_batch_size, batch_size)
        total_s += application.epoch_progress / float(np.max(gains / step_s))
    return total_s
