"""All that is found out about a storm, from its log of batches and the undisturbed trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from storm.experiment import TrialOutcome
from storm.history import History, history
from storm.memory import growth_mb_per_min
from storm.recovering import Recovery, recoveries
from storm.running import StormRun
from storm.training import EpochEnd, read_states

__all__ = ["Findings", "TrialFindings", "find"]


@dataclass(frozen=True, kw_only=True)
class TrialFindings:
    """Of one trial."""

    trial: int
    outcome: TrialOutcome | None
    """None: it did not come to an end within the limit."""
    history: History
    accuracy: float
    """At the end; NaN if there is none."""
    undisturbed_accuracy: float
    difference: float
    """Largest one of a final parameter from the undisturbed trial's, of all replicas that saw the end, relative to the
    largest parameter; NaN if none saw it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Of all."""

    num_epochs: int
    per_trial: Sequence[TrialFindings]
    recoveries: Sequence[Recovery]
    left_processes: Sequence[str] | None
    """None: it was not looked for, as the trials were ended by force."""
    left_placement_groups: Sequence[str] | None
    driver_memory: Sequence[tuple[float, int]]
    """(monotonic seconds, bytes)."""
    coordinators_memory: Mapping[int, Sequence[tuple[float, int]]]

    @property
    def num_trials(self) -> int:
        return len(self.per_trial)

    @property
    def trials(self) -> list[TrialOutcome]:
        """Those that came to an end."""
        return [found.outcome for found in self.per_trial if found.outcome is not None]

    @property
    def unfinished(self) -> list[TrialOutcome]:
        """Those that came to another end than they should."""
        return [trial for trial in self.trials if trial.status != "TERMINATED"]

    @property
    def num_finished(self) -> int:
        return len(self.trials) - len(self.unfinished)

    @property
    def histories(self) -> list[History]:
        return [found.history for found in self.per_trial]

    @property
    def num_steps(self) -> int:
        """That count."""
        return sum(len(history.steps) for history in self.histories)

    @property
    def num_redone(self) -> int:
        return sum(history.num_redone for history in self.histories)

    @property
    def watched_min(self) -> float:
        """For how long memory was watched."""
        return (self.driver_memory[-1][0] - self.driver_memory[0][0]) / 60 if self.driver_memory else 0.0

    def coordinator_growths_mb_per_min(self) -> list[float]:
        """One for each that was there for long enough."""
        found = [growth_mb_per_min(samples) for samples in self.coordinators_memory.values()]
        return [growth for growth in found if not math.isnan(growth)]


def find(run: StormRun, *, num_epochs: int, storm: Path, undisturbed: Path) -> Findings:
    """Reads the logs to their end, and compares.

    Args:
        run: the storm.
        num_epochs: of each trial.
        storm: where the trials in the storm have written their states.
        undisturbed: where the others have.
    """
    batches, per_trial = {}, []
    for trial, log in run.logs.items():
        log.read()
        log.close()
        batches[trial] = log.batches
        outcomes: list[TrialOutcome] = [] if run.outcome is None else run.outcome.trials
        (expected,) = read_states(undisturbed / str(trial), num_epochs - 1)
        reached = read_states(storm / str(trial), num_epochs - 1)
        per_trial.append(
            TrialFindings(
                trial=trial,
                outcome=next((outcome for outcome in outcomes if outcome.trial == trial), None),
                history=history(batches[trial]),
                accuracy=reached[0].accuracy if reached else math.nan,
                undisturbed_accuracy=expected.accuracy,
                difference=max((_difference(one, expected) for one in reached), default=math.nan),
            )
        )
    return Findings(
        num_epochs=num_epochs,
        per_trial=per_trial,
        recoveries=list(recoveries(run.strikes, batches, {found.trial: found.history for found in per_trial})),
        left_processes=run.left_processes,
        left_placement_groups=None if run.outcome is None else run.outcome.placement_groups,
        driver_memory=run.driver_memory,
        coordinators_memory=run.coordinators_memory,
    )


def _difference(one: EpochEnd, other: EpochEnd) -> float:
    return float(torch.max(torch.abs(one.parameters - other.parameters)) / torch.max(torch.abs(other.parameters)))
