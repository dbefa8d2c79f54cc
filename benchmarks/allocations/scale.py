"""How long a decision takes on clusters of any size: from nothing, and round after round as jobs come and go."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

from adaptdl.policy import OptimalPolicy, violations
from allocations.clusters import churned, generated, mixed

__all__ = ["Case", "Measured", "measure"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cluster and one policy."""

    num_gpus: int
    fairness: float = 0.5
    mixed: bool = False
    """Whether nodes and replicas are of several kinds, instead of one."""
    num_churns: int = 3
    """Rounds after the first."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One decision."""

    case: Case
    churn: int
    """0: from nothing."""
    num_jobs: int
    num_nodes: int
    wall_s: float
    cpu_s: float
    gap: float | None
    moved: int
    """Running jobs whose allocation changed."""
    violations: int
    peak_bytes: int
    """The process's largest memory so far."""
    message: str


def measure(case: Case) -> list[Measured]:
    """All rounds of a case, in a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_rounds, (case,))


def _rounds(case: Case) -> list[Measured]:
    policy = OptimalPolicy(fairness=case.fairness)
    warm_up = generated(16)
    policy.allocate(warm_up.nodes, warm_up.jobs, {})  # imports the solver
    return list(_measured(case, policy))


def _measured(case: Case, policy: OptimalPolicy) -> Iterator[Measured]:
    asked = (mixed if case.mixed else generated)(case.num_gpus)
    for churn in range(case.num_churns + 1):
        wall_s, cpu_s = time.monotonic(), time.process_time()
        decision = policy.allocate(asked.nodes, asked.jobs, asked.current)
        wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
        allocations = decision.allocations
        yield Measured(
            case=case,
            churn=churn,
            num_jobs=len(asked.jobs),
            num_nodes=len(asked.nodes),
            wall_s=wall_s,
            cpu_s=cpu_s,
            gap=decision.gap,
            moved=sum(dict(allocations[job_id]) != dict(before) for job_id, before in asked.current.items()),
            violations=len(violations(asked.nodes, asked.jobs, allocations, asked.current)),
            peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            message=decision.message,
        )
        asked = churned(asked, allocations, seed=churn)
