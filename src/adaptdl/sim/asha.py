"""Asynchronous successive halving (Li et al., MLSys 2020), as Ray Tune's ASHAScheduler does it with one bracket.

η                    ``reduction_factor``: of the trials at a rung, one in η goes on       > 1
rung k               ``grace_epochs``·η^k epochs, as long as that is less than all of them
cutoff               the (1 − 1/η)-quantile of the scores recorded at a rung so far
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.sim.job import JobSpec
from adaptdl.sim.simulator import Stopper

__all__ = ["AshaStopper", "asha_rungs"]


class AshaStopper(Stopper):
    """Stops a trial that arrives at a rung with a score below the cutoff.

    Nobody waits for anybody: the first one at a rung always goes on, and what a trial is compared with are the scores
    recorded before its own, those of stopped trials included. It remembers them, so that each simulation needs one of
    its own.
    """

    def __init__(self, *, reduction_factor: float = 4.0) -> None:
        """`reduction_factor`: η. Raises UsageError unless it is > 1."""
        if not reduction_factor > 1:
            raise UsageError(f"`reduction_factor > 1` must hold, but got (reduction_factor={reduction_factor}).")
        self._quantile = 1 - 1 / reduction_factor
        self._scores: defaultdict[int, list[float]] = defaultdict(list)
        """By the number of epochs at the rung, so that trials with other rungs are not mixed up."""

    def goes_on(self, spec: JobSpec, rung: int, score: float) -> bool:
        """Records the score, and compares it with those before."""
        scores = self._scores[spec.rungs[rung][0]]
        survives = not scores or score >= float(np.quantile(scores, self._quantile))
        scores.append(score)
        return survives


def asha_rungs(num_epochs: int, *, grace_epochs: int = 1, reduction_factor: float = 4.0) -> list[int]:
    """Numbers of epochs after which a trial of `num_epochs` is judged, ascending.

    Raises:
        UsageError: `grace_epochs >= 1` and `reduction_factor > 1` do not hold.
    """
    if grace_epochs < 1 or not reduction_factor > 1:
        raise UsageError(
            "`grace_epochs >= 1` and `reduction_factor > 1` must hold, but got "
            f"(grace_epochs={grace_epochs}, reduction_factor={reduction_factor})."
        )
    rungs: list[int] = []
    epochs = float(grace_epochs)
    while round(epochs) < num_epochs:
        if not rungs or round(epochs) > rungs[-1]:
            rungs.append(round(epochs))
        epochs *= reduction_factor
    return rungs
