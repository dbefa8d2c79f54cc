"""Least attained service in two queues (Tiresias, NSDI 2019), for jobs of fixed size.

  service_s    replicas a job has held × seconds                                  ≥ 0
  threshold_s  attained service at which a job goes from queue 0 to queue 1       > 0
  order        queue 0 by arrival, then queue 1 by the order of coming there

Short jobs need not wait behind long ones, and nobody needs to know which ones are long: those that have had much go to
the back. In this order each job runs if the cluster has as many replicas left as it wants, else it is preempted or goes
on waiting, and smaller ones behind it may run instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError
from adaptdl.policy.cluster import Allocation, Job, Node, num_replicas
from adaptdl.policy.emptiest import emptiest_places, named_in_order, room_and_standing, wanted_replicas
from adaptdl.policy.feasibility import TOLERANCE
from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.policy import Decision

__all__ = ["TiresiasPolicy"]


class TiresiasPolicy:
    """Each job gets its `requested_replicas` (`min_replicas` if nobody asked for any) or nothing, in the order above.

    Who runs and goes on running with as many replicas keeps its nodes; the others are placed in the same order, each on
    the emptiest nodes. Where that fails although the cluster has enough left (jobs that span nodes block each other, or
    what is left of a node is too little), those behind make way, the last one first, and are placed anew; a job that
    does not even fit beside those before it waits. Speedups, weights and the cost of moving play no part.

    The object remembers one thing: which jobs went to queue 1, in the order in which it saw that (of those it saw in
    the same call, the first of queue 0 first). They stay there, and are forgotten when a call does not name them. The
    answer to the same input is still the same: all that a call adds to the memory is there when the call is repeated,
    and nothing is added again. Only the order within queue 1 can differ between objects with different pasts.

    The objective is Σ 2^−(1 + position in the order) over the jobs that have what they want: each counts more than all
    behind it together. It is not a number to be compared over time, for the order changes.
    """

    def __init__(self, threshold_s: float = 16 * 3600, *, exclusive: bool = True) -> None:
        """`threshold_s`: attained service at which a job goes to queue 1. `exclusive`: at most one job that spans nodes
        stands on any node, as everywhere in this package; False: as published, they share nodes freely."""
        if not threshold_s > 0:
            raise UsageError(f"`threshold_s > 0` must hold, but got (threshold_s={threshold_s}).")
        self._threshold_s, self._exclusive = threshold_s, exclusive
        self._demoted: tuple[str, ...] = ()

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float:
        """How far down the order jobs have what they want, over all jobs that are not pinned."""
        instance = Instance.of(nodes, jobs, current)
        queue = [instance.jobs[j] for j in _order(instance.jobs, self._queue_1(jobs))]
        # fsum rounds once, so that the larger sum stays the larger one however long the queue is.
        return math.fsum(
            2.0 ** -(1 + position)
            for position, job in enumerate(queue)
            if num_replicas(allocations.get(job.job_id, {})) == wanted_replicas(job)
        )

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """Walks the order and gives each job what it wants, if that is left."""
        instance = Instance.of(nodes, jobs, current)
        self._demoted = self._queue_1(jobs)
        places = _places(instance, _order(instance.jobs, self._demoted), exclusive=self._exclusive)
        allocations = named_in_order(instance, places)
        return Decision(
            allocations=allocations,
            objective=self.objective(nodes, jobs, current, allocations),
            gap=None,
            message=f"least attained service: {len(self._demoted)} of {len(jobs)} in queue 1",
        )

    def _queue_1(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        """Those of `jobs` that are or must now go there, in order."""
        known = {job.job_id for job in jobs}
        demoted = dict.fromkeys(job_id for job_id in self._demoted if job_id in known)
        for job in sorted(jobs, key=lambda job: (job.arrival, job.job_id)):
            if job.service_s >= self._threshold_s:
                demoted.setdefault(job.job_id)
        return tuple(demoted)


def _order(jobs: Sequence[Job], queue_1: Sequence[str]) -> list[int]:
    """Indices of `jobs`, which are sorted by arrival: queue 0, then queue 1."""
    position = {job_id: 1 + i for i, job_id in enumerate(queue_1)}
    return sorted(range(len(jobs)), key=lambda j: position.get(jobs[j].job_id, 0))


def _places(instance: Instance, order: Sequence[int], *, exclusive: bool) -> list[Mapping[int, int]]:
    """By job, by node's index: number of replicas.

    Decided for one job after another, and final at once, so that no job loses anything to one behind it. When one turns
    out not to fit, those after it are counted again.
    """
    room, standing = room_and_standing(instance, exclusive=exclusive)
    wanted = [wanted_replicas(job) for job in instance.jobs]
    in_place = [places if num_replicas(places) == wanted[j] else {} for j, places in enumerate(standing)]
    places: list[Mapping[int, int]] = [{} for _ in order]
    rest = list(order)
    while rest:
        chosen = _chosen(rest, wanted, instance.need, room)
        failed = _place(chosen, wanted, instance.need, in_place, room, places)
        rest = [] if failed is None else rest[rest.index(failed) + 1 :]
    return places


def _chosen(rest: Sequence[int], wanted: Sequence[int], need: NDArray[np.float64], room: Room) -> list[int]:
    """Those that run if it is only the replicas that count: as many as each wants are not given out yet."""
    left = room.free.sum(axis=0)  # (r,)
    chosen = []
    for j in rest:
        amounts = wanted[j] * need[j]
        if (amounts <= left + TOLERANCE).all():
            left -= amounts
            chosen.append(j)
    return chosen


def _place(
    chosen: Sequence[int],
    wanted: Sequence[int],
    need: NDArray[np.float64],
    in_place: Sequence[Mapping[int, int]],
    room: Room,
    places: list[Mapping[int, int]],
) -> int | None:
    """Fills in `places` and takes them from `room` for one of `chosen` after another, up to one that does not fit beside
    those before it, which is returned; None if all of them fit."""
    around = room.copy()  # of those behind, too, as long as they keep their nodes
    keeping: list[int] = []
    for j in chosen:
        if in_place[j] and around.holds(need[j], in_place[j]):
            around.take(need[j], in_place[j])
            keeping.append(j)
    behind = set(keeping)
    for j in chosen:
        if j in behind:
            behind.remove(j)
            around.give(need[j], in_place[j])
        found = _found(around, need[j], wanted[j], in_place[j])
        while not found and behind:
            while keeping[-1] not in behind:
                keeping.pop()
            last = keeping.pop()
            behind.remove(last)
            around.give(need[last], in_place[last])
            found = _found(around, need[j], wanted[j], in_place[j])
        if not found:
            return j
        around.take(need[j], found)
        room.take(need[j], found)
        places[j] = found
    return None


def _found(room: Room, need: NDArray[np.float64], count: int, in_place: Mapping[int, int]) -> Mapping[int, int]:
    """Where a job is, if it may stay, or else the emptiest nodes; empty if there is no room."""
    return in_place if in_place and room.holds(need, in_place) else emptiest_places(room, need, count)
