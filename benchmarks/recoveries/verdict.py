"""What must hold of the measured recoveries, and whether it does."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from findings import Bound

from recoveries.measuring import Loss, Recovered

__all__ = ["bounds", "ratios"]

MAX_RECOVERY_S = 5.0
"""After a process was killed."""
MAX_REDONE = 1
MIN_RATIO = 10.0
"""Of the peer's time after a node was lost to ours."""


def _median_s(found: Sequence[Recovered]) -> float:
    return statistics.median(one.took_s for one in found)


def ratios(ours: Mapping[Loss, Sequence[Recovered]], peer: Mapping[Loss, Sequence[Recovered]]) -> dict[Loss, float]:
    """Median time of the peer by ours, for each loss of ours. The peer's does not depend on the rank."""
    by_kind = {loss.is_of_node: found for loss, found in peer.items()}
    return {
        loss: _median_s(by_kind[loss.is_of_node]) / _median_s(found)
        for loss, found in ours.items()
        if loss.is_of_node in by_kind
    }


def bounds(ours: Mapping[Loss, Sequence[Recovered]], peer: Mapping[Loss, Sequence[Recovered]]) -> Iterator[Bound]:
    """All that must hold."""
    for loss, found in ours.items():
        if not loss.is_of_node:
            took_s = _median_s(found)
            text = f"{loss.value}: median time to the next step ≤ {MAX_RECOVERY_S:g} s"
            yield Bound(text=text, value=took_s, holds=took_s <= MAX_RECOVERY_S)
    for loss, found in ours.items():
        most = max(one.num_redone for one in found)
        yield Bound(text=f"{loss.value}: steps redone ≤ {MAX_REDONE}", value=most, holds=most <= MAX_REDONE)
    for loss, ratio in ratios(ours, peer).items():
        if loss.is_of_node:
            text = f"{loss.value}: times shorter than Ray Train's ≥ {MIN_RATIO:g}"
            yield Bound(text=text, value=ratio, holds=ratio >= MIN_RATIO)
