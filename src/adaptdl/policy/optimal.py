"""The policy that is proven optimal (Pollux, OSDI 2021, section 4.2, with the search replaced by an exact program).

Of all allocations that the search finds, of staying put and (if little is proven) of simple rules, the best is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.policy.cluster import Allocation, Job, Node
from adaptdl.policy.fair_share import equal_places
from adaptdl.policy.instance import Instance
from adaptdl.policy.objective import Objective
from adaptdl.policy.policy import Decision
from adaptdl.policy.priority import by_remaining_time
from adaptdl.policy.search import TOLERANCE, Search

__all__ = ["OptimalPolicy"]

FAR = 0.01
"""A gap beyond which other ways are tried."""

MAX_EQUAL = 50_000
"""Jobs × nodes, beyond which finding equal shares takes too long."""

SOLVING = 0.9
"""Share of the time limit for solving programs; the rest is for what comes before and after."""


class OptimalPolicy:
    """Maximises the weighted utility of all jobs (see `objective`), proven as far as the time allows."""

    def __init__(
        self,
        *,
        fairness: float = 0.5,
        shortest_first: float = 1.0,
        time_limit_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            fairness: 0 maximises the total speedup, 1 the smallest one, 1/2 is proportional fairness.
            shortest_first: how much jobs with less to do count more, so that jobs complete sooner on average: 0 not at
                all, 1 as `priority` says.
            time_limit_s: after about so much the best allocations found by then are taken.

        Raises:
            UsageError: a number is out of range.
        """
        if not time_limit_s > 0:
            raise UsageError(f"`time_limit_s > 0` must hold, but got (time_limit_s={time_limit_s}).")
        if not 0 <= shortest_first <= 1:
            raise UsageError(f"`0 <= shortest_first <= 1` must hold, but got (shortest_first={shortest_first}).")
        self._shortest_first = shortest_first
        self._objective = Objective(fairness=fairness)
        self._time_limit_s, self._clock = time_limit_s, clock

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float:
        """What :meth:`allocate` maximises, at any allocations, coming from `current`."""
        return self._objective.total(by_remaining_time(jobs, self._shortest_first), current, allocations)

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """The best allocations. Same input, same answer, as long as the time limit is not reached."""
        deadline = self._clock() + SOLVING * self._time_limit_s
        jobs = by_remaining_time(jobs, self._shortest_first)
        instance = Instance.of(nodes, jobs, current)
        search = Search(instance, self._objective, lambda: deadline - self._clock())
        search.run()
        message, allocations = "staying put", instance.named(instance.standing)
        stay = value = self._objective.total(jobs, current, allocations)
        held = self._objective.total([job for job in jobs if job.job_id in instance.pinned], current, instance.pinned)
        for name, candidate in self._candidates(nodes, jobs, current, search, held):
            reached = self._objective.total(jobs, current, candidate)
            if reached > max(value, stay * (1 + TOLERANCE)):
                message, allocations, value = name, candidate, reached
        gap = _gap(search.bound + held, value)
        if message == "best found" and gap <= TOLERANCE:
            message = "optimal"
        return Decision(
            allocations=allocations,
            objective=value,
            gap=gap if np.isfinite(gap) else None,
            message=", ".join([message, *search.notes]),
        )

    def _candidates(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        search: Search,
        held: float,
    ) -> Iterator[tuple[str, dict[str, Allocation]]]:
        """Allocations to choose from, besides staying put; simple ones only if the search came to little."""
        best = 0.0
        for places in search.places:
            search.put_back(places)
            allocations = search.instance.named(places)
            best = max(best, self._objective.total(jobs, current, allocations))
            yield "best found", allocations
        if _gap(search.bound + held, best) > FAR:
            places = search.greedy_places()
            search.put_back(places)
            yield "greedy", search.instance.named(places)
            if len(jobs) * len(nodes) <= MAX_EQUAL:
                yield "filled up", search.instance.named(equal_places(search.instance, shrink=False))
                yield "equal shares", search.instance.named(equal_places(search.instance))


def _gap(bound: float, value: float) -> float:
    """How far from `bound`, as a fraction of `value`."""
    if value > 0:
        return max(bound - value, 0.0) / value
    return 0.0 if bound <= 0 else float("inf")
