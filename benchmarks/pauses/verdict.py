"""What must hold of the measured changes, and whether it does."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence

from findings import Bound

from pauses.ours import Change
from pauses.step_log import Transition

__all__ = ["bounded_pauses_s", "bounds", "ratios"]

MAX_PAUSE_S = 0.25
MIN_SHARE = 0.9
MIN_RATIO = 20.0
_NUM_TRAINING_AND_STARTING = {"1→2": 2, "2→2 on another node": 4}
"""Processes that want a core each while newcomers start."""


def bounded_pauses_s(name: str, changes: Sequence[Change]) -> list[float]:
    """What the bound on pauses is about. A trial that a policy stops and resumes is without replicas for as long as
    the policy likes, so of 1→0→1 it is what the library needs: to hand over the state, and to go on from it."""
    return [change.logged_s if name == "1→0→1" else change.pause_s for change in changes]


def ratios(ours: Mapping[str, Sequence[Change]], peer: Mapping[str, Sequence[Transition]]) -> dict[str, float]:
    """Median pause of the peer by ours, for the changes that both have made."""
    return {
        name: statistics.median(change.pause_s for change in theirs)
        / statistics.median(bounded_pauses_s(name, ours[name]))
        for name, theirs in peer.items()
    }


def bounds(ours: Mapping[str, Sequence[Change]], peer: Mapping[str, Sequence[Transition]]) -> Iterator[Bound]:
    """All that must hold."""
    for name, changes in ours.items():
        pause_s = statistics.median(bounded_pauses_s(name, changes))
        yield Bound(text=f"{name}: median pause ≤ {MAX_PAUSE_S} s", value=pause_s, holds=pause_s <= MAX_PAUSE_S)
    for name, changes in ours.items():
        wrong = sum(change.redone + change.left_out for change in changes)
        yield Bound(text=f"{name}: steps redone or left out = 0", value=wrong, holds=wrong == 0)
    for name, changes in ours.items():
        shares = [change.share for change in changes if change.share is not None]
        if shares:
            yield _share_bound(name, statistics.median(shares))
    for name, ratio in ratios(ours, peer).items():
        yield Bound(
            text=f"{name}: times shorter than Tune's way ≥ {MIN_RATIO:g}", value=ratio, holds=ratio >= MIN_RATIO
        )


def _share_bound(name: str, share: float) -> Bound:
    text = f"{name}: share of steps while newcomers start ≥ {MIN_SHARE}"
    wanted, cores = _NUM_TRAINING_AND_STARTING[name], len(os.sched_getaffinity(0))
    if cores < wanted:
        remark = f"on real nodes newcomers have cores of their own; here {wanted} processes share {cores}"
        return Bound(text=text, value=share, holds=None, remark=remark)
    return Bound(text=text, value=share, holds=share >= MIN_SHARE)
