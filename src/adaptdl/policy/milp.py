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

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.patterns import Cuts, NodeClass, Piece
from adaptdl.policy.program import Outcome, Program
from adaptdl.policy.wishes import Options, Wish

__all__ = ["AllocationProgram", "Solution", "cut_for"]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best choices found."""

    wishes: tuple[Wish, ...] | None
    """One per job; None if the time was too short for any."""
    cuts: Cuts
    worth: float
    """What they are worth, the small bonuses that break ties included."""
    bound: float
    """No choices are worth more than this."""
    optimal: bool
    """Whether these are the best choices, not just the best found in time."""


class _Cut:
    """The variables and rows of how nodes are cut, in a program."""

    def __init__(self, program: Program, classes: Sequence[NodeClass]) -> None:
        self._program, self.classes = program, classes
        self._vertices: list[list[int]] = []
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
        self._vertices.append(vertices)
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

    def prices(self, duals: NDArray[np.float64]) -> dict[Piece, float]:
        """What a piece costs, of those that can be cut: the highest price at which cutting it makes no gain anywhere."""
        prices: dict[Piece, float] = {}
        for c, (node_class, rows) in enumerate(zip(self.classes, self._vertices, strict=True)):
            worth = duals[rows].tolist()
            for tail, head, piece in node_class.graph.arcs:
                kept = self._cut_rows.get((c, piece))
                price = worth[tail] - worth[head] - (0.0 if kept is None else float(duals[kept]))
                prices[piece] = min(price, prices.get(piece, math.inf))
        return prices

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


class AllocationProgram:
    """The program of some jobs on some classes of nodes.

    Jobs that stay do so by class: that their pieces can be cut from its nodes all together is certain, that each can be
    on its very node only if the class is one node (or no others stay there).
    """

    def __init__(self, options: Sequence[Options], classes: Sequence[NodeClass]) -> None:
        self.program = Program()
        self.cut = _Cut(self.program, classes)
        total = sum(len(node_class.nodes) for node_class in classes)
        sizes: dict[int, int] = {}
        for node_class in classes:
            for _, _, piece in node_class.graph.arcs:
                if piece.spanning:
                    sizes[piece.kind] = max(sizes.get(piece.kind, 0), piece.size)
        self.jobs = [_Columns(self.program, self.cut, option, sizes.get(option.kind, 0), total) for option in options]

    @property
    def choices(self) -> list[int]:
        """Variables that say what a job gets, of which at most one is 1."""
        return [column for job in self.jobs for column in job.choices]

    @property
    def staying(self) -> list[int]:
        """Those of them that say that a job stays."""
        return [job.stay for job in self.jobs if job.stay is not None]

    def solution(self, outcome: Outcome) -> Solution:
        """The variables as wishes."""
        values = outcome.values
        return Solution(
            wishes=None if values is None else tuple(job.wish(values) for job in self.jobs),
            cuts={} if values is None else self.cut.paths(values),
            worth=outcome.worth,
            bound=outcome.bound,
            optimal=outcome.optimal,
        )


class _Columns:
    """The variables of one job."""

    def __init__(self, program: Program, cut: _Cut, options: Options, largest: int, num_nodes: int) -> None:
        kind = options.kind
        self._options = options
        self._single: dict[int, int] = {}
        self._pieces: dict[int, int] = {}
        self.stay: int | None = None
        self.choices: list[int] = []
        """Variables of which at most one is 1."""
        self.row = choice = program.row(high=1.0)
        """That says so."""
        if options.standing and options.stay > 0:
            self.stay = program.variable(options.stay)
            self.choices.append(self.stay)
            for node, size in options.standing.items():
                cut.use(self.stay, Piece(kind, size, len(options.standing) > 1), node=node)
        for size, value in options.single:
            column = self._single[size] = program.variable(value + options.near)
            self.choices.append(column)
            cut.use(column, Piece(kind, size, False))
        spanning = [(k, a, min(b, num_nodes), value) for k, a, b, value in options.spanning if a <= num_nodes]
        if spanning and largest:
            self._span(program, cut, spanning, largest)
        for column in self.choices:
            program.add(choice, column, 1.0)

    def _span(self, program: Program, cut: _Cut, spanning: Sequence[tuple[int, int, int, float]], largest: int) -> None:
        near = self._options.near
        most_replicas = max(k for k, _, _, _ in spanning)
        most_nodes = max(most for _, _, most, _ in spanning)
        replicas, few = program.row(low=0.0), program.row(low=0.0, high=math.inf)
        # Nobody has more pieces than replicas.
        many = program.row() if any(most < k for k, _, most, _ in spanning) else None
        for num_replicas, fewest, most, value in spanning:
            column = program.variable(value + near)
            self.choices.append(column)
            program.add(replicas, column, -float(num_replicas))
            program.add(few, column, -float(fewest))
            if many is not None:
                program.add(many, column, -float(most))
        for size in range(1, min(largest, most_replicas - 1) + 1):
            column = self._pieces[size] = program.variable(-near / most_nodes, float(most_replicas // size))
            program.add(replicas, column, float(size))
            program.add(few, column, 1.0)
            if many is not None:
                program.add(many, column, 1.0)
            cut.use(column, Piece(self._options.kind, size, True))

    def wish(self, values: NDArray[np.int64]) -> Wish:
        if self.stay is not None and values[self.stay]:
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
    program = Program()
    cut = _Cut(program, classes)
    for piece, count in pieces.items():
        cut.need(piece, count)
    values = program.run(remaining_s()).values
    return None if values is None else cut.paths(values)
