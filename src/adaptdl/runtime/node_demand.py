"""Asking a cluster that scales itself for nodes.

A replica is placed on a node that is there, so a job without room would never be seen by what starts nodes. For each such job
there is a placement group that only new nodes can hold. It is never used: it is what a cluster's autoscaler looks at.

::

    (has no room) --> ASKED: pending, excludes all nodes that are there
    ASKED --the job has got room, needs another number, or is gone--> (removed; asked again)
    ASKED --new nodes hold it, the policy has seen them, and gave them to others--> (removed, asked again)

While new nodes hold it, it holds what is about to be the job's: it is counted as ours, and removed before replicas are placed.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from adaptdl.runtime.placement import NODE_ID_LABEL

__all__ = ["NodeDemand", "Places"]

_MOST_JOBS = 32
"""That ask at once: a placement group names all nodes, and is looked at by the autoscaler and by us each second."""
_CHANGE_INTERVAL_S = 10.0
"""How often a job that lacks another number at most asks anew."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a job lacks to run at all."""

    resources_per_replica: Mapping[str, float]
    num_replicas: int


@dataclass(frozen=True, kw_only=True)
class _Asked:
    places: Places
    at: float
    group: PlacementGroup


class NodeDemand:
    """What one experiment asks for.

    Args:
        experiment: its name. There may be others of this name.
    """

    def __init__(self, experiment: str) -> None:
        self.prefix = f"adaptdl-nodes/{experiment}/{secrets.token_hex(4)}/"
        """How the names of its placement groups begin."""
        self._asked: dict[str, _Asked] = {}

    def ask(self, lacking: Mapping[str, Places], nodes: Collection[str], now: float) -> None:
        """From now on asks for what these jobs lack, and for nothing else.

        Args:
            lacking: job → what it lacks.
            nodes: the ids of those that are there.
            now: monotonic seconds.
        """
        for job_id, asked in list(self._asked.items()):
            changed = lacking.get(job_id) != asked.places
            if changed and (job_id not in lacking or now - asked.at >= _CHANGE_INTERVAL_S):
                self._drop(job_id)
        there = sorted(nodes)
        for job_id, places in itertools.islice(lacking.items(), _MOST_JOBS):
            if job_id not in self._asked:
                self._asked[job_id] = _Asked(places=places, at=now, group=self._group(places, there))

    def renew(self, nodes: Collection[str]) -> None:
        """After the policy has divided `nodes`: drops what did not help, so that it is asked for again on others."""
        there = frozenset(nodes)
        for job_id, asked in list(self._asked.items()):
            entry = placement_group_table(asked.group)
            held_by = entry.get("bundles_to_node_id", {}).values()
            if entry.get("state") in (None, "REMOVED") or (entry["state"] == "CREATED" and there.issuperset(held_by)):
                self._drop(job_id)

    def close(self) -> None:
        """Asks for nothing any more."""
        for job_id in list(self._asked):
            self._drop(job_id)

    def _group(self, places: Places, nodes: Collection[str]) -> PlacementGroup:
        elsewhere = {NODE_ID_LABEL: f"!in({','.join(nodes)})"} if nodes else {}
        group: PlacementGroup = placement_group(
            [dict(places.resources_per_replica)] * places.num_replicas,
            name=self.prefix + secrets.token_hex(4),
            bundle_label_selector=[elsewhere] * places.num_replicas,
        )
        return group

    def _drop(self, job_id: str) -> None:
        remove_placement_group(self._asked[job_id].group)
        del self._asked[job_id]
