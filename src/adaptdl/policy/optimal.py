"""The policy that is proven optimal (Pollux, OSDI 2021, section 4.2, with the search replaced by an exact program).

1. Nodes that are alike form classes; the program of `milp` chooses what each job gets. It takes jobs that stay on nodes
   of one class to be exchangeable, so that its value may be out of reach, but is never too low.
2. The choices are laid out on real nodes. If everybody who stays can stay where he is, the value is reached: optimal.
3. Otherwise nodes with jobs on them become classes of their own, as far as the program stays small, and 1. is repeated:
   whoever stays in the program can then stay on his node.
4. Of all allocations found, of staying put and (if little is proven) of equal shares, the best is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.policy.choices import job_options, sort_equal_wishes
from adaptdl.policy.cluster import Allocation, Job, Node
from adaptdl.policy.fair_share import equal_places
from adaptdl.policy.instance import Instance
from adaptdl.policy.layout import Places, lay_out, lay_out_cuts
from adaptdl.policy.milp import solve
from adaptdl.policy.objective import Objective
from adaptdl.policy.patterns import node_classes, replica_kinds
from adaptdl.policy.policy import Decision

__all__ = ["OptimalPolicy"]

TOLERANCE = 1e-5
"""Gains below this fraction of the objective are a solver's rounding, and not worth a move."""

MANY_JOBS = 200
"""Beyond, an optimum within half of `TOLERANCE` is as good as the optimum: proving the rest takes most of the time."""

FAR = 0.01
"""A gap beyond which other ways are tried."""

MAX_SPLIT_ARCS = 6_000
"""Largest total graph in which nodes with jobs on them are classes of their own."""


class OptimalPolicy:
    """Maximises the weighted utility of all jobs (see `objective`), proven as far as the time allows."""

    def __init__(
        self, *, fairness: float = 0.5, time_limit_s: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`fairness`: 0 maximises the total speedup, 1 the smallest one, 1/2 is proportional fairness. `time_limit_s`:
        after about so much the best allocations found by then are taken."""
        if not time_limit_s > 0:
            raise UsageError(f"`time_limit_s > 0` must hold, but got (time_limit_s={time_limit_s}).")
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
        return self._objective.total(jobs, current, allocations)

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """The best allocations. Same input, same answer, as long as the time limit is not reached."""
        instance = Instance.of(nodes, jobs, current)
        deadline = self._clock() + self._time_limit_s
        search = _Search(instance, self._objective, lambda: deadline - self._clock())
        search.run()
        message, allocations = "staying put", instance.named(instance.standing)
        stay = value = self.objective(nodes, jobs, current, allocations)
        held = self._objective.total([job for job in jobs if job.job_id in instance.pinned], current, instance.pinned)
        for name, candidate in self._candidates(nodes, jobs, current, search, held):
            reached = self.objective(nodes, jobs, current, candidate)
            if reached > max(value, stay * (1 + TOLERANCE)):
                message, allocations, value = name, candidate, reached
        gap = _gap(search.bound + held, value)
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
        search: _Search,
        held: float,
    ) -> Iterator[tuple[str, dict[str, Allocation]]]:
        """Allocations to choose from, besides staying put; simple ones only if the search came to little."""
        best = 0.0
        for places in search.places:
            allocations = search.instance.named(places)
            best = max(best, self.objective(nodes, jobs, current, allocations))
            yield "optimal" if search.proven else "best found", allocations
        if _gap(search.bound + held, best) > FAR:
            yield "filled up", search.instance.named(equal_places(search.instance, shrink=False))
            yield "equal shares", search.instance.named(equal_places(search.instance))


def _gap(bound: float, value: float) -> float:
    """How far from `bound`, as a fraction of `value`."""
    if value > 0:
        return max(bound - value, 0.0) / value
    return 0.0 if bound <= 0 else float("inf")


class _Search:
    """One search for the best allocations of one instance."""

    def __init__(self, instance: Instance, objective: Objective, remaining_s: Callable[[], float]) -> None:
        self.places: list[Places] = []
        """All that was found, the best one last."""
        self.proven = False
        """Whether the last one is optimal."""
        self.notes: list[str] = []
        self.instance, self._objective, self._remaining_s = instance, objective, remaining_s
        self.bound = float("inf")
        """No allocations of the instance are worth more."""

    def run(self) -> None:
        instance = self.instance
        if not instance.jobs or not instance.nodes:
            self.places, self.proven, self.bound = [[{} for _ in instance.jobs]], True, 0.0
            return
        kind, kinds = replica_kinds(instance.need, instance.room.free)
        largest = [0] * len(kinds)
        for j, job in enumerate(instance.jobs):
            largest[kind[j]] = max(largest[kind[j]], job.most_replicas)
        # Weights are of any size, a solver's tolerances are not.
        unit = float(np.mean([job.weight for job in instance.jobs]))
        options = job_options(instance, self._objective, kind, unit)
        apart: set[int] = set()
        while True:
            classes = node_classes(instance.room, kinds, largest, {node: node for node in apart})
            gap = TOLERANCE / 2 if len(options) > MANY_JOBS else 0.0
            before_s = self._remaining_s()
            solution = solve(options, classes, remaining_s=self._remaining_s, gap=gap)
            solved_s = self._remaining_s()
            if solution is None:
                self.notes.append("out of time")
                return
            if all(node_class.graph.complete for node_class in classes):
                self.bound = min(self.bound, solution.bound * unit)
            wishes = sort_equal_wishes(instance, self._objective, solution.wishes)
            places = lay_out(instance, wishes, kind, kinds, self._remaining_s)
            if places is None:
                places = lay_out_cuts(instance, wishes, kind, classes, solution.cuts)
            self.places.append(places)
            moved = {
                node
                for j, wish in enumerate(wishes)
                if wish.stays and places[j] != instance.standing[j]
                for node in instance.standing[j]
            }
            if not moved:
                self.proven = solution.optimal and np.isfinite(self.bound)
                return
            apart = self._split(apart, moved, max(len(c.graph.arcs) for c in classes))
            if not apart or self._remaining_s() < 2 * (before_s - solved_s):
                self.notes.append("some moves may be avoidable")
                return

    def _split(self, apart: set[int], moved: set[int], arcs: int) -> set[int]:
        """Nodes to tell apart next: all that are occupied, if that is not too many, or else more of those with jobs
        that should have stayed there; empty if there are no more."""
        occupied = {node for standing in self.instance.standing for node in standing}
        wanted = occupied if len(occupied) * arcs <= MAX_SPLIT_ARCS else apart | moved
        return wanted if wanted > apart and len(wanted) * arcs <= MAX_SPLIT_ARCS else set()
