"""The experiment and the storm beside it, until the trials have ended or the time is up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adaptdl.runtime import ElasticConfig
from storm.batch_log import TrialLog
from storm.cluster import started_nodes
from storm.driver import Driver
from storm.experiment import Experiment, Outcome, run_experiment
from storm.memory import MemoryWatch
from storm.processes import descendants, title
from storm.random_policy import RandomPolicy
from storm.schedule import Weather, draw_events
from storm.striking import Storm, Strike
from storm.training import train

__all__ = ["NUM_TRIALS", "StormRun", "run_storm"]

logger = logging.getLogger(__name__)

NUM_TRIALS = 8
_NUM_NODES, _CPUS_PER_NODE = 4, 6
"""With a node less there is still room for two replicas of each trial. They sleep for most of the time."""
_INTERVAL_S = 5.0
_ELASTIC = ElasticConfig(snapshot_interval_s=1.0)
"""A trial that has lost all its replicas goes on from a snapshot: one a second costs little for a model this small, and
keeps small what is redone then."""
_START_LIMIT_S = 240.0
"""Until all trials have made a step on two replicas; on two cores the processes take a minute to start."""
_SETTLING_S = 15.0
"""How long processes of trials that have ended may take to be gone."""
_COORDINATOR = "ray::AdaptDLTrainable"
_OURS = ("ray::Replica", _COORDINATOR)


@dataclass(kw_only=True)
class StormRun:
    """What is known when it is over."""

    strikes: Sequence[Strike]
    num_missed: int
    """Events that found nobody to hit."""
    took_s: float
    """From the begin of the storm to the end of the trials."""
    outcome: Outcome | None
    """None: they did not end within twice the storm's duration."""
    left_processes: Sequence[str] | None
    """None: it was not looked for, as the trials were ended by force."""
    driver_memory: Sequence[tuple[float, int]]
    """(monotonic seconds, bytes)."""
    coordinators_memory: Mapping[int, Sequence[tuple[float, int]]]
    logs: Mapping[int, TrialLog] = field(repr=False)
    """Trial → its batches."""


def run_storm(config: dict[str, Any], *, seed: int, duration_s: float, directory: Path) -> StormRun:
    """Starts a cluster, starts the trials, and lets the storm rage.

    Args:
        config: of :func:`storm.training.train`, without the number of the trial.
        seed: of all that happens.
        duration_s: of the storm; the trials may take twice as long.
        directory: for the log and the results of the experiment.

    Raises:
        TimeoutError: not all trials made a first step.
        RuntimeError: the driver failed.
    """
    logs = {trial: TrialLog(Path(config["directory"], str(trial))) for trial in range(NUM_TRIALS)}
    with started_nodes(_NUM_NODES, _CPUS_PER_NODE) as nodes:
        experiment = Experiment(
            name="chaos",
            function=train,
            config=config,
            num_trials=NUM_TRIALS,
            policy=RandomPolicy(seed, _INTERVAL_S),
            interval_s=_INTERVAL_S,
            elastic=_ELASTIC,
            directory=directory,
        )
        driver = Driver(partial(run_experiment, experiment), nodes.address, directory / "experiment.log")
        memory, outcome = MemoryWatch(), None
        try:
            _wait_for_first_steps(driver, logs)
            storm = Storm(draw_events(seed, Weather(duration_s=duration_s)), nodes, logs)
            while not driver.is_over and storm.elapsed_s < 2 * duration_s:
                storm.do_what_is_due()
                if memory.is_due:
                    memory.sample([driver.pid, *_titled((_COORDINATOR,))])
                time.sleep(0.02)
            took_s = storm.elapsed_s
            if driver.is_over:
                outcome = driver.outcome()
            else:
                logger.warning("FAILED: waited %.0f s for the trials to end", took_s)
            left = _left_processes() if outcome is not None else None
        finally:
            driver.dismiss(wait=outcome is not None)
    return StormRun(
        strikes=storm.strikes,
        num_missed=storm.num_missed,
        took_s=took_s,
        outcome=outcome,
        left_processes=left,
        driver_memory=memory.samples.pop(driver.pid, []),
        coordinators_memory=memory.samples,
        logs=logs,
    )


def _wait_for_first_steps(driver: Driver[Outcome], logs: Mapping[int, TrialLog]) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while missing := [trial for trial, log in logs.items() if log.newest is None or log.newest.num_replicas < 2]:
        for trial in missing:
            logs[trial].read()
        if driver.is_over:
            raise RuntimeError(
                f"the experiment ended before trials {missing} had made a step on two replicas: {driver.outcome()}"
            )
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_START_LIMIT_S:g} s for the first steps on two replicas of trials {missing}")
        time.sleep(0.2)
    logger.info("all trials have made a step on two replicas")


def _titled(titles: tuple[str, ...]) -> list[int]:
    """Our processes that call themselves so."""
    return [pid for pid in descendants(os.getpid()) if title(pid).startswith(titles)]


def _left_processes() -> list[str]:
    """Those of trials that are there though all trials have ended, some time later."""
    deadline = time.monotonic() + _SETTLING_S
    while (left := _titled(_OURS)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [f"{pid} {title(pid)}" for pid in left]
