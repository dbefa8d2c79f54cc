"""What holds for any workload under any policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.sim import Costs, Simulation, SimulationResult, cluster_nodes, random_outages
from tests.sim.workloads import POLICIES, random_workload, shortest_s

NUM_NODES, NUM_GPUS = 2, 3
COSTS = Costs(start_s=7.0, pause_s=2.0, growth_s=5.0, snapshot_interval_s=20.0)

seeds = st.integers(0, 2**32 - 1)
policies = pytest.mark.parametrize("policy", POLICIES)
few = settings(max_examples=8, deadline=None)


def simulated(policy: str, seed: int, *, immediate: bool, faults: bool = False) -> SimulationResult:
    make, adaptive = POLICIES[policy]
    nodes = cluster_nodes(NUM_NODES, NUM_GPUS)
    return Simulation(
        nodes=nodes,
        workload=random_workload(seed),
        policy=make(),
        interval_s=30.0,
        costs=COSTS,
        immediate=immediate,
        adaptive=adaptive,
        outages=random_outages(nodes, seed=seed, mean_between_s=100.0, mean_away_s=40.0, until_s=400.0)
        if faults
        else [],
        resolution_s=0.0,
    ).run()


def held_s(result: SimulationResult, job_id: str) -> float:
    """Seconds for which it had replicas while it was not complete."""
    end_s = next(job.completed_s for job in result.jobs if job.job_id == job_id)
    return sum(min(s.to_s, end_s) - s.from_s for s in result.samples if job_id in s.replicas and s.from_s < end_s)


@policies
@pytest.mark.parametrize("immediate", [False, True], ids=["rounds", "immediate"])
@few
@given(seed=seeds)
def test_nothing_comes_from_nowhere(policy: str, immediate: bool, seed: int) -> None:
    result = simulated(policy, seed, immediate=immediate)
    workload = {spec.job_id: spec for spec in random_workload(seed)}
    assert {job.job_id for job in result.jobs} == set(workload)
    assert result.utilisation <= 1 + 1e-9
    for sample in result.samples:
        assert sum(sample.replicas.values()) <= NUM_NODES * NUM_GPUS
        assert all(sample.from_s >= workload[job_id].submitted_s for job_id in sample.replicas)
    for job in result.jobs:
        application = workload[job.job_id].application
        assert job.progress == application.epoch_ends[-1]
        assert job.lost_progress == 0
        assert job.service_s <= NUM_NODES * NUM_GPUS * held_s(result, job.job_id) + 1e-6
        assert job.completion_time_s >= COSTS.start_s + shortest_s(application, NUM_NODES * NUM_GPUS) - 1e-3  # type: ignore[arg-type]
        known_s = job.waited_s + held_s(result, job.job_id)
        assert known_s <= job.completion_time_s + 1e-6
        if immediate:
            assert known_s == pytest.approx(job.completion_time_s)


@policies
@settings(few, max_examples=4)
@given(seed=seeds)
def test_the_same_arguments_give_the_same_result(policy: str, seed: int) -> None:
    first, second = (simulated(policy, seed, immediate=True, faults=True) for _ in range(2))
    assert first == second


@policies
@pytest.mark.parametrize("immediate", [False, True], ids=["rounds", "immediate"])
@few
@given(seed=seeds)
def test_everything_completes_whatever_fails_and_all_losses_are_made_good(
    policy: str, immediate: bool, seed: int
) -> None:
    result = simulated(policy, seed, immediate=immediate, faults=True)
    workload = {spec.job_id: spec for spec in random_workload(seed)}
    for sample in result.samples:
        assert sum(sample.replicas.values()) <= NUM_NODES * NUM_GPUS
    for job in result.jobs:
        assert job.progress == workload[job.job_id].application.epoch_ends[-1]
        assert job.lost_progress >= 0
