"""The allocation problem as a mixed-integer program over pieces and the ways to cut nodes.

Variables, for jobs j, numbers of replicas K, piece sizes d, classes of nodes c:

  h_j           0/1: j stays as it is, on the nodes where it is
  x_jK          0/1: j has K replicas on one node, any
  y_jKg         0/1: j has K replicas on several nodes, their number N in the interval g (equal speedup)
  z_jd          integer: pieces of size d that a spanning j has
  f_ca          integer: nodes of class c whose cut goes along arc a (see `patterns`)

Maximise Σ value · (h, x, y), subject to

  Σ (h, x, y) ≤ 1                              for each j
  Σ_d z_jd within g,  Σ_d d·z_jd = K           for each j that spans
  pieces used ≤ pieces cut                     for each piece, over all classes together (any node does)
  pieces kept in c ≤ pieces cut in c           for each piece that jobs which stay have in c
  flow out ≤ flow in                           for each vertex of each class, ≤ |c| out of the root

Nothing in it grows with the number of nodes that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.patterns import Cuts, NodeClass, Piece

__all__ = ["Options", "Solution", "Wish", "cut_for", "solve"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one job may get, with the value of each choice over having nothing; only values > 0 matter."""

    kind: int
    stay: float = 0.0
    """Value of staying."""
    standing: Mapping[int, int] | None = None
    """Where it stays: by node's index, number of replicas."""
    near: float = 0.0
    """Value, on top of the following ones, of being on one node; on several it falls towards 0 with their number."""
    single: Sequence[tuple[int, float]] = ()
    """On one node: (K, value)."""
    spanning: Sequence[tuple[int, int, int, float]] = ()
    """On several nodes: (K, smallest N, largest N, value)."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one job is to get."""

    sizes: tuple[int, ...]
    """Its pieces, descending; empty: nothing."""
    stays: bool = False


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best choices found."""

    wishes: tuple[Wish, ...]
    """One per job."""
    cuts: Cuts
    bound: float
    """No choices are worth more than this."""
    optimal: bool
    """Whether these are the best choices, not just the best found in time."""


LARGE_PROGRAM = 5_000
"""Variables, beyond which the detour over the linear relaxation pays."""


class _Program:
    """A sparse integer program under construction."""

    def __init__(self) -> None:
        self.value: list[float] = []
        self.most: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.entries: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.choices: list[int] = []
        """Variables that say what a job gets, of which at most one is 1."""

    def variable(self, value: float = 0.0, most: float = 1.0) -> int:
        self.value.append(value)
        self.most.append(most)
        return len(self.value) - 1

    def row(self, low: float = -math.inf, high: float = 0.0) -> int:
        self.low.append(low)
        self.high.append(high)
        return len(self.low) - 1

    def add(self, row: int, column: int, entry: float) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.entries.append(entry)

    def solve(self, remaining_s: Callable[[], float], gap: float) -> _Outcome:
        """The best variables that can be found in time, proven to be within `gap` of the best if there is enough of it.

        A large program goes through its linear relaxation. That leaves hardly anything fractional, so that with all
        clear choices fixed little is left to do, and the result is nearly always within `gap` of the relaxation.
        """
        if not self.value:
            return _Outcome(values=np.zeros(0, dtype=np.int64), bound=0.0, optimal=True)
        if len(self.value) <= LARGE_PROGRAM:
            return self._run(remaining_s(), gap)
        relaxed = self._run(remaining_s(), gap, relaxed=True)
        if relaxed.values is None:
            return relaxed
        clear = [column for column in self.choices if relaxed.values[column] > 1 - 1e-6]
        fixed = self._run(remaining_s(), gap, clear)
        if fixed.values is not None:
            worth = float(fixed.values @ np.array(self.value))
            near = relaxed.bound - worth <= gap * abs(relaxed.bound)
            fixed = _Outcome(values=fixed.values, bound=relaxed.bound, optimal=near)
        if fixed.optimal or remaining_s() <= 0:
            return fixed
        exact = self._run(remaining_s(), gap)
        return exact if exact.optimal or fixed.values is None else fixed

    def _run(self, time_limit_s: float, gap: float, clear: Sequence[int] = (), *, relaxed: bool = False) -> _Outcome:
        """One run of the solver, with `clear` choices made, or without integrality."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        least = np.zeros(len(self.value))
        least[list(clear)] = 1.0
        shape = (len(self.low), len(self.value))
        matrix = csr_array((self.entries, (self.rows, self.columns)), shape=shape)
        result = milp(
            -np.array(self.value),
            integrality=np.full(len(self.value), 0 if relaxed else 1),
            bounds=Bounds(least, np.array(self.most)),
            constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            options={"time_limit": max(time_limit_s, 0.01), "mip_rel_gap": gap},
        )
        if relaxed:
            done = result.status == 0
            return _Outcome(values=result.x if done else None, bound=-result.fun if done else math.inf, optimal=False)
        return _Outcome(
            values=None if result.x is None else np.rint(result.x).astype(np.int64),
            bound=math.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound),
            optimal=result.status == 0,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outcome:
    """Of one run of the solver."""

    values: NDArray[Any] | None
    """The variables; None if the time was too short for any."""
    bound: float
    """No variables are worth more."""
    optimal: bool
    """Whether these are proven to be the best ones, up to the gap."""


class _Cut:
    """The variables and rows of how nodes are cut, in a program."""

    def __init__(self, program: _Program, classes: Sequence[NodeClass]) -> None:
        self._program, self.classes = program, classes
        self._arcs = [self._flow(node_class) for node_class in classes]
        self._class_of = {node: c for c, node_class in enumerate(classes) for node in node_class.nodes}
        self._cut_rows: dict[tuple[int | None, Piece], int] = {}
        self._arcs_of: dict[tuple[int | None, Piece], list[int]] = {}
        for c, (node_class, columns) in enumerate(zip(classes, self._arcs, strict=True)):
            for (_, _, piece), column in zip(node_class.graph.arcs, columns, strict=True):
                self._arcs_of.setdefault((None, piece), []).append(column)
                self._arcs_of.setdefault((c, piece), []).append(column)

    def _flow(self, node_class: NodeClass) -> list[int]:
        program, graph, count = self._program, node_class.graph, len(node_class.nodes)
        vertices = [program.row(high=float(count) if vertex == 0 else 0.0) for vertex in range(graph.num_vertices)]
        columns = []
        for tail, head, _ in graph.arcs:
            column = program.variable(most=float(count))
            program.add(vertices[tail], column, 1.0)
            program.add(vertices[head], column, -1.0)
            columns.append(column)
        return columns

    def use(self, column: int, piece: Piece, count: int = 1, node: int | None = None) -> None:
        """`column` takes `count` pieces each time it is chosen: from anywhere, and if `node` is given from there."""
        self._program.add(self._row(None, piece), column, float(count))
        if node is not None and not (len(self.classes) == 1 and node in self._class_of):
            self._program.add(self._row(self._class_of.get(node, -1), piece), column, float(count))

    def need(self, piece: Piece, count: int) -> None:
        """So many pieces are wanted in any case."""
        self._program.high[self._row(None, piece)] -= count

    def _row(self, node_class: int | None, piece: Piece) -> int:
        """pieces used − pieces cut ≤ 0."""
        key = (node_class, piece)
        if key not in self._cut_rows:
            row = self._cut_rows[key] = self._program.row()
            for column in self._arcs_of.get(key, ()):
                self._program.add(row, column, -1.0)
        return self._cut_rows[key]

    def paths(self, values: NDArray[np.int64]) -> Cuts:
        """The flow of a solution as pieces of single nodes."""
        return {
            c: _paths(node_class, [int(values[column]) for column in columns])
            for c, (node_class, columns) in enumerate(zip(self.classes, self._arcs, strict=True))
        }


def _paths(node_class: NodeClass, flow: list[int]) -> list[list[Piece]]:
    leaving: dict[int, list[int]] = {}
    for arc, (tail, _, _) in enumerate(node_class.graph.arcs):
        if flow[arc] > 0:
            leaving.setdefault(tail, []).append(arc)
    paths: list[list[Piece]] = []
    while leaving.get(0):
        vertex, pieces = 0, list[Piece]()
        while leaving.get(vertex):
            arc = leaving[vertex][-1]
            flow[arc] -= 1
            if not flow[arc]:
                leaving[vertex].pop()
            _, vertex, piece = node_class.graph.arcs[arc]
            pieces.append(piece)
        paths.append(pieces)
    return paths


def solve(
    options: Sequence[Options], classes: Sequence[NodeClass], *, remaining_s: Callable[[], float], gap: float = 0.0
) -> Solution | None:
    """The most valuable choices that fit, within a fraction `gap` of the best; None if the time was too short for any.

    Jobs that stay do so by class: that their pieces can be cut from its nodes all together is certain, that each can be
    on its very node only if the class is one node (or no others stay there).
    """
    program = _Program()
    cut = _Cut(program, classes)
    total = sum(len(node_class.nodes) for node_class in classes)
    sizes: dict[int, int] = {}
    for node_class in classes:
        for _, _, piece in node_class.graph.arcs:
            if piece.spanning:
                sizes[piece.kind] = max(sizes.get(piece.kind, 0), piece.size)
    columns = [_Columns(program, cut, option, sizes.get(option.kind, 0), total) for option in options]
    outcome = program.solve(remaining_s, gap)
    if outcome.values is None:
        return None
    values = outcome.values
    wishes = tuple(column.wish(values) for column in columns)
    return Solution(wishes=wishes, cuts=cut.paths(values), bound=outcome.bound, optimal=outcome.optimal)


class _Columns:
    """The variables of one job."""

    def __init__(self, program: _Program, cut: _Cut, options: Options, largest: int, num_nodes: int) -> None:
        kind = options.kind
        self._options = options
        self._single: dict[int, int] = {}
        self._pieces: dict[int, int] = {}
        self._stay: int | None = None
        choice = program.row(high=1.0)
        if options.standing and options.stay > 0:
            self._stay = program.variable(options.stay)
            self._choose(program, choice, self._stay)
            for node, size in options.standing.items():
                cut.use(self._stay, Piece(kind, size, len(options.standing) > 1), node=node)
        for size, value in options.single:
            column = self._single[size] = program.variable(value + options.near)
            self._choose(program, choice, column)
            cut.use(column, Piece(kind, size, False))
        spanning = [(k, a, min(b, num_nodes), value) for k, a, b, value in options.spanning if a <= num_nodes]
        if not spanning or not largest:
            return
        replicas = program.row(low=0.0)
        few, many = program.row(low=0.0, high=math.inf), program.row()
        for num_replicas, fewest, most, value in spanning:
            column = program.variable(value + options.near)
            self._choose(program, choice, column)
            program.add(replicas, column, -float(num_replicas))
            program.add(few, column, -float(fewest))
            program.add(many, column, -float(most))
        most_replicas = max(k for k, _, _, _ in spanning)
        most_nodes = max(most for _, _, most, _ in spanning)
        for size in range(1, min(largest, most_replicas - 1) + 1):
            column = self._pieces[size] = program.variable(-options.near / most_nodes, float(most_replicas // size))
            program.add(replicas, column, float(size))
            program.add(few, column, 1.0)
            program.add(many, column, 1.0)
            cut.use(column, Piece(kind, size, True))

    @staticmethod
    def _choose(program: _Program, choice: int, column: int) -> None:
        program.add(choice, column, 1.0)
        program.choices.append(column)

    def wish(self, values: NDArray[np.int64]) -> Wish:
        if self._stay is not None and values[self._stay]:
            standing = self._options.standing or {}
            return Wish(sizes=tuple(sorted(standing.values(), reverse=True)), stays=True)
        for size, column in self._single.items():
            if values[column]:
                return Wish(sizes=(size,))
        sizes = [size for size, column in self._pieces.items() for _ in range(values[column])]
        return Wish(sizes=tuple(sorted(sizes, reverse=True)))


def cut_for(
    pieces: Mapping[Piece, int], classes: Sequence[NodeClass], *, remaining_s: Callable[[], float]
) -> Cuts | None:
    """A way to cut the nodes that gives at least these numbers of pieces; None if there is none (or no time)."""
    program = _Program()
    cut = _Cut(program, classes)
    for piece, count in pieces.items():
        cut.need(piece, count)
    values = program.solve(remaining_s, 0.0).values
    return None if values is None else cut.paths(values)
