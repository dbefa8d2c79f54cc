"""What is asked of a cluster that scales itself, without one: the test starts the nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from adaptdl.runtime.node_demand import NodeDemand, Places
from adaptdl.runtime.placement import sweep
from tests.clusters import connected_cluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_CPU = Places(resources_per_replica={"CPU": 1}, num_replicas=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected_cluster(num_cpus=1) as cluster:
        yield cluster


def asked(demand: NodeDemand) -> dict[str, str]:
    """Names and states of its placement groups."""
    entries = placement_group_table().values()
    return {
        entry["name"]: entry["state"]
        for entry in entries
        if entry["name"].startswith(demand.prefix) and entry["state"] != "REMOVED"
    }


def test_only_new_nodes_hold_what_is_asked_for_until_the_job_has_room(cluster: Cluster) -> None:
    demand = NodeDemand("experiment")
    head = cluster.head_node.node_id
    demand.ask({"job": ONE_CPU, "another": ONE_CPU}, [head], now=0.0)
    demand.ask({"job": ONE_CPU}, [head], now=0.0)
    wait_until(lambda: len(asked(demand)) == 1, "what the other had asked for to be gone")
    (first,) = asked(demand)
    new = cluster.add_node(num_cpus=1).node_id
    wait_until(lambda: asked(demand) == {first: "CREATED"}, "the new node to hold it, and not the head")

    demand.renew([head])
    assert asked(demand) == {first: "CREATED"}, "the policy has not seen the new node"
    demand.renew([head, new])
    demand.ask({"job": ONE_CPU}, [head, new], now=0.0)
    wait_until(lambda: len(asked(demand)) == 1, "the first to be gone")
    assert list(asked(demand)) != [first], "the policy has given the node to somebody else"
    cluster.add_node(num_cpus=1)
    wait_until(lambda: list(asked(demand).values()) == ["CREATED"], "another node to hold it")
    demand.close()
    wait_until(lambda: not asked(demand), "nothing to be asked for")


def test_what_somebody_else_has_removed_is_asked_for_again(cluster: Cluster) -> None:
    demand, another = NodeDemand("experiment"), NodeDemand("experiment")
    demand.ask({"job": ONE_CPU}, [cluster.head_node.node_id], now=0.0)
    sweep(another.prefix)
    assert len(asked(demand)) == 1
    sweep(demand.prefix)
    wait_until(lambda: not asked(demand), "it to be removed")
    demand.renew([cluster.head_node.node_id])
    demand.ask({"job": ONE_CPU}, [cluster.head_node.node_id], now=0.0)
    assert len(asked(demand)) == 1
