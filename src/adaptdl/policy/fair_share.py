"""Equal shares: what a policy that knows nothing of speedups would do. For comparison, and as a fallback."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.cluster import Allocation, Job, Node, num_replicas
from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.policy import Decision

__all__ = ["FairSharePolicy", "equal_places"]


class FairSharePolicy:
    """Replicas in proportion to the weights, within each job's limits, in order of arrival where they do not divide.

    Speedups matter in one way only: replicas a job has no speedup with are not given. A job that has its share already
    is left where it is. The objective is the number of replicas that are within their job's share.
    """

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float:
        """Number of replicas within their job's share, over all jobs that are not pinned."""
        instance = Instance.of(nodes, jobs, current)
        pairs = zip(instance.jobs, shares(instance), strict=True)
        return float(sum(min(num_replicas(allocations.get(job.job_id, {})), share) for job, share in pairs))

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """As equal shares as the nodes allow."""
        instance = Instance.of(nodes, jobs, current)
        places = equal_places(instance)
        reached = sum(map(num_replicas, places))
        return Decision(allocations=instance.named(places), objective=float(reached), gap=None, message="equal shares")


def equal_places(instance: Instance, *, shrink: bool = True) -> list[dict[int, int]]:
    """By job, by node's index: replicas, as equal as the nodes allow. Without `shrink` nobody loses anything."""
    share = shares(instance)
    if not shrink:
        share = [max(own, num_replicas(standing)) for own, standing in zip(share, instance.standing, strict=True)]
    places = [_shrunk(standing, own) for own, standing in zip(share, instance.standing, strict=True)]
    room = instance.room.copy()
    for need, taken in zip(instance.need, places, strict=True):
        room.take(need, taken)
    while sum(_grow(instance, room, places, j, share[j]) for j in range(len(places))):
        pass  # what one job left may be of use to an earlier one
    return places


def shares(instance: Instance) -> list[int]:
    """Replicas that each job is entitled to: one more at a time (`min_replicas` to begin with) for the one with least
    for its weight, as long as there is room for one anywhere."""
    room = instance.room.copy()
    share = [0] * len(instance.jobs)
    queue = [(0.0, j) for j, job in enumerate(instance.jobs) if job.most_replicas]
    while queue:
        _, j = heapq.heappop(queue)
        job, need = instance.jobs[j], instance.need[j]
        more = 1 if share[j] else job.min_replicas
        fits = room.fits(need)
        if fits.sum() < more:
            continue
        share[j] += more
        while more:
            node = int(np.argmax(fits > 0))
            count = min(more, int(fits[node]))
            room.take(need, {node: count})
            fits[node] -= count
            more -= count
        if share[j] < job.most_replicas:
            heapq.heappush(queue, (share[j] / job.weight, j))
    return share


def _shrunk(standing: Mapping[int, int], share: int) -> dict[int, int]:
    """At most `share` of the replicas, leaving the nodes with fewest of them first."""
    places = dict(standing)
    surplus = num_replicas(places) - share
    for node in sorted(places, key=lambda node: (places[node], node)):
        count = min(max(surplus, 0), places[node])
        surplus -= count
        places[node] -= count
    return {node: count for node, count in places.items() if count}


def _grow(instance: Instance, room: Room, places: list[dict[int, int]], j: int, share: int) -> bool:
    """Gives job j more of its share, if that is possible in any way; of the ways the one that gives most, and of these
    the one that moves least."""
    job, need, before = instance.jobs[j], instance.need[j], places[j]
    if num_replicas(before) >= share:
        return False
    room.give(need, before)
    best = before
    for places_j in _ways(room, need, before, share):
        while places_j and not _useful(job, places_j):
            places_j = _shrunk(places_j, num_replicas(places_j) - 1)
        if num_replicas(places_j) > num_replicas(best):
            best = places_j
    room.take(need, best)
    places[j] = best
    return best is not before


def _useful(job: Job, places: Mapping[int, int]) -> bool:
    total = num_replicas(places)
    return total >= job.min_replicas and job.speedup_at(len(places), total) > 0


def _ways(room: Room, need: NDArray[np.float64], before: Mapping[int, int], share: int) -> Iterator[dict[int, int]]:
    """Places for up to `share` replicas: more where the job is, all on one node, where it is and more, anywhere."""
    fits = room.fits(need)
    spannable = np.where(room.spannable, fits, 0)
    largest_first = np.argsort(-spannable, kind="stable").tolist()
    yield _fill(before, before, fits, share)
    enough = np.flatnonzero(fits >= share)
    if enough.size:
        yield {int(enough[np.argmin(fits[enough])]): share}
    if all(room.spannable[node] for node in before):
        yield _fill(before, [*before, *largest_first], spannable, share)
    yield _fill({}, largest_first, spannable, share)
    yield _fill({}, [int(np.argmax(fits))], fits, share)


def _fill(start: Mapping[int, int], nodes: Iterable[int], fits: NDArray[np.int64], share: int) -> dict[int, int]:
    """`start` and as much more as fits on `nodes`, in that order, up to `share` in all."""
    places = dict(start)
    for node in nodes:
        more = min(share - num_replicas(places), int(fits[node]) - places.get(node, 0))
        if more > 0:
            places[node] = places.get(node, 0) + more
    return places
