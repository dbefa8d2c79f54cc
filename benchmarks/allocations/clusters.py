"""Clusters and jobs of any size, with the goodput model's own speedups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adaptdl.goodput import BatchSizeBounds, GradParams, JobReport, PerfParams
from adaptdl.policy import Allocation, Job, Node

__all__ = ["Round", "churned", "generated", "mixed"]

JOBS_PER_GPU = 0.2
GPUS_PER_NODE = 8
CHURN = 0.05
"""Share of the jobs that end before the next round, each followed by a new one."""

MOVE_COST = 0.1


@dataclass(frozen=True, kw_only=True)
class _Family:
    """A kind of training: step times, limits of the batch size and noise scales as of well-known models."""

    alpha_c: float
    """Fixed part of a pass, s."""
    beta_c: float
    """Computing, s per sample."""
    sync_s: float
    """Synchronisation of two replicas on one node, s; across nodes it takes 3 to 8 times as long."""
    init_batch_size: int
    growth: int
    """Largest batch size, in initial ones."""
    noise: tuple[float, float]
    """Range of the noise scale, in initial batch sizes."""


_FAMILIES = (
    _Family(alpha_c=0.02, beta_c=0.0004, sync_s=0.01, init_batch_size=128, growth=32, noise=(1, 30)),  # small images
    _Family(alpha_c=0.05, beta_c=0.004, sync_s=0.05, init_batch_size=256, growth=64, noise=(5, 100)),  # large images
    _Family(alpha_c=0.05, beta_c=0.02, sync_s=0.08, init_batch_size=12, growth=32, noise=(0.5, 10)),  # fine-tuning
    _Family(alpha_c=0.03, beta_c=0.01, sync_s=0.03, init_batch_size=20, growth=40, noise=(2, 40)),  # speech
    _Family(alpha_c=0.01, beta_c=0.00002, sync_s=0.02, init_batch_size=256, growth=128, noise=(0.5, 5)),  # ratings
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """The arguments of one call of a policy."""

    nodes: Sequence[Node]
    jobs: Sequence[Job]
    current: Mapping[str, Allocation] = field(default_factory=dict)


def generated(num_gpus: int, seed: int = 0) -> Round:
    """Nodes of 8 GPUs, and jobs that all wait, a mix of the families."""
    rng = np.random.default_rng([num_gpus, seed])
    nodes = [
        Node(node_id=f"node{i:05d}", resources={"GPU": float(GPUS_PER_NODE), "CPU": 64.0})
        for i in range(num_gpus // GPUS_PER_NODE)
    ]
    jobs = [_job(f"job{j:05d}", rng, arrival=float(j)) for j in range(round(num_gpus * JOBS_PER_GPU))]
    return Round(nodes=nodes, jobs=jobs)


def churned(before: Round, allocations: Mapping[str, Allocation], seed: int) -> Round:
    """The next round: some jobs have ended, as many are new, and the others have what they were given."""
    rng = np.random.default_rng([len(before.jobs), seed, 1])
    ended = set(rng.choice(len(before.jobs), max(1, round(CHURN * len(before.jobs))), replace=False).tolist())
    first = 1 + max(int(job.job_id[3:]) for job in before.jobs)
    jobs = [job for j, job in enumerate(before.jobs) if j not in ended]
    current = {job.job_id: allocations[job.job_id] for job in jobs if allocations[job.job_id]}
    jobs += [_job(f"job{first + i:05d}", rng, arrival=float(first + i)) for i in range(len(ended))]
    return replace(before, jobs=jobs, current=current)


def mixed(num_gpus: int, seed: int = 0) -> Round:
    """Five kinds of nodes, some partly taken by others, some draining; replicas that differ in GPUs, CPUs and memory."""
    rng = np.random.default_rng([num_gpus, seed, 2])
    sizes = [(8, 96.0, 768.0), (8, 64.0, 512.0), (4, 48.0, 192.0), (4, 32.0, 256.0), (2, 32.0, 128.0)]
    nodes: list[Node] = []
    left = num_gpus
    while left > 0:
        gpus, cpus, memory = sizes[len(nodes) % len(sizes)]
        taken = int(rng.integers(1, gpus)) if rng.random() < 0.1 else 0
        resources = {"GPU": float(gpus - taken), "CPU": cpus - 6.0 * taken, "memory": memory - 40.0 * taken}
        nodes.append(Node(node_id=f"node{len(nodes):05d}", resources=resources, draining=bool(rng.random() < 0.03)))
        left -= gpus
    needs = [{"GPU": 1.0, "CPU": cpus, "memory": memory} for cpus, memory in ((4.0, 16.0), (8.0, 32.0), (12.0, 64.0))]
    jobs = [
        _job(f"job{j:05d}", rng, arrival=float(j), resources=needs[int(rng.integers(len(needs)))])
        for j in range(round(num_gpus * JOBS_PER_GPU))
    ]
    return Round(nodes=nodes, jobs=jobs)


def _job(job_id: str, rng: np.random.Generator, *, arrival: float, resources: Mapping[str, float] | None = None) -> Job:
    family = _FAMILIES[int(rng.integers(len(_FAMILIES)))]
    max_replicas = int(rng.choice([8, 16, 32, 64], p=[0.2, 0.3, 0.3, 0.2]))
    compute, sync = rng.lognormal(sigma=0.3, size=2)
    across = rng.uniform(3, 8)
    low, high = np.log(family.noise)
    report = JobReport(
        bounds=BatchSizeBounds(
            init_batch_size=family.init_batch_size,
            max_batch_size=family.init_batch_size * family.growth,
            local_bsz_bounds=(max(1, family.init_batch_size // 8), family.init_batch_size * 2),
            gradient_accumulation=True,
        ),
        perf_params=PerfParams(
            alpha_c=family.alpha_c * compute,
            beta_c=family.beta_c * compute,
            alpha_r=family.sync_s * sync,
            beta_r=family.sync_s * sync / 50,
            alpha_n=family.sync_s * sync * across,
            beta_n=family.sync_s * sync * across / 50,
            gamma=float(rng.uniform(1.2, 4)),
        ),
        grad_params=GradParams(grad_sqr=1.0, grad_var=float(np.exp(rng.uniform(low, high)))),
        max_profiled_replicas=max_replicas,
    )
    # The model tells one node from several, no more: two rows are all of its table.
    return Job(
        job_id=job_id,
        resources=resources or {"GPU": 1.0, "CPU": 4.0},
        max_replicas=max_replicas,
        speedup=report.speedup_table(2, max_replicas),
        move_cost=MOVE_COST,
        arrival=arrival,
    )
