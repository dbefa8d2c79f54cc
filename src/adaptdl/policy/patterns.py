"""How nodes may be cut into pieces.

A *piece* is the replicas of one job on one node; all nodes with the same room form a *class*, and how many nodes of a
class are cut in which way is all that matters. The ways to cut one node (the *patterns*: the partitions of 8, say) are
the paths from the root of a graph. A vertex is what has been cut off so far, an arc is a piece, and a flow of integers
is so many nodes, each cut along one path (arc-flow, Valério de Carvalho 1999). The graph for 64 replicas has 2,000
arcs, where the partitions of 64 are 1.7 million.

A piece of a job that spans nodes can only be cut off first. So there is at most one on a node.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.feasibility import TOLERANCE
from adaptdl.policy.instance import Room

__all__ = ["Cuts", "Graph", "NodeClass", "Piece", "node_classes", "replica_kinds"]

MAX_ARCS = 20_000
"""Of one graph. Larger ones (many kinds of replicas on large nodes) are thinned out: one kind of replica per node."""


class Piece(NamedTuple):
    """Replicas of one job on one node."""

    kind: int
    """Which resources a replica needs (see :func:`replica_kinds`)."""
    size: int
    """Number of replicas."""
    spanning: bool
    """Whether the job has pieces on other nodes, too."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """All ways to cut a node of one class."""

    num_vertices: int
    """Vertex 0 is the root, the node as it is."""
    arcs: tuple[tuple[int, int, Piece], ...]
    """(tail, head, piece)."""
    complete: bool
    """Whether no way to cut was left out."""


@dataclass(frozen=True, kw_only=True)
class NodeClass:
    """Nodes that are alike."""

    nodes: tuple[int, ...]
    """Their indices."""
    graph: Graph


Cuts: TypeAlias = Mapping[int, Sequence[Sequence[Piece]]]
"""By class: the pieces of each of its nodes that is cut at all, in no order."""


def replica_kinds(
    need: NDArray[np.float64], free: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The kind of each job's replicas, shape (j,), and the resources that decide where a kind fits, shape (kinds, r).

    A resource that runs out on no node before another one does (CPUs, where GPUs are scarce) is left out, so that
    jobs which differ only in it are of one kind. `need` has shape (j, r), `free` (n, r).
    """
    kept = list(range(need.shape[1]))
    if len(kept) > 1:
        different, rooms = np.unique(need, axis=0), np.unique(free, axis=0)
        for resource in range(need.shape[1]):
            if any(_implied(resource, other, different, rooms) for other in kept if other != resource):
                kept.remove(resource)
    reduced = np.zeros_like(need)
    reduced[:, kept] = need[:, kept]
    kinds, kind = np.unique(reduced, axis=0, return_inverse=True)
    return kind.reshape(len(need)), kinds


def _implied(resource: int, other: int, need: NDArray[np.float64], free: NDArray[np.float64]) -> bool:
    """Whether on any node whatever fits by `other` fits by `resource`."""
    if not (need[:, other] > 0).all():
        return False
    # need_r / free_r ≤ need_o / free_o for all replicas, without the divisions.
    return bool(
        (need[None, :, resource] * free[:, None, other] <= need[None, :, other] * free[:, None, resource]).all()
    )


def node_classes(
    room: Room, kinds: NDArray[np.float64], largest: Sequence[int], apart: Mapping[int, Hashable] | None = None
) -> list[NodeClass]:
    """Classes of the nodes that hold anything at all. `largest` is the largest piece of use, by kind; nodes in `apart`
    are alike only if they have the same mark there."""
    alike: dict[tuple[tuple[float, ...], bool, Hashable], list[int]] = {}
    decisive = kinds.any(axis=0)
    for node, free in enumerate(room.free[:, decisive]):
        key = (tuple(free.round(6).tolist()), bool(room.spannable[node]), (apart or {}).get(node))
        alike.setdefault(key, []).append(node)
    need = tuple(map(tuple, kinds[:, decisive].tolist()))
    classes = []
    for (free_amounts, spannable, _), nodes in alike.items():
        graph = _graph(free_amounts, spannable, need, tuple(largest))
        if graph.arcs:
            classes.append(NodeClass(nodes=tuple(nodes), graph=graph))
    return classes


@lru_cache(maxsize=1024)
def _graph(
    free: tuple[float, ...], spannable: bool, need: tuple[tuple[float, ...], ...], largest: tuple[int, ...]
) -> Graph:
    every = _grow(free, spannable, need, largest, range(len(need)))
    if every is not None:
        return Graph(num_vertices=every[0], arcs=tuple(every[1]), complete=True)
    num_vertices, arcs = 1, list[tuple[int, int, Piece]]()
    for kind in range(len(need)):
        alone = _grow(free, spannable, need, largest, (kind,))
        if alone is not None:
            shift = num_vertices - 1  # all have the root in common
            arcs += [(tail and tail + shift, head + shift, piece) for tail, head, piece in alone[1]]
            num_vertices += alone[0] - 1
    return Graph(num_vertices=num_vertices, arcs=tuple(arcs), complete=False)


def _grow(
    free: tuple[float, ...],
    spannable: bool,
    need: tuple[tuple[float, ...], ...],
    largest: tuple[int, ...],
    allowed: Sequence[int],
) -> tuple[int, list[tuple[int, int, Piece]]] | None:
    """Number of vertices and arcs of the graph with pieces of the `allowed` kinds; None if there are too many."""
    left = [tuple(free)]  # by vertex: what is not cut off yet
    vertex_of = {tuple(free): 0}
    arcs: list[tuple[int, int, Piece]] = []
    for tail, rest in enumerate(left):  # grows while we go
        for kind in allowed:
            amounts = need[kind]
            most = min(int((a + TOLERANCE) // b) for a, b in zip(rest, amounts, strict=True) if b > 0)
            for size in range(1, min(most, largest[kind]) + 1):
                after = tuple(round(a - size * b, 6) for a, b in zip(rest, amounts, strict=True))
                head = vertex_of.setdefault(after, len(left))
                if head == len(left):
                    left.append(after)
                arcs.append((tail, head, Piece(kind, size, False)))
                if tail == 0 and spannable:
                    arcs.append((tail, head, Piece(kind, size, True)))
        if len(arcs) > MAX_ARCS:
            return None
    return len(left), arcs
