"""A cluster of simulated nodes on this machine that can be lost, drained and replaced."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from storm.processes import descendants, kill

__all__ = ["Nodes", "started_nodes"]

_NODE_MEMORY_BYTES = 1
"""What a node says it has: too little for a coordinator, so that all of these are on the head, as they are in a real
cluster whose head outlives its workers."""


class Nodes:
    """The worker nodes; the head has no CPUs, and is never lost.

    Args:
        cpus_per_node: that Ray believes each to have.
    """

    def __init__(self, cpus_per_node: int) -> None:
        self._cpus_per_node = cpus_per_node
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: dict[str, Any] = {}
        self._draining: set[str] = set()

    @property
    def address(self) -> str:
        address: str = self._cluster.address
        return address

    @property
    def usable(self) -> list[str]:
        """Ids of the nodes that are there and not about to go, oldest first."""
        return [node_id for node_id in self._nodes if node_id not in self._draining]

    def add(self) -> str:
        """One more; returns its id when it is up (within 30 s, says Ray)."""
        node = self._cluster.add_node(num_cpus=self._cpus_per_node, memory=_NODE_MEMORY_BYTES)
        _end_at_sigterm()
        node_id: str = node.node_id
        self._nodes[node_id] = node
        return node_id

    def lose(self, node_id: str) -> float:
        """All its processes are killed, without notice; returns when, in monotonic seconds. The raylet goes first, so
        that nobody is left to report the others' end."""
        node = self._nodes.pop(node_id)
        self._draining.discard(node_id)
        raylets = [info.process.pid for info in node.all_processes["raylet"]]
        others = [pid for raylet in raylets for pid in descendants(raylet)]
        killed_s = time.monotonic()
        kill([*raylets, *others])
        self._cluster.remove_node(node, allow_graceful=False)
        return killed_s

    def drain(self, node_id: str, deadline_s: float) -> None:
        """Says that the node will be gone in so many seconds.

        Raises:
            RuntimeError: Ray does not accept it.
        """
        deadline_ms = int((time.time() + deadline_s) * 1e3)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = GcsClient(address=self.address).drain_node(node_id, reason, "storm", deadline_ms)
        if not accepted:
            raise RuntimeError(f"a node to be drained must be accepted, but Ray says: {why}")
        self._draining.add(node_id)

    def shut_down(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def started_nodes(num_nodes: int, cpus_per_node: int) -> Iterator[Nodes]:
    """A cluster of that many worker nodes; all is gone afterwards."""
    nodes = Nodes(cpus_per_node)
    try:
        for _ in range(num_nodes):
            nodes.add()
        yield nodes
    finally:
        nodes.shut_down()


def _end_at_sigterm() -> None:
    """In order. Every node that Ray starts puts a handler there that waits for half a minute, and leaves files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
