"""Trainings in which the batch size changes, or the number of replicas."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adaptdl.plan import Place, Plan
from first_batches.changes import Change, changes
from first_batches.replicas import Replica
from first_batches.training import STEPS_PER_CHANGE, Handed, Setting

__all__ = ["change_batch_size", "reallocate"]

_LOOK_S = 0.05


def change_batch_size(num_workers: int, step_s: float, count: int) -> list[Change]:
    """One replica, so many changes there and so many back."""

    def run(setting: Setting, start: Callable[..., Replica]) -> list[list[Handed]]:
        return [start(setting).end()]

    return _run(num_workers, step_s, 2 * count, run)


def reallocate(num_workers: int, step_s: float, count: int) -> list[Change]:
    """A second replica comes, and goes, so many times."""

    def run(setting: Setting, start: Callable[..., Replica]) -> list[list[Handed]]:
        source, logs = start(setting), []
        for number in range(count):
            _wait_for_steps(source)
            place: Place = source.call("place")
            newcomer = start(setting, place)
            newcomer.wait_for("ready")
            store = source.call("open_store")
            source.wait_for("switched")
            both, alone = (source.member, newcomer.member), (source.member,)
            name = source.member.replica_id
            grow = Plan(
                generation=2 * number + 2,
                members=both,
                source=name,
                newcomers=frozenset({newcomer.member.replica_id}),
                store=store,
                target=place.position,
            )
            newcomer.call("join", grow)
            source.call("reallocate", grow)
            _wait_for_steps(source)
            source.wait_for("switched")
            source.call("reallocate", Plan(generation=2 * number + 3, members=alone, source=name, store=store))
            logs.append(newcomer.end())
        _wait_for_steps(source)
        (setting.directory / "stop").touch()
        return [source.end(), *logs]

    return _run(num_workers, step_s, 0, run)


def _wait_for_steps(source: Replica) -> None:
    """So many as there have to be between two changes."""
    steps = source.call("place").steps + STEPS_PER_CHANGE
    while source.call("place").steps < steps:
        time.sleep(_LOOK_S)


def _run(
    num_workers: int,
    step_s: float,
    num_changes: int,
    run: Callable[[Setting, Callable[..., Replica]], list[list[Handed]]],
) -> list[Change]:
    """What has changed in one training; its processes end with it, whatever happens."""
    started: list[Replica] = []

    def start(setting: Setting, place: Place | None = None) -> Replica:
        started.append(Replica(f"replica-{len(started)}", setting, place))
        return started[-1]

    with tempfile.TemporaryDirectory(prefix="adaptdl-first-batches-") as directory:
        path = Path(directory)
        setting = Setting(num_workers=num_workers, step_s=step_s, num_changes=num_changes, directory=path)
        try:
            log, *newcomers = run(setting, start)
            return list(changes(log, newcomers, path / "counts"))
        finally:
            for replica in started:
                replica.kill()
