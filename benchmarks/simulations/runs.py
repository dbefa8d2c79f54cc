"""The simulations of the benchmark: what is run, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adaptdl.policy import FairSharePolicy, OptimalPolicy, OptimusPolicy, Policy, StaticPolicy, TiresiasPolicy
from adaptdl.sim import (
    AshaStopper,
    Costs,
    JobSpec,
    Simulation,
    cluster_nodes,
    random_outages,
    read_applications,
    read_workload,
    tuning_workload,
)

__all__ = ["OUR_COSTS", "Figures", "Run", "perform"]

OUR_COSTS = Costs(start_s=5.0, pause_s=1.0, growth_s=5.0)
"""Our own pause with the share of warming up in it; newcomers start while the job trains on."""

RESTARTS = Costs(start_s=30.0, pause_s=30.0)
"""The published ones."""

POLICIES: Mapping[str, tuple[bool, bool]] = {
    # name: (batch size adapts, at most one job that spans nodes on any node)
    "optimal": (True, True),
    "published objective": (True, True),
    "fair share": (True, True),
    "static": (False, True),
    "Tiresias": (False, False),
    "Optimus": (False, False),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One simulation."""

    name: str
    policy: str
    workload: int | None = None
    """Number of a published workload; None: a tuning workload."""
    costs: Costs = RESTARTS
    immediate: bool = False
    interval_s: float = 60.0
    model: str = "resnet18"
    asha: bool = False
    requested_replicas: int = 1
    seed: int = 0
    mean_between_failures_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What came of it."""

    summary: Mapping[str, float]
    best_completed_s: float
    """When the best trial of a tuning workload was complete."""
    lost_share: float
    """Progress made twice by all progress made."""
    took_s: float


def perform(runs: Sequence[Run], traces: Path | None, num_processes: int) -> dict[Run, Figures]:
    """All runs, as many at a time as there are processes."""
    with ProcessPoolExecutor(num_processes) as pool:
        futures = {run: pool.submit(_perform, run, traces) for run in runs}
        found = {}
        for run, future in futures.items():
            found[run] = future.result()
            print(f"  done: {run.name}, {run.policy} ({found[run].took_s:.0f} s)", flush=True)
    return found


def _perform(run: Run, traces: Path | None) -> Figures:
    began_at = time.monotonic()
    adaptive, exclusive = POLICIES[run.policy]
    nodes = cluster_nodes(16, 4) if run.workload else cluster_nodes(8, 4)
    outages = ()
    if run.mean_between_failures_s is not None:
        outages = random_outages(
            nodes, seed=run.seed, mean_between_s=run.mean_between_failures_s, mean_away_s=1800.0, until_s=200_000.0
        )
    result = Simulation(
        nodes=nodes,
        workload=_workload(run, traces),
        policy=_policy(run.policy),
        interval_s=run.interval_s,
        costs=run.costs,
        immediate=run.immediate,
        adaptive=adaptive,
        exclusive=exclusive,
        kin=run.policy != "published objective",
        outages=outages,
        stopper=AshaStopper() if run.asha else None,
        resolution_s=0.0 if run.workload is None else 1.0,
    ).run()
    progress = sum(job.progress for job in result.jobs)
    return Figures(
        summary=result.summary(),
        best_completed_s=result.best_completed_s(),
        lost_share=sum(job.lost_progress for job in result.jobs) / progress,
        took_s=time.monotonic() - began_at,
    )


def _workload(run: Run, traces: Path | None) -> list[JobSpec]:
    if run.workload is None:
        return tuning_workload(64, model=run.model, seed=run.seed, requested_replicas=run.requested_replicas)
    assert traces is not None
    return read_workload(traces / "workloads" / f"workload-{run.workload}.csv", read_applications(traces))


def _policy(name: str) -> Policy:
    if name == "published objective":
        # The mean of exponent -1 of the speedups, solved exactly; what is left to do does not count.
        return OptimalPolicy(fairness=2 / 3, shortest_first=0.0)
    makers = {
        "optimal": OptimalPolicy,
        "fair share": FairSharePolicy,
        "static": StaticPolicy,
        "Tiresias": lambda: TiresiasPolicy(exclusive=False),
        "Optimus": lambda: OptimusPolicy(exclusive=False),
    }
    policy: Policy = makers[name]()
    return policy
