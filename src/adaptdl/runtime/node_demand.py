"""Asking a cluster that scales itself for nodes.

A replica is placed on a node that is there, so a job without room would never be seen by what starts nodes. For each such job
there is a placement group that only new nodes can hold. It is never used: it is what a cluster's autoscaler looks at.

::

    (has no room) --> ASKED: pending, excludes all nodes that are there
    ASKED --the job has got room, or is gone--> (removed)
    ASKED --new nodes hold it, the policy has seen them, and gave them to others--> (removed, asked again)

While new nodes hold it, it holds what is about to be the job's: it is counted as ours, and removed before replicas are placed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

__all__ = ["NodeDemand", "Places"]

_NODE_ID_LABEL = "ray.io/node-id"


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a job needs to run at all."""

    resources_per_replica: Mapping[str, float]
    num_replicas: int


@dataclass(frozen=True, kw_only=True)
class _Asked:
    places: Places
    nodes: frozenset[str]
    """Those that were there."""
    group: PlacementGroup


class NodeDemand:
    """What one experiment asks for.

    Args:
        experiment: its name.
    """

    def __init__(self, experiment: str) -> None:
        self.prefix = f"adaptdl-nodes/{experiment}/"
        """How the names of its placement groups begin."""
        self._asked: dict[str, _Asked] = {}

    def ask(self, without_room: Mapping[str, Places], nodes: Collection[str]) -> None:
        """From now on asks for what the jobs need that have no room on `nodes`, and for nothing else.

        Args:
            without_room: job → what it needs.
            nodes: the ids of those that are there, and were offered to the policy.
        """
        there = frozenset(nodes)
        for job_id, asked in list(self._asked.items()):
            if without_room.get(job_id) != asked.places or self._is_passed_over(asked, there):
                self._drop(job_id)
        for job_id, places in without_room.items():
            if job_id not in self._asked:
                self._asked[job_id] = _Asked(places=places, nodes=there, group=self._group(places, there))

    def close(self) -> None:
        """Asks for nothing any more."""
        for job_id in list(self._asked):
            self._drop(job_id)

    def _group(self, places: Places, nodes: frozenset[str]) -> PlacementGroup:
        elsewhere = {_NODE_ID_LABEL: f"!in({','.join(sorted(nodes))})"} if nodes else {}
        group: PlacementGroup = placement_group(
            [dict(places.resources_per_replica)] * places.num_replicas,
            name=self.prefix + secrets.token_hex(4),
            bundle_label_selector=[elsewhere] * places.num_replicas,
        )
        return group

    @staticmethod
    def _is_passed_over(asked: _Asked, nodes: frozenset[str]) -> bool:
        """Whether nodes hold it that were offered to the policy, and the job still has no room."""
        if nodes <= asked.nodes:
            return False
        entry = placement_group_table(asked.group)
        return entry["state"] == "CREATED" and nodes.issuperset(entry["bundles_to_node_id"].values())

    def _drop(self, job_id: str) -> None:
        remove_placement_group(self._asked.pop(job_id).group)
