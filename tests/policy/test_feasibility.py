from __future__ import annotations

import pytest

from adaptdl.policy import Allocation, Node, violations
from tests.policy.instances import cluster, job


def test_what_is_possible_has_no_violations() -> None:
    jobs = [job("a", 6), job("b", 4), job("c", 4)]
    assert violations(cluster(3, 3), jobs, {"a": {"n0": 3, "n1": 1}, "b": {"n1": 2}, "c": {}}) == []


@pytest.mark.parametrize(
    ("allocations", "message"),
    [
        ({"a": {"n0": 4}}, "node 'n0' has 3 of 'GPU', but 4 are given away"),
        ({"a": {"n0": 2}, "b": {"n0": 2}}, "node 'n0' has 3 of 'GPU', but 4 are given away"),
        ({"b": {"n0": 3, "n1": 2}}, "job 'b' has 5 replicas, not 2 to 4 or none"),
        ({"b": {"n0": 1}}, "job 'b' has 1 replicas, not 2 to 4 or none"),
        ({"a": {"n0": 1, "n1": 1}, "b": {"n1": 1, "n2": 1}}, "node 'n1' has 2 jobs that span nodes"),
        ({"x": {"n0": 1}}, "job 'x' is unknown"),
        ({"a": {"n9": 1}}, "job 'a' is on node 'n9', which is unknown"),
        ({"a": {"n3": 1}}, "job 'a' is on node 'n3', which is draining"),
        ({"a": {"n0": 0, "n1": 1}}, "job 'a' has 0 replicas on node 'n0'"),
    ],
)
def test_everything_wrong_is_named(allocations: dict[str, Allocation], message: str) -> None:
    nodes = [*cluster(3, 3), Node(node_id="n3", resources={"GPU": 3}, draining=True)]
    assert message in violations(nodes, [job("a", 6), job("b", 4, min_replicas=2)], allocations)


def test_all_resources_count() -> None:
    nodes = [Node(node_id="n0", resources={"GPU": 4, "CPU": 3})]
    greedy = job("a", 4, resources={"GPU": 1, "CPU": 2})
    assert violations(nodes, [greedy], {"a": {"n0": 2}}) == ["node 'n0' has 3 of 'CPU', but 4 are given away"]
    assert violations(cluster(1, 4), [greedy], {"a": {"n0": 1}}) == ["node 'n0' has 0 of 'CPU', but 2 are given away"]


def test_fractions_may_fill_a_node() -> None:
    assert violations(cluster(1, 1), [job("a", 10, resources={"GPU": 0.1})], {"a": {"n0": 10}}) == []


@pytest.mark.parametrize("moved", [{"a": {"n1": 1}}, {"a": {}}, {}])
def test_a_pinned_job_may_not_move(moved: dict[str, Allocation]) -> None:
    jobs = [job("a", pinned=True)]
    assert violations(cluster(2, 1), jobs, moved, {"a": {"n0": 1}}) == ["job 'a' is pinned and was moved"]
    assert violations(cluster(2, 1), jobs, moved, {"a": {"lost": 1}}) == []
    assert violations(cluster(2, 1), jobs, moved) == []


def test_a_pinned_job_may_stay_on_a_draining_node() -> None:
    nodes = [Node(node_id="n0", resources={"GPU": 1}, draining=True)]
    assert violations(nodes, [job("a", pinned=True)], {"a": {"n0": 1}}, {"a": {"n0": 1}}) == []
