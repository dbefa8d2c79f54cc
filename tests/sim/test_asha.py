from __future__ import annotations

import pytest

from adaptdl.errors import UsageError
from adaptdl.sim import AshaStopper, Costs, JobSpec, Simulation, asha_rungs, cluster_nodes
from tests.sim.workloads import FREE, POLICIES, perfect, spec


def trial(name: str, *scores: float) -> JobSpec:
    """Ten epochs of 10 s, judged after 1, 2, 3, … of them."""
    rungs = tuple((epochs, score) for epochs, score in enumerate(scores, start=1))
    return spec(name, application=perfect(100, num_epochs=10), rungs=rungs)


def test_rungs_are_a_geometric_series_that_ends_before_the_trial() -> None:
    assert asha_rungs(64) == [1, 4, 16]
    assert asha_rungs(65) == [1, 4, 16, 64]
    assert asha_rungs(30, grace_epochs=3, reduction_factor=2) == [3, 6, 12, 24]
    assert asha_rungs(5, reduction_factor=1.2) == [1, 2, 3, 4]
    assert asha_rungs(1) == []


def test_a_trial_is_compared_with_those_before_it_at_the_same_rung() -> None:
    stopper = AshaStopper(reduction_factor=2)  # the median
    goes_on = [stopper.goes_on(trial("t", score), 0, score) for score in (0.5, 0.4, 0.44, 0.46, 0.9)]
    assert goes_on == [True, False, False, True, True]
    assert stopper.goes_on(trial("t", 0.5, 0.1), 1, 0.1)  # the first one there


def test_rungs_are_told_apart_by_their_epochs() -> None:
    stopper = AshaStopper()
    long = spec("long", rungs=((5, 0.9),))
    assert stopper.goes_on(long, 0, 0.9)
    assert stopper.goes_on(trial("short", 0.1), 0, 0.1)


@pytest.mark.parametrize("policy", POLICIES)
def test_of_trials_one_after_another_only_those_that_are_good_enough_go_on(policy: str) -> None:
    make, adaptive = POLICIES[policy]
    scores = {"a": (0.5, 0.6), "b": (0.4, 0.9), "c": (0.6, 0.5), "d": (0.7, 0.7)}
    result = Simulation(
        nodes=cluster_nodes(1, 1),
        workload=[trial(name, *both) for name, both in scores.items()],
        policy=make(),
        adaptive=adaptive,
        costs=Costs(**FREE),
        immediate=True,
        resolution_s=0.0,
        stopper=AshaStopper(reduction_factor=2),
        max_concurrent=1,
    ).run()
    assert {job.job_id: round(job.progress) for job in result.jobs} == {"a": 100, "b": 10, "c": 20, "d": 100}
    assert [job.stopped for job in result.jobs] == [False, True, True, False]
    assert result.makespan_s == pytest.approx(230)


def test_numbers_are_checked() -> None:
    with pytest.raises(UsageError, match="`reduction_factor > 1` must hold, but got"):
        AshaStopper(reduction_factor=1)
    with pytest.raises(UsageError, match="`grace_epochs >= 1`"):
        asha_rungs(10, grace_epochs=0)
