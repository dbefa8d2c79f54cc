"""A policy that moves trials about: at every interval one of them, drawn from a seed, gets another allocation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adaptdl.policy import Allocation, Decision, Job, Node, num_replicas

__all__ = ["RandomPolicy"]

_LEAST, _MOST = 2, 3
"""Replicas of a trial, on as many nodes as there are, so that whoever loses one or a node has somebody left."""
_NUM_MOVES = 1
"""Trials that change at each interval. A replica that starts costs 4 s of CPU time: more would leave two cores nothing
to train with."""


class RandomPolicy:
    """Implements :class:`adaptdl.policy.Policy`, but with a memory of how often it was asked.

    What it gives is possible, but not good: several trials that span nodes may stand on one node. When it is asked within
    the interval (since a node has gone, say) it only puts back what is lost.

    Args:
        seed: of the draws; each interval has its own.
        interval_s: how often allocations change.
        clock: monotonic seconds.
    """

    def __init__(self, seed: int, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seed = seed
        self._interval_s = interval_s
        self._clock = clock
        self._moved_s = -float("inf")
        self._number = 0

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """What there is, less what is gone, plus what is missing, and with a move if it is time."""
        random = np.random.default_rng([self._seed, self._number])
        division = _Division(nodes, jobs, current, random)
        now_s = self._clock()
        if now_s - self._moved_s > 0.9 * self._interval_s:  # the allocator asks after an interval, more or less
            self._moved_s, self._number = now_s, self._number + 1
            division.move()
        division.fill()
        return Decision(allocations=division.allocations(), objective=0.0, gap=None, message=f"draw {self._number}")


class _Division:
    """Replicas on nodes, changed one by one. All jobs ask for the same resources."""

    def __init__(
        self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation], random: np.random.Generator
    ) -> None:
        self._random = random
        self._jobs = sorted(jobs, key=lambda job: job.arrival)
        self._free = {node.node_id: _room(node, jobs[0]) for node in nodes if not node.draining}
        self._given: dict[str, dict[str, int]] = {job.job_id: {} for job in self._jobs}
        for job in self._jobs:
            for node_id, number in current.get(job.job_id, {}).items():
                for _ in range(min(number, self._free.get(node_id, 0))):
                    self._put(job, node_id)

    def allocations(self) -> dict[str, Allocation]:
        return {job_id: dict(sorted(given.items())) for job_id, given in self._given.items()}

    def move(self) -> None:
        """Lets a job grow, shrink or move by one replica."""
        movable = [job for job in self._jobs if not job.pinned and self._given[job.job_id]]
        for index in self._random.permutation(len(movable))[:_NUM_MOVES]:
            job = movable[index]
            given = self._given[job.job_id]
            leaves = str(self._random.choice(sorted(given)))
            can_grow = num_replicas(given) < min(_MOST, job.max_replicas)
            if not can_grow or self._random.random() < 0.5:
                self._take(job, leaves)  # and if it has too few now, it gets another one elsewhere
            if num_replicas(given) < _LEAST or can_grow:
                self._add(job, avoid=leaves)

    def fill(self) -> None:
        """Gives to those who have too few, the poorest first, and takes from the richest if nothing is left."""
        for least in range(1, _LEAST + 1):
            for job in self._jobs:
                if job.pinned and self._given[job.job_id]:
                    continue
                while num_replicas(self._given[job.job_id]) < min(least, job.max_replicas):
                    if not any(self._free.values()) and not self._make_room(least):
                        return
                    self._add(job)

    def _make_room(self, least: int) -> bool:
        rich = [job for job in self._jobs if not job.pinned and num_replicas(self._given[job.job_id]) > least]
        if not rich:
            return False
        richest = max(rich, key=lambda job: num_replicas(self._given[job.job_id]))
        self._take(richest, max(self._given[richest.job_id], key=self._given[richest.job_id].__getitem__))
        return True

    def _add(self, job: Job, avoid: str | None = None) -> None:
        """One more, if there is room, where the job has the fewest."""
        given = self._given[job.job_id]
        places = [node_id for node_id, free in sorted(self._free.items()) if free > 0 and node_id != avoid]
        fewest = min((given.get(node_id, 0) for node_id in places), default=0)
        places = [node_id for node_id in places if given.get(node_id, 0) == fewest]
        if places:
            self._put(job, str(self._random.choice(places)))

    def _put(self, job: Job, node_id: str) -> None:
        self._free[node_id] -= 1
        self._given[job.job_id][node_id] = self._given[job.job_id].get(node_id, 0) + 1

    def _take(self, job: Job, node_id: str) -> None:
        self._free[node_id] += 1
        self._given[job.job_id][node_id] -= 1
        if self._given[job.job_id][node_id] == 0:
            del self._given[job.job_id][node_id]


def _room(node: Node, job: Job) -> int:
    return min(int(node.resources.get(name, 0.0) / amount + 1e-6) for name, amount in job.resources.items())
