"""The search for the best allocations of one instance, for :class:`~adaptdl.policy.OptimalPolicy`.

1. Nodes that are alike form classes; the program of `milp` chooses what each job gets. It takes jobs that stay on nodes
   of one class to be exchangeable, so that its value may be out of reach, but is never too low.
2. The choices are laid out on real nodes. If everybody who stays can stay where he is, the value is reached: optimal.
3. Otherwise those that were to stay do, and the others are given the best that the rest of their nodes has room for.
   That comes close if there are many nodes.
4. If it does not, nodes with jobs on them become classes of their own, and 1. is repeated: whoever stays in the program
   can then stay on his node. Of too many nodes only those that are cheapest to clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from adaptdl.policy.choices import job_options, sort_equal_wishes
from adaptdl.policy.greedy import greedy_places
from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.layout import Places, lay_out, lay_out_cuts
from adaptdl.policy.milp import AllocationProgram, Solution
from adaptdl.policy.objective import Objective
from adaptdl.policy.patterns import NodeClass, node_classes, replica_kinds
from adaptdl.policy.prices import Choices, Form, Prices, resource_prices
from adaptdl.policy.sifting import sift
from adaptdl.policy.wishes import Options, Wish

__all__ = ["TOLERANCE", "Search"]

TOLERANCE = 1e-5
"""Gains below this fraction of the objective are a solver's rounding, and not worth a move."""

MANY_JOBS = 160
"""Beyond, `CLOSE` is good enough: the rest is less than a job's worth, and takes most of the time."""

MANY_ARCS = 1_000
"""Likewise, of the graphs of all kinds of nodes."""

LARGE_PROGRAM = 1_000
"""Choices and arcs, beyond which sifting pays."""

MAX_SPLIT_ARCS = 6_000
"""Largest total graph in which nodes with jobs on them are classes of their own."""

CLOSE = 2e-4
"""A gap at which the search ends if there are many jobs or kinds of nodes."""

EQUAL = 4e-6
"""A gap that is nothing but bonuses that break ties."""

MAX_NEIGHBOURHOODS = 2
"""That are searched, at most: the first gains nearly all that there is."""


class Search:
    """One search. After :meth:`run` its attributes say what was found."""

    def __init__(self, instance: Instance, objective: Objective, remaining_s: Callable[[], float]) -> None:
        self.places: list[Places] = []
        """All that was found."""
        self.notes: list[str] = []
        self.bound = float("inf")
        """No allocations of the instance are worth more."""
        self.instance, self._objective, self._remaining_s = instance, objective, remaining_s
        self._gap, self._enough = EQUAL, EQUAL

    def run(self) -> None:
        """Finds allocations, unless the time is too short for any. A bound is found in any case."""
        instance = self.instance
        if not instance.jobs or not instance.nodes:
            self.places, self.bound = [[{} for _ in instance.jobs]], 0.0
            return
        self._kind, self._kinds = replica_kinds(instance.need, instance.room.free)
        self._largest = [0] * len(self._kinds)
        for j, job in enumerate(instance.jobs):
            self._largest[self._kind[j]] = max(self._largest[self._kind[j]], job.most_replicas)
        self._options, self._unit = job_options(instance, self._objective, self._kind)
        self._known = sum(option.stay for option in self._options)  # staying put
        self._search()

    def put_back(self, places: Places) -> None:
        """Whoever has moved though he could have stayed, and gains nothing by it, stays."""
        instance, room = self.instance, self.instance.room.copy()
        for need, taken in zip(instance.need, places, strict=True):
            room.take(need, taken)
        changed = True
        while changed:
            changed = False
            for j, standing in enumerate(instance.standing):
                if not standing or places[j] == standing:
                    continue
                room.give(instance.need[j], places[j])
                if room.holds(instance.need[j], standing) and self._worth(j, standing) >= self._worth(j, places[j]):
                    places[j], changed = dict(standing), True
                room.take(instance.need[j], places[j])

    def _worth(self, j: int, places: Mapping[int, int]) -> float:
        job = self.instance.jobs[j]
        speedup = job.speedup_at(len(places), sum(places.values()))
        return float(self._objective.values(job, speedup, moved=places != self.instance.standing[j]))

    def greedy_places(self, stays: Sequence[bool] | None = None) -> Places:
        """Places by a simple rule. `stays` says who is to stay, if that is known already."""
        if not self.instance.jobs or not self.instance.nodes:
            return [{} for _ in self.instance.jobs]
        return greedy_places(self.instance, self._options, self._prices, stays)

    @cached_property
    def _choices(self) -> Choices:
        return Choices.of(self._options)

    @cached_property
    def _prices(self) -> Prices:
        return resource_prices(self._choices, self._kinds[self._kind], self.instance.room.free.sum(axis=0))

    def _search(self) -> None:
        instance, apart = self.instance, set[int]()
        occupied = {node for standing in instance.standing for node in standing}
        while True:
            classes = self._classes(instance.room, apart)
            num_arcs = sum(len(node_class.graph.arcs) for node_class in classes)
            if not apart and (len(instance.jobs) > MANY_JOBS or num_arcs > MANY_ARCS):
                self._gap, self._enough = CLOSE / 4, CLOSE
            before_s = self._remaining_s()
            solution = self._solve(self._options, classes, self._known)
            taken_s = before_s - self._remaining_s()
            complete = all(node_class.graph.complete for node_class in classes)
            bound = solution.bound if complete and np.isfinite(solution.bound) else self._prices.bound
            self.bound = min(self.bound, bound * self._unit)
            if solution.wishes is not None:
                wishes = sort_equal_wishes(instance, self._objective, solution.wishes)
                if not self._lay_out(wishes, classes, solution):
                    return
                stays = [wish.stays for wish in wishes]
            elif self._remaining_s() > 0:
                stays = self._unmoved(self.greedy_places())
            else:
                self.notes.append("out of time")
                return
            arcs = {node: len(node_class.graph.arcs) for node_class in classes for node in node_class.nodes}
            small = sum(arcs.get(node, 0) for node in occupied) <= MAX_SPLIT_ARCS
            if self._search_neighbourhoods(stays, arcs, 1 if small else MAX_NEIGHBOURHOODS):
                return
            if not small or apart or self._remaining_s() < 2 * taken_s:
                self.notes.append("some moves may be avoidable")
                return
            apart = occupied

    def _classes(self, room: Room, apart: set[int]) -> list[NodeClass]:
        return node_classes(room, self._kinds, self._largest, {node: node for node in apart})

    def _solve(self, options: Sequence[Options], classes: Sequence[NodeClass], known: float) -> Solution:
        choices = self._choices if options is self._options else Choices.of(options)
        num_arcs = sum(len(node_class.graph.arcs) for node_class in classes)
        if len(choices.value) and len(choices.value) + num_arcs > LARGE_PROGRAM:
            return sift(
                options,
                classes,
                choices,
                self._prices,
                remaining_s=self._remaining_s,
                known=known,
                gap=self._gap,
                enough=self._enough,
            )
        model = AllocationProgram(options, classes)
        return model.solution(model.program.run(self._remaining_s()))

    def _lay_out(self, wishes: Sequence[Wish], classes: Sequence[NodeClass], solution: Solution) -> bool:
        """Adds places for `wishes`; whether some that should have stayed have to move."""
        places = lay_out(self.instance, wishes, self._kind, self._kinds, self._remaining_s)
        if places is None:
            places = lay_out_cuts(self.instance, wishes, self._kind, classes, solution.cuts)
        self.places.append(places)
        standing = self.instance.standing
        return any(wish.stays and places[j] != standing[j] for j, wish in enumerate(wishes))

    def _unmoved(self, places: Places) -> list[bool]:
        return [bool(at) and at == standing for at, standing in zip(places, self.instance.standing, strict=True)]

    def _search_neighbourhoods(self, stays: Sequence[bool], arcs: Mapping[int, int], count: int) -> bool:
        """Allocations in which most of those that should stay do, and the others get the best that then fits. `arcs`
        says by node how large a program becomes if it is told apart. Returns whether that is good enough."""
        self.places.append(self.greedy_places(stays))
        best = sum(self._worth(j, places) for j, places in enumerate(self.places[-1]))
        cleared: set[int] = set()
        for _ in range(count):
            if self.bound - best <= self._enough * self.bound:
                return True
            worth, places = self._search_around(stays, cleared, arcs)
            if places is not None and worth * self._unit > best:
                best, self._known = worth * self._unit, max(worth, self._known)
                self.places.append(places)
                stays = self._unmoved(places)
            for node in self._cheapest_to_clear:
                if sum(arcs.get(other, 0) for other in cleared) + arcs.get(node, 0) > MAX_SPLIT_ARCS // 2:
                    break
                cleared.add(node)
        return self.bound - best <= self._enough * self.bound

    @cached_property
    def _cheapest_to_clear(self) -> list[int]:
        """Nodes with jobs on them, by what these would lose, at present prices, by going elsewhere."""
        choices, prices = self._choices, self._prices.of_replicas
        surplus = choices.value - choices.num_replicas * prices[choices.job]
        elsewhere = choices.best(np.where(choices.form == Form.STAY, 0.0, surplus), len(prices))
        cost: dict[int, float] = {}
        for j, standing in enumerate(self.instance.standing):
            loss = self._options[j].stay - sum(standing.values()) * prices[j] - elsewhere[j]
            for node in standing:
                cost[node] = cost.get(node, 0.0) + max(float(loss), 0.0)
        return sorted(cost, key=lambda node: (cost[node], node))

    def _search_around(
        self, stays: Sequence[bool], cleared: set[int], arcs: Mapping[int, int]
    ) -> tuple[float, Places | None]:
        """The best allocations in which those that stay do, but for those on nodes to be cleared: they may stay, too.
        Returns what the allocations are worth, too."""
        instance = self.instance
        apart = set(cleared)
        size = sum(arcs.get(node, 0) for node in apart)
        room = instance.room.copy()
        fixed: dict[int, Wish] = {}
        options = list(self._options)
        for j, standing in enumerate(instance.standing):
            if stays[j] and not cleared.intersection(standing):
                fixed[j] = Wish(sizes=tuple(sorted(standing.values(), reverse=True)), stays=True)
                options[j] = Options(kind=options[j].kind)
                room.take(instance.need[j], standing)
                continue
            size += (more := sum(arcs.get(node, 0) for node in standing if node not in apart))
            if size <= MAX_SPLIT_ARCS:
                apart.update(standing)
            else:
                size -= more
                options[j] = replace(options[j], stay=0.0)
        classes = self._classes(room, apart)
        solution = self._solve(options, classes, sum(option.stay for option in options))
        if solution.wishes is None:
            return -math.inf, None
        wishes = sort_equal_wishes(instance, self._objective, solution.wishes)
        wishes = [fixed.get(j, wish) for j, wish in enumerate(wishes)]
        held = sum(self._options[j].stay for j in fixed)
        return held + solution.worth, lay_out(instance, wishes, self._kind, self._kinds, self._remaining_s)
