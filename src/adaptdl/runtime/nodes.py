"""The cluster as the allocator sees it: what each node has for our jobs."""

from __future__ import annotations

import math
import re
import socket
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray._private.state import available_resources_per_node, state, total_resources_per_node

from adaptdl.policy import Node
from adaptdl.runtime.placement import name_of, prefix_in

__all__ = ["ClusterView", "Room", "Rooms", "capacity", "default_resources_per_replica", "holds"]

_NUM_LOOKS = 3
"""A use by others counts once it was seen in so many looks in a row: what a node has free lags behind what was
reserved, so that a single look may show our own coming and going as somebody else's use."""


_ANSWER_TIMEOUT_S = 0.5
"""A node of the cluster that does not take a connection in this time is as good as gone."""
_MOST_ASKED_AT_ONCE = 64

_RESERVED = re.compile(r"(?P<name>.+)_group_(?P<bundle>\d+_)?(?P<group_id>[0-9a-f]{36})")
"""What Ray calls that part of a node's resource which a placement group has reserved: as a whole, and for each bundle."""
_NOTHING = "bundle_group_"
"""And of a resource that it has made up for each of them."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """Resources of each node: all of them, and what others use."""

    total: Mapping[str, Mapping[str, float]]
    used_by_others: Mapping[str, Mapping[str, float]]
    draining: frozenset[str]


@dataclass
class ClusterView:
    """Looks at Ray's cluster from time to time; reservations whose name is one of `prefixes` and a token are ours."""

    prefixes: Collection[str] = ()
    _looks: deque[_Look] = field(default_factory=lambda: deque(maxlen=_NUM_LOOKS))
    _names: dict[str, str] = field(default_factory=dict)
    """Of the placement groups that were there at the last look."""

    def look(self, suspects: Collection[str] = ()) -> list[Node]:
        """The nodes that are alive, each with what it has for us: everything but what others use. Ray takes 15 s to see
        that a node is gone; `suspects` are asked whether they are there."""
        newest = self._look(suspects)
        self._looks.append(newest)
        return [
            Node(
                node_id=node_id,
                resources={name: amount - self._used(node_id, name) for name, amount in total.items()},
                draining=node_id in newest.draining,
            )
            for node_id, total in sorted(newest.total.items())
        ]

    def _look(self, suspects: Collection[str]) -> _Look:
        living = [node for node in ray.nodes() if node["Alive"]]
        silent = _silent([node for node in living if node["NodeID"] in suspects])
        total = {
            node["NodeID"]: {
                name: amount
                for name, amount in node["Resources"].items()
                if not name.startswith(("node:", "object_store_memory"))
                and not ("_group_" in name and _RESERVED.fullmatch(name))
            }
            for node in living
            if node["NodeID"] not in silent
        }
        available, ours = available_resources_per_node(), self._ours()
        used: dict[str, dict[str, float]] = {}
        for node_id, resources in total.items():
            free = available.get(node_id)
            if free is None:
                continue
            mine = ours.get(node_id, {})
            used[node_id] = {
                name: max(0.0, amount - free.get(name, 0.0) - mine.get(name, 0.0)) for name, amount in resources.items()
            }
        return _Look(total=total, used_by_others=used, draining=frozenset(state.get_draining_nodes()))

    def _ours(self) -> dict[str, dict[str, float]]:
        """What our reservations hold on each node, by what the nodes say. Ray's own table of placement groups tells as much, but
        it keeps those that are gone, and grows with every one that ever was."""
        names_before, self._names = self._names, {}
        ours: dict[str, dict[str, float]] = {}
        if not self.prefixes:
            return ours
        for node_id, resources in total_resources_per_node().items():
            for resource, amount in resources.items():
                if "_group_" not in resource or resource.startswith(_NOTHING):
                    continue
                found = _RESERVED.fullmatch(resource)
                if found is None or found["bundle"] is not None:
                    continue
                group_id = found["group_id"]
                if group_id not in self._names:
                    known = names_before.get(group_id)
                    self._names[group_id] = name_of(group_id) if known is None else known
                if prefix_in(self._names[group_id]) in self.prefixes:
                    on_node = ours.setdefault(node_id, {})
                    on_node[found["name"]] = on_node.get(found["name"], 0.0) + amount
        return ours

    @property
    def whole(self) -> list[Node]:
        """The nodes of the last look, each with all it has: used by others or not, and draining or not (others may come in
        the place of those that go)."""
        if not self._looks:
            return []
        newest = self._looks[-1]
        return [
            Node(node_id=node_id, resources=total, draining=False) for node_id, total in sorted(newest.total.items())
        ]

    def _used(self, node_id: str, name: str) -> float:
        return min(look.used_by_others.get(node_id, {}).get(name, 0.0) for look in self._looks)


def _silent(suspects: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The ids of those nodes that do not answer. They are asked at once: a rack may be lost."""
    if not suspects:
        return frozenset()
    with ThreadPoolExecutor(min(len(suspects), _MOST_ASKED_AT_ONCE)) as threads:
        answers = list(threads.map(_answers, suspects))
    return frozenset(node["NodeID"] for node, answer in zip(suspects, answers, strict=True) if not answer)


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether anybody listens where the node's raylet should."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def default_resources_per_replica(nodes: Iterable[Node]) -> dict[str, float]:
    """GPUs first: a GPU, and a CPU or the GPU's share of them where they are fewer; without GPUs a CPU."""
    with_gpus = [node for node in nodes if node.resources.get("GPU", 0.0) >= 1]
    if not with_gpus:
        return {"CPU": 1.0}
    shares = [node.resources.get("CPU", 0.0) / node.resources["GPU"] for node in with_gpus]
    share = min(shares)
    if share >= 1:
        return {"GPU": 1.0, "CPU": 1.0}
    share = math.floor(share * 100) / 100
    return {"GPU": 1.0, "CPU": share} if share > 0 else {"GPU": 1.0}


def holds(node: Node, resources_per_replica: Mapping[str, float]) -> int:
    """How many replicas `node` holds."""
    if node.draining:
        return 0
    # Ray counts in steps of 1e-4; the small addition keeps 3 × 0.3333 from ending below 1.
    return max(
        0,
        min(
            int((node.resources.get(name, 0.0) + 1e-6) / amount)
            for name, amount in resources_per_replica.items()
            if amount > 0
        ),
    )


def capacity(nodes: Sequence[Node], resources_per_replica: Mapping[str, float]) -> int:
    """How many replicas the nodes hold together."""
    return Rooms(nodes).of(resources_per_replica).num_replicas


class Room(NamedTuple):
    """What a cluster holds of replicas that need the same."""

    num_replicas: int
    num_nodes: int
    """Those that hold one of them, at least."""


class Rooms:
    """The room on a cluster, which is counted once for all jobs whose replicas need the same."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._known: dict[frozenset[tuple[str, float]], Room] = {}

    def of(self, resources_per_replica: Mapping[str, float]) -> Room:
        key = frozenset(resources_per_replica.items())
        if key not in self._known:
            on_nodes = [holds(node, resources_per_replica) for node in self._nodes]
            self._known[key] = Room(num_replicas=sum(on_nodes), num_nodes=sum(number > 0 for number in on_nodes))
        return self._known[key]
