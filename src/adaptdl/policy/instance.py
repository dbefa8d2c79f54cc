"""One question to a policy, made ready for arithmetic.

Shapes: n nodes, j jobs, r resources; jobs are in order of arrival, nodes in order of name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError
from adaptdl.policy.cluster import Allocation, Job, Node, num_replicas
from adaptdl.policy.feasibility import TOLERANCE

__all__ = ["Instance", "Room"]


class Room:
    """What is left on the nodes while jobs are put there. The one thing here that changes."""

    def __init__(self, free: NDArray[np.float64], spannable: NDArray[np.bool_]) -> None:
        self.free = free.copy()
        """Free resources, shape (n, r)."""
        self.spannable = spannable.copy()
        """Whether a job that spans nodes may be put there, shape (n,)."""

    def copy(self) -> Room:
        return Room(self.free, self.spannable)

    def fits(self, need: NDArray[np.float64]) -> NDArray[np.int64]:
        """How many replicas that need `need`, shape (r,), each node has room for; shape (n,)."""
        asked = need > 0
        counts: NDArray[np.int64] = np.floor((self.free[:, asked] + TOLERANCE) / need[asked]).astype(np.int64)
        fits: NDArray[np.int64] = counts.min(axis=1).clip(0)
        return fits

    def holds(self, need: NDArray[np.float64], places: Mapping[int, int]) -> bool:
        """Whether a job fits with so many replicas on each node, by index."""
        nodes = list(places)
        if len(nodes) > 1 and not self.spannable[nodes].all():
            return False
        counts = np.array(list(places.values()))
        return bool((self.free[nodes] + TOLERANCE >= counts[:, None] * need).all())

    def take(self, need: NDArray[np.float64], places: Mapping[int, int]) -> None:
        for node, count in places.items():
            self.free[node] -= count * need
            if len(places) > 1:
                self.spannable[node] = False

    def give(self, need: NDArray[np.float64], places: Mapping[int, int]) -> None:
        """Takes back what :meth:`take` took."""
        for node, count in places.items():
            self.free[node] += count * need
            if len(places) > 1:
                self.spannable[node] = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """Nodes and jobs as arrays. Raises UsageError if names are not unique."""

    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]
    """Those that may be changed, in order of arrival."""
    need: NDArray[np.float64]
    """Resources of one replica, shape (j, r)."""
    pinned: Mapping[str, Allocation]
    """Jobs that stay as they are, whatever is decided."""
    current: Mapping[str, Allocation]
    """What the others have at present, as it was told, possible or not."""
    standing: tuple[Mapping[int, int], ...]
    """By job, by node's index: the current allocation if it may stay (all of them may, together), or else nothing."""
    room: Room
    """What is there for `jobs`, their own included."""

    @classmethod
    def of(cls, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Instance:
        _check_unique("node", [node.node_id for node in nodes])
        _check_unique("job", [job.job_id for job in jobs])
        nodes = sorted(nodes, key=lambda node: node.node_id)
        jobs = sorted(jobs, key=lambda job: (job.arrival, job.job_id))
        index = {node.node_id: i for i, node in enumerate(nodes)}
        names = sorted({name for job in jobs for name, amount in job.resources.items() if amount > 0})
        free = np.array([[node.resources.get(name, 0.0) for name in names] for node in nodes], dtype=np.float64)
        free = free.reshape(len(nodes), len(names))
        room = Room(free, np.ones(len(nodes), dtype=np.bool_))
        pinned: dict[str, Allocation] = {}
        movable: list[Job] = []
        for job in jobs:
            allocation = {node_id: count for node_id, count in current.get(job.job_id, {}).items() if count > 0}
            if job.pinned and allocation and set(allocation) <= set(index):
                pinned[job.job_id] = allocation
                room.take(_amounts(job, names), {index[node_id]: count for node_id, count in allocation.items()})
            else:
                movable.append(job)
        room.free[[i for i, node in enumerate(nodes) if node.draining]] = 0.0
        room.free = room.free.clip(0.0)
        return cls(
            nodes=tuple(nodes),
            jobs=tuple(movable),
            need=np.array([_amounts(job, names) for job in movable]).reshape(len(movable), len(names)),
            pinned=pinned,
            current={job.job_id: current[job.job_id] for job in movable if current.get(job.job_id)},
            standing=_standing(index, movable, names, current, room.copy()),
            room=room,
        )

    def named(self, places: Sequence[Mapping[int, int]]) -> dict[str, Allocation]:
        """The allocations of all jobs, the pinned ones among them, from those of `jobs`."""
        allocations: dict[str, Allocation] = dict(self.pinned)
        for job, taken in zip(self.jobs, places, strict=True):
            allocations[job.job_id] = {self.nodes[node].node_id: taken[node] for node in sorted(taken)}
        return allocations


def _amounts(job: Job, names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([job.resources.get(name, 0.0) for name in names], dtype=np.float64)


def _standing(
    index: Mapping[str, int], jobs: Sequence[Job], names: Sequence[str], current: Mapping[str, Allocation], room: Room
) -> tuple[Mapping[int, int], ...]:
    """What may stay: each in turn, if its nodes are there and have room for it."""
    standing: list[Mapping[int, int]] = []
    for job in jobs:
        allocation = {node_id: count for node_id, count in current.get(job.job_id, {}).items() if count > 0}
        places: dict[int, int] = {}
        if set(allocation) <= set(index) and job.min_replicas <= num_replicas(allocation) <= job.max_replicas:
            places = {index[node_id]: count for node_id, count in allocation.items()}
        need = _amounts(job, names)
        if places and room.holds(need, places):
            room.take(need, places)
        else:
            places = {}
        standing.append(places)
    return tuple(standing)


def _check_unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError(f"each {kind} must be given once, but got {', '.join(map(repr, twice))} several times.")
