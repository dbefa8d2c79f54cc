"""Greedy by remaining time (Optimus, EuroSys 2018): one replica after another to the job that it brings nearest its end.

  remaining_s      seconds of training to go at a speedup of 1, 1 if unknown                    > 0
  n                replicas given to a job so far
  N(n)             nodes under them if packed: ⌈n / replicas that the roomiest node holds⌉
  s(n)             speedup on N(n) nodes and n replicas; an n with none is skipped              ≥ 0
  n⁺               the next n with a speedup, n + 1 as a rule
  gain             remaining_s · (1/s(n) − 1/s(n⁺)) / (n⁺ − n): time saved per replica          s

Replicas are counted first and put on nodes afterwards, so what a job really gets may be less than was reckoned with:
the emptiest nodes are not those that pack it best.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.cluster import Allocation, Job, Node, num_replicas
from adaptdl.policy.emptiest import emptiest_places, most_held, named_in_order, room_and_standing
from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.policy import Decision

__all__ = ["OptimusPolicy"]


class OptimusPolicy:
    """First `min_replicas` for each job in order of arrival, as long as there are any; then one more at a time for the
    job with the largest gain, as long as that is positive, up to the `most_replicas` that are of use.

    A job whose number is unchanged keeps its nodes; the others are placed anew, those with fewest replicas first, each
    on the emptiest nodes. Where a job does not fit (jobs that span nodes block each other, or what is left of a node is
    too little), it gets as many of its replicas as do. Weights and the cost of moving play no part.

    The objective is the number of replicas that are within their job's number; if not all can be placed and staying put
    has more, that is the answer.
    """

    def __init__(self, *, exclusive: bool = True) -> None:
        """`exclusive`: at most one job that spans nodes stands on any node, as everywhere in this package; False: as
        published, they share nodes freely."""
        self._exclusive = exclusive

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float:
        """Number of replicas within their job's number, over all jobs that are not pinned."""
        instance = Instance.of(nodes, jobs, current)
        replicas = [num_replicas(allocations.get(job.job_id, {})) for job in instance.jobs]
        return _reached(replicas, [curve.count for curve in _given_out(instance)])

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """Counts replicas, then places them."""
        instance = Instance.of(nodes, jobs, current)
        curves = _given_out(instance)
        counts = [curve.count for curve in curves]
        room, standing = room_and_standing(instance, exclusive=self._exclusive)
        places = _places(instance, curves, room, standing)
        reached, stay = (_reached(list(map(num_replicas, each)), counts) for each in (places, standing))
        message = "greedy by remaining time"
        if reached < stay:
            places, reached, message = list(standing), stay, "staying put"
        return Decision(allocations=named_in_order(instance, places), objective=reached, gap=None, message=message)


@dataclass(kw_only=True)
class _Curve:
    """What replicas are worth to one job, and how many it has been given: the one thing here that changes."""

    replicas: NDArray[np.int64]
    """Numbers of replicas that are of use, increasing."""
    time_s: NDArray[np.float64]
    """Time to go with each."""
    step: int = -1
    """Index of what it has been given; -1: nothing."""

    @classmethod
    def of(cls, job: Job, largest: int) -> _Curve:
        """`largest`: replicas of the job that the roomiest node holds."""
        replicas = np.arange(job.min_replicas, job.most_replicas + 1 if largest else job.min_replicas)
        num_nodes = np.minimum(-(-replicas // max(largest, 1)), job.speedup.shape[0] - 1)
        speedup = job.speedup[num_nodes, replicas]
        remaining_s = 1.0 if job.remaining_s is None else job.remaining_s
        return cls(replicas=replicas[speedup > 0], time_s=remaining_s / speedup[speedup > 0])

    @property
    def count(self) -> int:
        """Replicas given."""
        return int(self.replicas[self.step]) if self.step >= 0 else 0

    @property
    def more(self) -> int:
        """Replicas to the next useful number; 0 if there is none."""
        return int(self.replicas[self.step + 1]) - self.count if self.step + 1 < len(self.replicas) else 0

    @property
    def gain(self) -> float:
        """Time that those save, per replica; 0 if there are none. Something must have been given."""
        return float(self.time_s[self.step] - self.time_s[self.step + 1]) / self.more if self.more else 0.0

    def useful(self, most: int) -> int:
        """The largest useful number up to `most`, 0 if there is none."""
        up_to = int(np.searchsorted(self.replicas, most, side="right"))
        return int(self.replicas[up_to - 1]) if up_to else 0


def _given_out(instance: Instance) -> list[_Curve]:
    """By job: its curve, with the replicas that it is given."""
    room = instance.room.copy()
    curves = [
        _Curve.of(job, int(room.fits(need).max(initial=0)))
        for job, need in zip(instance.jobs, instance.need, strict=True)
    ]
    queue: list[tuple[float, int]] = []

    def give(j: int) -> None:
        """The next replicas to job j, if there are any left; it is in the queue as long as it gains by more."""
        if curves[j].more and _take_anywhere(room, instance.need[j], curves[j].more):
            curves[j].step += 1
            if curves[j].gain > 0:
                heapq.heappush(queue, (-curves[j].gain, j))

    for j in range(len(curves)):
        give(j)
    while queue:
        give(heapq.heappop(queue)[1])
    return curves


def _take_anywhere(room: Room, need: NDArray[np.float64], count: int) -> bool:
    """Takes `count` replicas off the first nodes that hold any; False, and nothing, if there are not so many."""
    fits = room.fits(need)
    if fits.sum() < count:
        return False
    before = np.cumsum(fits) - fits  # on the nodes before each one, (n,)
    taken = np.clip(count - before, 0, fits)
    room.take(need, {int(node): int(taken[node]) for node in np.flatnonzero(taken)})
    return True


def _places(
    instance: Instance, curves: Sequence[_Curve], room: Room, standing: Sequence[Mapping[int, int]]
) -> list[Mapping[int, int]]:
    """By job, by node's index: number of replicas."""
    places: list[Mapping[int, int]] = [{} for _ in curves]
    rest: list[int] = []
    for j, curve in enumerate(curves):
        if num_replicas(standing[j]) == curve.count:
            places[j] = standing[j]
            room.take(instance.need[j], places[j])
        else:
            rest.append(j)
    for j in sorted(rest, key=lambda j: curves[j].count):
        need = instance.need[j]
        count = curves[j].useful(min(curves[j].count, most_held(room, need)))
        if count and count == num_replicas(standing[j]) and room.holds(need, standing[j]):
            places[j] = standing[j]  # so few only because more do not fit: asked again, the answer stays
        elif count:
            places[j] = emptiest_places(room, need, count)
        room.take(need, places[j])
    return places


def _reached(replicas: Sequence[int], counts: Sequence[int]) -> float:
    return float(sum(min(pair) for pair in zip(replicas, counts, strict=True)))
