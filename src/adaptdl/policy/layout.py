"""Putting pieces on real nodes, moving as little as possible.

A *wish* says which pieces a job is to have. Jobs that stay are put where they are, the others where most of their
replicas are at present. Where that does not work out, nodes are cut anew, and at last some that should stay move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.milp import cut_for
from adaptdl.policy.patterns import Cuts, NodeClass, Piece, node_classes
from adaptdl.policy.wishes import Wish

__all__ = ["Places", "lay_out", "lay_out_cuts"]

Places: TypeAlias = list[dict[int, int]]
"""By job: by node's index, number of replicas."""


def lay_out(
    instance: Instance,
    wishes: Sequence[Wish],
    kind: NDArray[np.int64],
    kinds: NDArray[np.float64],
    remaining_s: Callable[[], float],
) -> Places | None:
    """Places for all wishes with everybody who stays left where he is; None if that cannot be done (in time)."""
    room = instance.room.copy()
    places: Places = [{} for _ in wishes]
    for j, wish in enumerate(wishes):
        if wish.stays:
            places[j] = dict(instance.standing[j])
            if not room.holds(instance.need[j], places[j]):
                return None
            room.take(instance.need[j], places[j])
    coming = [j for j, wish in enumerate(wishes) if wish.sizes and not wish.stays]
    if not coming:
        return places
    found = _pack(instance, wishes, coming, room.copy())
    if found is None:
        wanted = Counter(
            Piece(int(kind[j]), size, len(wishes[j].sizes) > 1) for j in coming for size in wishes[j].sizes
        )
        largest = [max((p.size for p in wanted if p.kind == k), default=0) for k in range(len(kinds))]
        classes = node_classes(room, kinds, largest)
        cuts = cut_for(wanted, classes, remaining_s=remaining_s)
        if cuts is None:
            return None
        slots = {node: path for c, paths in cuts.items() for node, path in zip(classes[c].nodes, paths, strict=False)}
        found = _hand_out(_Slots(slots), coming, wishes, kind, _before(instance))
    for j, taken in found.items():
        places[j] = taken
    return places


def lay_out_cuts(
    instance: Instance, wishes: Sequence[Wish], kind: NDArray[np.int64], classes: Sequence[NodeClass], cuts: Cuts
) -> Places:
    """Places for all wishes on nodes cut as `cuts` says. It always can; some that should stay may have to move."""
    there: dict[int, Counter[Piece]] = {}
    for j, wish in enumerate(wishes):
        if wish.stays:
            standing = instance.standing[j]
            for node, size in standing.items():
                there.setdefault(node, Counter())[Piece(int(kind[j]), size, len(standing) > 1)] += 1
    slots: dict[int, Sequence[Piece]] = {}
    for c, paths in cuts.items():
        slots.update(_match(classes[c].nodes, paths, there))
    available = _Slots(slots)
    places: Places = [{} for _ in wishes]
    rest: list[int] = []
    for j, wish in enumerate(wishes):
        if wish.stays and available.take_all(
            {node: Piece(int(kind[j]), size, len(wish.sizes) > 1) for node, size in instance.standing[j].items()}
        ):
            places[j] = dict(instance.standing[j])
        elif wish.sizes:
            rest.append(j)
    for j, taken in _hand_out(available, rest, wishes, kind, _before(instance)).items():
        places[j] = taken
    return places


def _before(instance: Instance) -> list[dict[int, int]]:
    """Where each job's replicas are now, by node's index, whether they may stay or not."""
    index = {node.node_id: i for i, node in enumerate(instance.nodes)}
    return [
        {index[node]: count for node, count in instance.current.get(job.job_id, {}).items() if node in index}
        for job in instance.jobs
    ]


def _pack(
    instance: Instance, wishes: Sequence[Wish], coming: Iterable[int], room: Room
) -> dict[int, dict[int, int]] | None:
    """Places by a greedy rule: spanning jobs first, large pieces first, each on the node where most of the job's
    replicas are, and among those on the fullest. None if a piece is left over."""
    before = _before(instance)
    found: dict[int, dict[int, int]] = {}
    order = sorted(coming, key=lambda j: (len(wishes[j].sizes) == 1, -sum(wishes[j].sizes), j))
    for j in order:
        need, spans = instance.need[j], len(wishes[j].sizes) > 1
        fits = room.fits(need)
        if spans:
            fits = np.where(room.spannable, fits, 0)
        taken: dict[int, int] = {}
        for size in wishes[j].sizes:
            able = np.flatnonzero(fits >= size)
            if not able.size:
                return None
            homes = [node for node in before[j] if fits[node] >= size]
            node = max(homes, key=lambda home: (before[j][home], -home), default=int(able[np.argmin(fits[able])]))
            taken[node] = size
            fits[node] = 0
        room.take(need, taken)
        found[j] = taken
    return found


class _Slots:
    """Pieces cut from nodes and not yet given away."""

    def __init__(self, slots: Mapping[int, Sequence[Piece]]) -> None:
        self._on = {node: Counter(pieces) for node, pieces in slots.items()}
        self._nodes: dict[Piece, dict[int, None]] = {}  # ordered
        for node in sorted(self._on):
            for piece in self._on[node]:
                self._nodes.setdefault(piece, {})[node] = None

    def take_all(self, pieces: Mapping[int, Piece]) -> bool:
        """Takes one piece from each of some nodes, if all are there."""
        if not all(self._on.get(node, Counter())[piece] for node, piece in pieces.items()):
            return False
        for node, piece in pieces.items():
            self.take(node, piece)
        return True

    def take(self, node: int, piece: Piece) -> None:
        self._on[node][piece] -= 1
        if not self._on[node][piece]:
            del self._nodes[piece][node]

    def nodes(self, piece: Piece) -> Iterable[int]:
        """Nodes that have such a piece left, in order."""
        return self._nodes.get(piece, {})


def _hand_out(
    slots: _Slots,
    jobs: Sequence[int],
    wishes: Sequence[Wish],
    kind: NDArray[np.int64],
    before: Sequence[Mapping[int, int]],
) -> dict[int, dict[int, int]]:
    """Gives each job its pieces: first all that are on nodes where the job has replicas, then any."""
    found: dict[int, dict[int, int]] = {j: {} for j in jobs}
    missing = {j: list(wishes[j].sizes) for j in jobs}
    for at_home in (True, False):
        for j in jobs:
            spans = len(wishes[j].sizes) > 1
            for size in list(missing[j]):
                piece = Piece(int(kind[j]), size, spans)
                if at_home:
                    homes = [node for node in slots.nodes(piece) if node in before[j] and node not in found[j]]
                    node = max(homes, key=lambda n: before[j][n], default=None)
                else:
                    node = next(iter(slots.nodes(piece)))
                if node is not None:
                    slots.take(node, piece)
                    found[j][node] = size
                    missing[j].remove(size)
    return found


def _different(counters: Iterable[Counter[Piece]]) -> tuple[list[Counter[Piece]], list[int]]:
    """The different ones, and for each which of them it is."""
    different: list[Counter[Piece]] = []
    index: dict[tuple[tuple[Piece, int], ...], int] = {}
    which = []
    for counter in counters:
        key = tuple(sorted(counter.items()))
        if key not in index:
            index[key] = len(different)
            different.append(counter)
        which.append(index[key])
    return different, which


def _match(
    nodes: Sequence[int], paths: Sequence[Sequence[Piece]], there: Mapping[int, Counter[Piece]]
) -> dict[int, Sequence[Piece]]:
    """Which node is cut in which way, so that most of the replicas that should stay on their node can."""
    from scipy.optimize import linear_sum_assignment

    # Many nodes and many paths are alike.
    on_nodes, node_of = _different(there.get(node, Counter()) for node in nodes)
    on_paths, path_of = _different(Counter(path) for path in paths)
    common = np.array([[sum(p.size * n for p, n in (a & b).items()) for b in on_paths] for a in on_nodes])
    worth = common.reshape(len(on_nodes), len(on_paths))[np.ix_(node_of, path_of)]  # (nodes, paths)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return {nodes[row]: paths[column] for row, column in zip(rows, columns, strict=True)}
