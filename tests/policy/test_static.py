from __future__ import annotations

from adaptdl.policy import Allocation, Node, StaticPolicy
from tests.policy.instances import cluster, job


def allocations(nodes: list, jobs: list, current: dict | None = None) -> dict[str, Allocation]:  # type: ignore[type-arg]
    return dict(StaticPolicy().allocate(nodes, jobs, current or {}).allocations)


def test_each_job_gets_what_it_asked_for_or_its_minimum() -> None:
    jobs = [job("a", 8, requested_replicas=3), job("b", 8, min_replicas=2)]
    assert allocations(cluster(2, 4), jobs) == {"a": {"n0": 3}, "b": {"n1": 2}}


def test_later_smaller_jobs_go_first_where_an_earlier_one_does_not_fit() -> None:
    jobs = [job(f"j{i}", 8, arrival=i, requested_replicas=count) for i, count in enumerate([3, 4, 2, 1])]
    assert allocations(cluster(1, 6), jobs) == {"j0": {"n0": 3}, "j1": {}, "j2": {"n0": 2}, "j3": {"n0": 1}}


def test_nobody_who_runs_makes_way() -> None:
    jobs = [job("first", 4, requested_replicas=4, arrival=0), job("last", 4, requested_replicas=1, arrival=9)]
    assert allocations(cluster(1, 4), jobs, {"last": {"n0": 1}}) == {"first": {}, "last": {"n0": 1}}


def test_who_runs_with_another_number_keeps_it() -> None:
    assert allocations(cluster(1, 8), [job("a", 8, requested_replicas=4)], {"a": {"n0": 6}}) == {"a": {"n0": 6}}


def test_a_job_whose_node_is_gone_waits_in_line_by_its_arrival() -> None:
    jobs = [job("late", 2, requested_replicas=2, arrival=2), job("early", 2, requested_replicas=2, arrival=1)]
    nodes = [Node(node_id="n0", resources={"GPU": 2}, draining=True), Node(node_id="n1", resources={"GPU": 3})]
    assert allocations(nodes, jobs, {"late": {"n0": 2}}) == {"early": {"n1": 2}, "late": {}}


def test_the_emptiest_nodes_are_filled_one_after_another() -> None:
    nodes = [Node(node_id=f"n{i}", resources={"GPU": gpus}) for i, gpus in enumerate([2, 3, 4])]
    placed = allocations(nodes, [job("a", 8, requested_replicas=8)])["a"]
    assert list(placed.items()) == [("n2", 4), ("n1", 3), ("n0", 1)]


def test_two_jobs_that_span_nodes_share_none() -> None:
    jobs = [job("a", 3, requested_replicas=3), job("b", 3, requested_replicas=3)]
    assert allocations(cluster(3, 2), jobs) == {"a": {"n0": 2, "n1": 1}, "b": {}}


def test_the_objective_is_how_many_run() -> None:
    jobs = [job("a", 2, requested_replicas=2), job("b", 2, requested_replicas=2), job("c", 2, requested_replicas=1)]
    assert StaticPolicy().allocate(cluster(1, 3), jobs, {}).objective == 2
