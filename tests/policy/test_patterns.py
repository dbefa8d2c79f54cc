from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from adaptdl.policy.instance import Room
from adaptdl.policy.patterns import Graph, Piece, node_classes, replica_kinds


def ways(graph: Graph) -> set[tuple[Piece, ...]]:
    """All ways to cut a node, in any order."""

    def paths(vertex: int) -> Iterator[tuple[Piece, ...]]:
        yield ()
        for tail, head, piece in graph.arcs:
            if tail == vertex:
                for rest in paths(head):
                    yield (piece, *rest)

    return {tuple(sorted(path)) for path in paths(0)}


def room(*free: list[float], spannable: bool = True) -> Room:
    return Room(np.array(free, dtype=np.float64), np.full(len(free), spannable))


@pytest.mark.parametrize(("size", "partitions"), [(4, 12), (8, 67)])  # of all numbers up to the size, 0 included
def test_a_node_can_be_cut_into_all_partitions(size: int, partitions: int) -> None:
    (alike,) = node_classes(room([size], spannable=False), np.ones((1, 1)), [size])
    assert len(ways(alike.graph)) == partitions


def test_at_most_one_piece_belongs_to_a_job_that_spans() -> None:
    (alike,) = node_classes(room([4]), np.ones((1, 1)), [4])
    spanning = [sum(piece.spanning for piece in way) for way in ways(alike.graph)]
    assert set(spanning) == {0, 1}
    assert spanning.count(1) == 7 + 4 + 2 + 1  # the partitions of at most 3, 2, 1 and 0 beside a piece of 1, 2, 3 and 4
    assert (Piece(0, 1, False), Piece(0, 3, True)) in ways(alike.graph)


def test_no_piece_is_larger_than_is_of_use() -> None:
    (alike,) = node_classes(room([8]), np.ones((1, 1)), [2])
    assert {piece.size for _, _, piece in alike.graph.arcs} == {1, 2}


def test_nodes_that_are_alike_form_classes() -> None:
    free = room([4], [2], [4], [0], [2])
    classes = node_classes(free, np.ones((1, 1)), [4])
    assert [alike.nodes for alike in classes] == [(0, 2), (1, 4)]
    apart = node_classes(free, np.ones((1, 1)), [4], {2: "other"})
    assert [alike.nodes for alike in apart] == [(0,), (1, 4), (2,)]


def test_resources_that_never_run_out_first_make_no_kinds() -> None:
    need = np.array([[1.0, 2.0], [1.0, 8.0], [1.0, 9.0]])
    kind, kinds = replica_kinds(need[:2], np.array([[8.0, 64.0]]))
    assert kind.tolist() == [0, 0]
    assert kinds.tolist() == [[1, 0]]
    assert len(replica_kinds(need, np.array([[8.0, 64.0]]))[1]) == 3


def test_a_node_serves_several_kinds() -> None:
    (alike,) = node_classes(room([2, 4], spannable=False), np.array([[1.0, 1.0], [0.0, 2.0]]), [2, 2])
    assert (Piece(0, 2, False), Piece(1, 1, False)) in ways(alike.graph)
    assert (Piece(0, 2, False), Piece(1, 2, False)) not in ways(alike.graph)
    assert alike.graph.complete


def test_too_many_ways_are_thinned_out_to_one_kind_per_node() -> None:
    kinds = np.array([[1.0, 1.5], [1.5, 1.0], [1.25, 1.3]])
    (alike,) = node_classes(room([64, 64]), kinds, [64] * 3)
    assert not alike.graph.complete
    assert {piece.kind for _, _, piece in alike.graph.arcs} == {0, 1, 2}
