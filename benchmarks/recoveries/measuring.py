"""Makes the losses, one by one, and measures what comes after each."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storm.batch_log import Batch, ReplicaLog, TrialLog
from storm.cluster import Nodes
from storm.driver import Driver
from storm.history import first_after, history
from storm.processes import kill

__all__ = ["Loss", "Recovered", "lose_and_measure"]

logger = logging.getLogger(__name__)

_STEADY_STEPS = 70
"""Made by both workers before each loss: the peer's checkpoints come every 40."""
_STEADY_LIMIT_S = 240.0
"""Until both workers train again: the peer takes a minute to notice a new node."""
_RECOVERY_LIMIT_S = 240.0
_LOOK_INTERVAL_S = 0.1
"""How often the log is read. Times are those in the log."""


class Loss(enum.Enum):
    """What happens."""

    FOLLOWER = "process of rank 1 killed"
    LEADER = "process of rank 0 killed"
    FOLLOWERS_NODE = "node of rank 1 lost"
    LEADERS_NODE = "node of rank 0 lost"

    @property
    def rank(self) -> int:
        """Who is hit."""
        return int(self in (Loss.FOLLOWER, Loss.FOLLOWERS_NODE))

    @property
    def is_of_node(self) -> bool:
        return self in (Loss.FOLLOWERS_NODE, Loss.LEADERS_NODE)


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What came after one loss."""

    took_s: float
    """To the first batch that a later group of workers was handed."""
    num_redone: int
    """Completed steps that were made again."""
    num_replicas: int
    """That training went on with."""


def lose_and_measure(
    losses: Sequence[Loss], nodes: Nodes, directory: Path, run: Callable[[Path, dict[str, str]], Any]
) -> dict[Loss, list[Recovered]]:
    """Makes these losses, each when two workers train on a node each.

    Args:
        losses: one after another.
        nodes: two, of one CPU each; as many are there afterwards.
        directory: a new one, for the files of the run.
        run: trains, in a process that is connected to the cluster; is given the directory, and the config of the training
            function: ``batches``, where it writes those, and ``stop_file``, until which it trains.

    Raises:
        TimeoutError: the message says what was waited for.
        RuntimeError: training has ended.
    """
    directory.mkdir()
    stop_file, log = directory / "stop", TrialLog(directory / "batches")
    config = {"batches": str(directory / "batches"), "stop_file": str(stop_file)}
    driver = Driver(partial(run, directory, config), nodes.address, directory / "driver.log")
    try:
        return _measure(losses, nodes, log, driver)
    finally:
        stop_file.touch()
        driver.end()
        log.close()


def _measure(losses: Sequence[Loss], nodes: Nodes, log: TrialLog, driver: Driver[Any]) -> dict[Loss, list[Recovered]]:
    found: dict[Loss, list[Recovered]] = {}
    for loss in losses:
        victim = _wait_until_steady(log, driver, loss)
        generation = victim.batches[-1].generation
        if loss.is_of_node:
            at_s = nodes.lose(victim.node_id)
        else:
            at_s = time.monotonic()
            kill([victim.pid])
        first = _wait_for_step(log, driver, at_s, generation, loss)
        if loss.is_of_node:
            nodes.add()
        rollbacks = history(log.batches).rollbacks
        recovered = Recovered(
            took_s=first.handed_s - at_s,
            num_redone=sum(rollback.num_steps for rollback in rollbacks if rollback.at_s == first.handed_s),
            num_replicas=first.num_replicas,
        )
        logger.info("%s: %s", loss.value, recovered)
        found.setdefault(loss, []).append(recovered)
    return found


def _wait_until_steady(log: TrialLog, driver: Driver[Any], loss: Loss) -> ReplicaLog:
    """Until both workers have made some steps together; returns the one to be hit."""
    deadline = time.monotonic() + _STEADY_LIMIT_S
    while True:
        _look(log, driver)
        newest = log.newest
        if newest is not None and newest.num_replicas == 2:
            members = [
                replica
                for replica in log.replicas
                if replica.batches and replica.batches[-1].generation == newest.generation
            ]
            steps = [sum(batch.generation == newest.generation for batch in one.batches) for one in members]
            if len(members) == 2 and min(steps) >= _STEADY_STEPS:
                return next(replica for replica in members if replica.batches[-1].rank == loss.rank)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {_STEADY_LIMIT_S:g} s for two workers to train, before: {loss.value}; newest is {newest}"
            )


def _wait_for_step(log: TrialLog, driver: Driver[Any], at_s: float, generation: int, loss: Loss) -> Batch:
    deadline = time.monotonic() + _RECOVERY_LIMIT_S
    while True:
        _look(log, driver)
        if log.newest is not None and log.newest.generation > generation:
            first = first_after(log.batches, at_s, generation)
            assert first is not None
            return first
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_RECOVERY_LIMIT_S:g} s for the next step, after: {loss.value}")


def _look(log: TrialLog, driver: Driver[Any]) -> None:
    if driver.is_over:
        raise RuntimeError(f"training must go on until it is told to stop, but ended: {driver.outcome()}")
    time.sleep(_LOOK_INTERVAL_S)
    log.read()
