"""A policy that gives its one trial a replica on each of two nodes, or on the only one there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptdl.policy import Allocation, Decision, Job, Node

__all__ = ["SpreadPolicy"]

_NUM_NODES = 2


class SpreadPolicy:
    """Implements :class:`adaptdl.policy.Policy` for one trial whose replicas take a CPU each."""

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """One replica per node; it stays where it is as long as it can."""
        usable = [node.node_id for node in nodes if not node.draining and node.resources.get("CPU", 0.0) >= 1]
        allocations = {}
        for job in jobs:
            before = current.get(job.job_id, {})
            chosen = sorted(usable, key=lambda node_id: (node_id not in before, node_id))[:_NUM_NODES]
            allocations[job.job_id] = dict.fromkeys(chosen, 1)
        return Decision(allocations=allocations, objective=0.0, gap=None, message="spread")
