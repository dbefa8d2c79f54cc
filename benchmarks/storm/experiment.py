"""The experiment itself: Tune with AdaptDL's scheduler, as a user runs it, and what is left of it when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.placement_group import placement_group_table

from adaptdl.policy import Policy
from adaptdl.runtime import ElasticConfig
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator

__all__ = ["Experiment", "Outcome", "TrialOutcome", "run_experiment"]

_SETTLING_S = 15.0
"""How long what belongs to trials that have ended may take to be given back."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is run."""

    name: str
    function: Callable[[dict[str, Any]], None]
    config: dict[str, Any]
    num_trials: int
    """Each finds its number as `config["trial"]`."""
    policy: Policy
    interval_s: float
    elastic: ElasticConfig
    directory: Path


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How one trial has ended."""

    trial: int
    status: str
    """Tune's: TERMINATED is what it should be."""
    num_results: int
    result: dict[str, Any]
    """The last one."""
    error: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the experiment has ended."""

    took_s: float
    trials: list[TrialOutcome]
    placement_groups: list[str] = field(default_factory=list)
    """Names of those that are left, some time after the end."""


def run_experiment(experiment: Experiment) -> Outcome:
    """Runs it on the cluster that this process is connected to."""
    began_s = time.monotonic()
    analysis = tune.run(
        DistributedTrainableCreator(experiment.function, resources_per_replica={"CPU": 1}),
        name=experiment.name,
        config={**experiment.config, "trial": tune.grid_search(list(range(experiment.num_trials)))},
        scheduler=AdaptDLScheduler(
            policy=experiment.policy, interval_s=experiment.interval_s, elastic=experiment.elastic
        ),
        storage_path=str(experiment.directory / "results"),
        raise_on_failed_trial=False,
        verbose=0,
    )
    took_s = time.monotonic() - began_s
    trials = [
        TrialOutcome(
            trial=trial.config["trial"],
            status=trial.status,
            num_results=(trial.last_result or {}).get("training_iteration", 0),
            result={key: value for key, value in (trial.last_result or {}).items() if isinstance(value, int | float)},
            error=_last_line(trial.error_file),
        )
        for trial in analysis.trials
    ]
    return Outcome(took_s=took_s, trials=trials, placement_groups=_left_placement_groups())


def _last_line(error_file: str | None) -> str:
    if error_file is None or not Path(error_file).exists():
        return ""
    lines = [line.strip() for line in Path(error_file).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _left_placement_groups() -> list[str]:
    """Those that are still there when all had time to go."""
    deadline = time.monotonic() + _SETTLING_S
    while True:
        table = placement_group_table()
        left = [entry["name"] or entry["placement_group_id"] for entry in table.values() if entry["state"] != "REMOVED"]
        if not left or time.monotonic() > deadline:
            return sorted(left)
        time.sleep(0.5)
