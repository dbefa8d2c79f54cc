"""Reservations: one-bundle placement groups, each pinned to a node, one per replica.

A replica without devices runs *beside* its reservation: its process asks Ray for nothing, so that it can give the
reservation back, stay where it is, and take another one later. A replica with devices (GPUs) runs *inside*, since Ray
hands out the devices with the bundle.

A placement group outlives the actor that made it. So every one is named ``adaptdl/<experiment>/<trial>/<token>``, known
to its owner before anything is awaited, and found by its name when the owner is gone.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from adaptdl.runtime.waiting import within

__all__ = [
    "NODE_ID_LABEL",
    "Reservation",
    "Reservations",
    "actor_options",
    "name_of",
    "prefix_in",
    "prefix_of",
    "runs_beside",
    "sweep",
]

logger = logging.getLogger(__name__)

NODE_ID_LABEL = "ray.io/node-id"
"""Every node has it."""


def prefix_of(experiment: str, trial_id: str) -> str:
    """How the names of a trial's reservations begin. Two experiments on one cluster may have the same name."""
    return f"adaptdl/{experiment}/{trial_id}/"


def prefix_in(name: str) -> str:
    """Of a placement group: its name but for the token. Empty if it is none of ours."""
    prefix, slash, _ = name.rpartition("/")
    return prefix + slash


def runs_beside(resources: Mapping[str, float]) -> bool:
    """Whether a replica with these resources runs beside its reservation and can be parked: it has no devices."""
    return set(resources) <= {"CPU", "memory"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reservation:
    """A place for one replica on one node."""

    node_id: str
    resources: Mapping[str, float]
    group: PlacementGroup


@dataclass
class Reservations:
    """All reservations one owner has made and not released."""

    prefix: str
    _held: dict[PlacementGroup, Reservation] = field(default_factory=dict)
    _closed: bool = False

    async def reserve(self, node_id: str, resources: Mapping[str, float], *, timeout_s: float) -> Reservation:
        """Waits until the node has room, at most `timeout_s`.

        Raises:
            TimeoutError: it had none.
        """
        if self._closed:
            raise RuntimeError("reservations are closed")
        group = placement_group(
            [dict(resources)],
            strategy="STRICT_PACK",
            name=self.prefix + secrets.token_hex(4),
            bundle_label_selector=[{NODE_ID_LABEL: node_id}],
        )
        reservation = Reservation(node_id=node_id, resources=resources, group=group)
        self._held[group] = reservation
        granted = False
        try:
            await within(timeout_s, group.ready(), f"{dict(resources)} on node {node_id[:8]}")
            granted = True
        finally:
            if not granted or self._closed:
                self.release(reservation)
        if self._closed:
            raise RuntimeError("reservations are closed")
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Gives a place back; processes inside end at once."""
        if self._held.pop(reservation.group, None) is not None:
            _remove(reservation.group)

    def held(self) -> dict[str, int]:
        """How many reservations there are on each node, waiting ones included."""
        counts: dict[str, int] = defaultdict(int)
        for reservation in self._held.values():
            counts[reservation.node_id] += 1
        return dict(counts)

    def close(self) -> None:
        """Releases everything, now and for all that is still being made."""
        self._closed = True
        for reservation in list(self._held.values()):
            self.release(reservation)


def actor_options(reservation: Reservation) -> dict[str, Any]:
    """The Ray options of a replica at `reservation`."""
    if runs_beside(reservation.resources):
        return {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(reservation.node_id, soft=False),
        }
    others = {name: amount for name, amount in reservation.resources.items() if name not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {
        "num_cpus": reservation.resources.get("CPU", 0),
        "num_gpus": reservation.resources.get("GPU", 0),
        "resources": others,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=reservation.group, placement_group_bundle_index=0
        ),
    }
    if "memory" in reservation.resources:
        options["memory"] = reservation.resources["memory"]
    return options


def name_of(group_id: str) -> str:
    """Of a placement group, whoever made it; empty if it was given none or is not known."""
    found: str = placement_group_table(_group(group_id)).get("name", "")
    return found


def sweep(*prefixes: str) -> int:
    """Removes every reservation whose name starts with one of `prefixes`, whoever made it; says how many. Takes long where there
    ever were many of them: Ray keeps those that were removed in its table."""
    if not ray.is_initialized():
        return 0
    left = [
        entry
        for entry in placement_group_table().values()
        if entry["state"] != "REMOVED" and entry["name"].startswith(prefixes)
    ]
    for entry in left:
        _remove(_group(entry["placement_group_id"]))
    if left:
        logger.debug("swept %d reservations: %s", len(left), [entry["name"] for entry in left])
    return len(left)


def _group(group_id: str) -> PlacementGroup:
    return PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))


def _remove(group: PlacementGroup) -> None:
    try:
        remove_placement_group(group)
    except (RayError, RuntimeError) as error:  # the cluster is going down: nothing is left to remove
        logger.debug("cannot remove placement group %s: %s", group.id.hex(), error)
