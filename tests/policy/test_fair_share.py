from __future__ import annotations

from adaptdl.policy import FairSharePolicy, num_replicas
from tests.policy.instances import cluster, job, linear


def replicas(jobs: list, nodes: list, current: dict | None = None) -> list[int]:  # type: ignore[type-arg]
    decision = FairSharePolicy().allocate(nodes, jobs, current or {})
    return [num_replicas(decision.allocations[job.job_id]) for job in jobs]


def test_shares_are_equal_and_the_rest_goes_to_who_came_first() -> None:
    assert replicas([job(f"j{i}", 8, arrival=-i) for i in range(3)], cluster(2, 4)) == [2, 3, 3]


def test_shares_follow_the_weights() -> None:
    assert replicas([job("a", 8), job("b", 8, weight=3.0)], cluster(2, 4)) == [2, 6]


def test_what_one_may_not_have_goes_to_the_others() -> None:
    assert replicas([job("a", 1), job("b", 8)], cluster(2, 4)) == [1, 7]
    assert replicas([job("a", 8, speedup=linear(2)), job("b", 8)], cluster(2, 4)) == [2, 6]


def test_who_cannot_have_the_minimum_has_nothing() -> None:
    assert replicas([job("a", 8, min_replicas=4), job("b", 8)], cluster(1, 3)) == [0, 3]


def test_jobs_shrink_for_an_arrival_where_they_are() -> None:
    jobs = [job("a", 8), job("b", 8), job("new", 8)]
    current = {"a": {"n0": 3}, "b": {"n1": 3}}
    decision = FairSharePolicy().allocate(cluster(2, 3), jobs, current)
    assert decision.allocations == {"a": {"n0": 2}, "b": {"n1": 2}, "new": {"n0": 1, "n1": 1}}


def test_a_job_that_has_its_share_does_not_move() -> None:
    current = {"a": {"n0": 1, "n1": 1}, "b": {"n1": 2}}
    assert FairSharePolicy().allocate(cluster(2, 2), [job("a", 2), job("b", 2)], {}).allocations != current
    crowded = [job("a", 2), job("b", 2)]
    assert FairSharePolicy().allocate(cluster(2, 3), crowded, current).allocations == current
