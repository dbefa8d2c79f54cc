"""What must hold of a storm, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from findings import Bound

from storm.finding import Findings
from storm.memory import growth_mb_per_min
from storm.recovering import took_s
from storm.schedule import Kind
from storm.training import NUM_SAMPLES, STEPS_PER_EPOCH

__all__ = ["bounds"]

MAX_DIFFERENCE = 1e-8
"""Of the final parameters, relative to the largest one. They are in double precision: rounding was seen to make 1e-15, and
one lost sample, tried at several times of 93 epochs, 1e-5 at least."""
MAX_ACCURACY_DIFFERENCE = 0.002
MAX_REDONE = 0.005
"""Share of the steps."""
MAX_REDONE_AT_ONCE = 1
"""By trials that had survivors."""
MAX_RECOVERY_S = 5.0
MAX_GROWTH_MB_PER_MIN = 1.0
MIN_WATCHED_MIN = 10.0
"""A shorter run says nothing about memory: what is kept for each node and each result has no time to show."""


def bounds(found: Findings) -> Iterator[Bound]:
    """All that must hold."""
    yield Bound(
        text=f"trials finished = {found.num_trials}",
        value=found.num_finished,
        holds=found.num_finished == found.num_trials,
        remark="; ".join(f"trial {trial.trial}: {trial.error or trial.status}" for trial in found.unfinished),
    )
    wrong = sum(abs(trial.num_results - found.num_epochs) for trial in found.trials) if found.trials else math.nan
    text = "results missing, or reported twice = 0"
    yield Bound(text=text, value=wrong, holds=wrong == 0)
    yield from _parity(found)
    yield from _steps(found)
    yield from _recovery(found)
    for name, left in (("processes", found.left_processes), ("placement groups", found.left_placement_groups)):
        text, count = f"{name} left behind = 0", None if left is None else len(left)
        if count is None:
            yield Bound(text=text, value=math.nan, holds=None, remark="the trials were ended by force")
        else:
            yield Bound(text=text, value=count, holds=count == 0, remark=", ".join((left or [])[:5]))
    yield from _memory(found)


def _parity(found: Findings) -> Iterator[Bound]:
    difference = float(np.max([one.difference for one in found.per_trial]))  # NaN if one of them is
    yield Bound(
        text=f"final parameters, largest relative difference from undisturbed trials ≤ {MAX_DIFFERENCE:g}",
        value=difference,
        holds=difference <= MAX_DIFFERENCE,
    )
    accuracy = float(np.max([abs(one.accuracy - one.undisturbed_accuracy) for one in found.per_trial]))
    yield Bound(
        text=f"final accuracy, largest difference from undisturbed trials ≤ {MAX_ACCURACY_DIFFERENCE}",
        value=accuracy,
        holds=accuracy <= MAX_ACCURACY_DIFFERENCE,
    )


def _steps(found: Findings) -> Iterator[Bound]:
    missing = found.num_trials * found.num_epochs * STEPS_PER_EPOCH - found.num_steps
    yield Bound(text="steps missing = 0", value=missing, holds=missing == 0)
    redone = found.num_redone / max(1, found.num_steps)
    yield Bound(text=f"share of steps redone ≤ {MAX_REDONE}", value=redone, holds=redone <= MAX_REDONE)
    most = max((one.num_redone for one in found.recoveries if one.had_survivors), default=0)
    text = f"steps redone after one loss that left survivors ≤ {MAX_REDONE_AT_ONCE}"
    yield Bound(text=text, value=most, holds=most <= MAX_REDONE_AT_ONCE)
    counts = [history.lost_and_repeated(NUM_SAMPLES, found.num_epochs) for history in found.histories]
    for text, count in (
        ("samples lost", sum(lost for lost, _ in counts)),
        ("samples repeated within a pass", sum(repeated for _, repeated in counts)),
    ):
        yield Bound(text=f"{text} = 0", value=count, holds=count == 0)


def _recovery(found: Findings) -> Iterator[Bound]:
    kills = took_s(found.recoveries, Kind.KILL)
    text = f"median time to the next step after a replica was killed ≤ {MAX_RECOVERY_S:g} s"
    if not kills:
        yield Bound(text=text, value=math.nan, holds=None, remark="no kill hit a member of a group")
        return
    median_s = float(np.median(kills))
    yield Bound(text=text, value=median_s, holds=median_s <= MAX_RECOVERY_S)


def _memory(found: Findings) -> Iterator[Bound]:
    growths = {
        "driver": growth_mb_per_min(found.driver_memory),
        "worst coordinator": max(found.coordinator_growths_mb_per_min(), default=math.nan),
    }
    for name, growth in growths.items():
        text = f"memory of the {name}, growth after warm-up ≤ {MAX_GROWTH_MB_PER_MIN:g} MB/min"
        if found.watched_min < MIN_WATCHED_MIN:
            remark = f"{found.watched_min:.1f} min are too short; {MIN_WATCHED_MIN:g} are needed"
            yield Bound(text=text, value=growth, holds=None, remark=remark)
        else:
            yield Bound(text=text, value=growth, holds=growth <= MAX_GROWTH_MB_PER_MIN)
