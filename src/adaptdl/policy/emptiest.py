"""Fill the emptiest node: where the policies from the literature put a job that they place anew.

They count replicas first, by what the whole cluster holds, and put them on nodes afterwards: on the node with most room
for the job (of equal ones the first by name), as many as it holds, then on the next one. As published, jobs that span
nodes share them freely (:class:`SharedRoom`). Everywhere else in this package at most one stands on any node: then a job
that no node holds alone may only use nodes without such a job, and one that still does not fit is not placed.

What :func:`emptiest_places` finds no places for has none: whether a job fits falls with what is taken, never rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.cluster import Allocation, Job, num_replicas
from adaptdl.policy.instance import Instance, Room

__all__ = ["SharedRoom", "emptiest_places", "most_held", "named_in_order", "room_and_standing", "wanted_replicas"]


class SharedRoom(Room):
    """Room where any number of jobs that span nodes may stand on the same node."""

    def __init__(self, free: NDArray[np.float64]) -> None:
        """`free`: free resources, shape (n, r)."""
        super().__init__(free, np.ones(len(free), dtype=np.bool_))

    def copy(self) -> SharedRoom:
        return SharedRoom(self.free)

    def take(self, need: NDArray[np.float64], places: Mapping[int, int]) -> None:
        super().take(need, places)
        self.spannable[:] = True


def emptiest_places(room: Room, need: NDArray[np.float64], count: int) -> dict[int, int]:
    """By node's index, in the order in which they are filled: `count` replicas that need `need`, shape (r,), each.
    Empty if there is no room for them, whichever way they are spread."""
    fits = room.fits(need)
    if fits.max(initial=0) < count:
        fits = np.where(room.spannable, fits, 0)
        if fits.sum() < count:
            return {}
    places: dict[int, int] = {}
    for node in np.argsort(-fits, kind="stable").tolist():
        if not count:
            break
        places[node] = min(int(fits[node]), count)
        count -= places[node]
    return places


def most_held(room: Room, need: NDArray[np.float64]) -> int:
    """The most replicas that :func:`emptiest_places` finds places for."""
    fits = room.fits(need)
    return int(max(fits.max(initial=0), fits[room.spannable].sum()))


def room_and_standing(instance: Instance, *, exclusive: bool) -> tuple[Room, Sequence[Mapping[int, int]]]:
    """A copy of the instance's room, and what each job may keep of its current allocation, all of them together; unless
    `exclusive`, jobs that span nodes may share them in both."""
    if exclusive:
        return instance.room.copy(), instance.standing
    room = SharedRoom(instance.room.free)
    return room, _standing(instance, room.copy())


def _standing(instance: Instance, room: Room) -> list[Mapping[int, int]]:
    """As `Instance.standing`, by the rules of another room."""
    index = {node.node_id: i for i, node in enumerate(instance.nodes)}
    standing: list[Mapping[int, int]] = []
    for job, need in zip(instance.jobs, instance.need, strict=True):
        allocation = {node_id: count for node_id, count in instance.current.get(job.job_id, {}).items() if count > 0}
        places: dict[int, int] = {}
        if set(allocation) <= set(index) and job.min_replicas <= num_replicas(allocation) <= job.max_replicas:
            places = {index[node_id]: count for node_id, count in allocation.items()}
        if places and room.holds(need, places):
            room.take(need, places)
        else:
            places = {}
        standing.append(places)
    return standing


def named_in_order(instance: Instance, places: Sequence[Mapping[int, int]]) -> dict[str, Allocation]:
    """As `Instance.named`, but each allocation lists its nodes in the order in which they were filled."""
    allocations: dict[str, Allocation] = dict(instance.pinned)
    for job, taken in zip(instance.jobs, places, strict=True):
        allocations[job.job_id] = {instance.nodes[node].node_id: count for node, count in taken.items()}
    return allocations


def wanted_replicas(job: Job) -> int:
    """What a policy of fixed sizes gives a job, if anything: `requested_replicas`, or else `min_replicas`."""
    return job.min_replicas if job.requested_replicas is None else job.requested_replicas
