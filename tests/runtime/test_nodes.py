"""What a replica holds by default, and how many a node holds."""

from __future__ import annotations

from adaptdl.policy import Node
from adaptdl.runtime.nodes import Rooms, capacity, default_resources_per_replica, holds


def node(draining: bool = False, **resources: float) -> Node:
    return Node(node_id=str(resources), resources=resources, draining=draining)


def test_gpus_come_first() -> None:
    assert default_resources_per_replica([node(CPU=64), node(CPU=16, GPU=4)]) == {"GPU": 1.0, "CPU": 1.0}


def test_cpus_are_taken_where_there_are_no_gpus() -> None:
    assert default_resources_per_replica([node(CPU=64)]) == {"CPU": 1.0}
    assert default_resources_per_replica([]) == {"CPU": 1.0}


def test_a_gpu_takes_its_share_of_few_cpus_so_that_all_gpus_can_be_used() -> None:
    few = node(CPU=4, GPU=8)
    resources = default_resources_per_replica([few])
    assert resources == {"GPU": 1.0, "CPU": 0.5}
    assert holds(few, resources) == 8


def test_a_node_holds_what_its_scarcest_resource_allows() -> None:
    assert holds(node(CPU=7, GPU=4), {"GPU": 1, "CPU": 2}) == 3
    assert holds(node(CPU=1), {"CPU": 1 / 3}) == 3
    assert holds(node(CPU=7), {"GPU": 1}) == 0


def test_a_draining_node_holds_nothing() -> None:
    assert holds(node(CPU=4, draining=True), {"CPU": 1}) == 0
    assert capacity([node(CPU=4, draining=True), node(CPU=3)], {"CPU": 1}) == 3


def test_the_room_on_a_cluster_is_counted_by_what_a_replica_needs() -> None:
    rooms = Rooms([node(CPU=4, GPU=2), node(CPU=3), node(CPU=1, draining=True)])
    assert rooms.of({"CPU": 1}) == (7, 2)
    assert rooms.of({"GPU": 1, "CPU": 1}) == (2, 1)
    assert rooms.of({"CPU": 8}) == (0, 0)
