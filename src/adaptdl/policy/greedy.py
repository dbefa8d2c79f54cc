"""Good allocations by a simple rule, where there is no time for the program: each in turn gets what it gains most by.

At the right prices nearly all can have what they like best. So those that like best to stay do, then the others are put
where it fits, the largest first, each with the best choice that still has room; then everybody takes what is left over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.instance import Instance, Room
from adaptdl.policy.layout import Places
from adaptdl.policy.prices import Prices
from adaptdl.policy.wishes import Options

__all__ = ["greedy_places"]


def greedy_places(
    instance: Instance, options: Sequence[Options], prices: Prices, stays: Sequence[bool] | None = None
) -> Places:
    """Places by job, of all their `options` in turn. `stays` says who is to stay, if that is known already."""
    room = instance.room.copy()
    places: Places = [{} for _ in options]
    wanted: list[list[_Choice]] = []
    for j, option in enumerate(options):
        price = float(prices.of_replicas[j])
        found = sorted(_choices(option), key=lambda choice: choice.num_replicas * price - choice.value)
        wanted.append([choice for choice in found if choice.value > choice.num_replicas * price])
        if stays[j] if stays is not None else bool(wanted[j]) and wanted[j][0].stays:
            places[j] = dict(option.standing or {})
            room.take(instance.need[j], places[j])
    others = [j for j in range(len(options)) if wanted[j] and not places[j]]
    for j in sorted(others, key=lambda j: -wanted[j][0].num_replicas):
        _give(instance, room, places, options, j, wanted[j])
    for j, option in enumerate(options):
        _give(instance, room, places, options, j, sorted(_choices(option), key=lambda choice: -choice.value))
    return places


class _Choice:
    """One of a job's options."""

    __slots__ = ("fewest", "most", "num_replicas", "stays", "value")

    def __init__(self, num_replicas: int, value: float, fewest: int = 1, most: int = 1, *, stays: bool = False) -> None:
        self.num_replicas, self.value, self.fewest, self.most, self.stays = num_replicas, value, fewest, most, stays


def _choices(option: Options) -> Iterator[_Choice]:
    if option.standing and option.stay > 0:
        yield _Choice(sum(option.standing.values()), option.stay, stays=True)
    for num_replicas, value in option.single:
        yield _Choice(num_replicas, value + option.near)
    for num_replicas, fewest, most, value in option.spanning:
        yield _Choice(num_replicas, value, fewest, most)


def _give(
    instance: Instance, room: Room, places: Places, options: Sequence[Options], j: int, wanted: Sequence[_Choice]
) -> None:
    """Gives job j the first of its choices that fits, in place of what it has."""
    need, standing = instance.need[j], options[j].standing or {}
    room.give(need, places[j])
    fits = room.fits(need)
    ways = _Ways(fits, np.where(room.spannable, fits, 0), standing)
    for choice in wanted:
        if choice.stays:
            found = dict(standing) if room.holds(need, standing) else None
        else:
            found = ways.place(choice)
        if found is not None:
            places[j] = found
            break
    room.take(need, places[j])


class _Ways:
    """To place one job's replicas on nodes that have room for so many."""

    def __init__(self, fits: NDArray[np.int64], spannable: NDArray[np.int64], standing: Mapping[int, int]) -> None:
        self._fits, self._spannable, self._standing = fits, spannable, standing
        self._largest = int(fits.max(initial=0))
        self._order = np.argsort(-spannable, kind="stable")  # roomiest first
        self._sums = np.cumsum(spannable[self._order])

    def place(self, choice: _Choice) -> dict[int, int] | None:
        """By node's index: replicas; None if they do not fit."""
        if choice.most > 1:
            return self._on_several(choice)
        if choice.num_replicas > self._largest:
            return None
        homes = [node for node in self._standing if self._fits[node] >= choice.num_replicas]
        return {homes[0] if homes else self._tightest(self._fits, choice.num_replicas): choice.num_replicas}

    def _on_several(self, choice: _Choice) -> dict[int, int] | None:
        """All of the roomiest nodes, and the rest where it fits best."""
        rest = choice.num_replicas
        count = max(int(np.searchsorted(self._sums, rest)) + 1, choice.fewest)
        if count > min(choice.most, int(np.count_nonzero(self._spannable))):
            return None
        places: dict[int, int] = {}
        for node in self._order[: count - 1].tolist():
            places[node] = min(int(self._spannable[node]), rest - (count - 1 - len(places)))
            rest -= places[node]
        free = self._spannable.copy()
        free[list(places)] = 0
        places[self._tightest(free, rest)] = rest
        return places

    @staticmethod
    def _tightest(fits: NDArray[np.int64], size: int) -> int:
        able = np.flatnonzero(fits >= size)
        return int(able[np.argmin(fits[able])])
