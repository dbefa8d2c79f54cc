"""The storage fails, or what lies on it is damaged: training goes on, and never from a wrong state."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from tests.faults.experiments import (
    CONFIG,
    EPOCHS,
    Watches,
    check_results,
    logged,
    regression,
    run,
    states_of,
    undisturbed,
    vault_of,
)
from tests.processes import is_alive
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]

WIDTH = 20_000
"""Of a model whose snapshot is some megabytes."""


def said_by(pid: int) -> list[str]:
    """The lines that a process of Ray's has written to its standard error."""
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    return [line for path in folder.glob(f"worker-*-{pid}.err") for line in path.read_text().splitlines()]


class FullDisk(Callback):
    """From one result to another, the system refuses the coordinator any file beyond a size: no room for a state."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self.pid = 0
        self.kept: list[list[str]] = []
        """The states that lay there after each result since a write was refused."""

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        number, self.pid = result["training_iteration"], result["pid"]
        if number == self._first:
            wait_until(lambda: len(states_of(trial)) >= 2, "two states in the vault")
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        if number == self._last:
            wait_until(self._has_refused, "the vault to be refused")
        if self._first < number <= self._last and self._has_refused():
            self.kept.append(states_of(trial))
        if number == self._last:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _has_refused(self) -> bool:
        """A write that had begun before may still have come to its end until then."""
        return any("state of trial" in line for line in said_by(self.pid))


def test_a_full_disk_is_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    disk, watches = FullDisk(3, 8), Watches()
    (trial,) = run(
        regression(),
        tmp_path,
        disk,
        watches,
        config={**CONFIG, "width": WIDTH},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
    )
    assert trial.status == "TERMINATED"
    assert trial.num_failures == 0
    check_results(watches.results, undisturbed({**CONFIG, "width": WIDTH}))
    assert len(disk.kept[0]) >= 2
    assert all(kept == disk.kept[0] for kept in disk.kept)
    warnings = [line for line in said_by(disk.pid) if "cannot " in line]
    assert sorted("write a checkpoint" in line for line in warnings) == [False, True], warnings
    assert all("File too large" in line and trial.trial_id in line for line in warnings)
    checkpoints = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    assert len(checkpoints) == 2
    assert checkpoints[-1].metrics["training_iteration"] == EPOCHS
    lying_there = sorted(path for path in os.listdir(trial.storage.trial_fs_path) if path.startswith("checkpoint_"))
    assert lying_there == sorted(os.path.basename(result.checkpoint.path) for result in checkpoints)


class Damages(Callback):
    """Kills the coordinator of a trial, and damages states in its vault before Tune starts it again."""

    def __init__(self, damage: Callable[[Path], None], *, all_of_them: bool = False) -> None:
        self._damage, self._all = damage, all_of_them
        self.paths: list[Path] = []
        """Of the states that lay there, the newest last."""

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if self.paths or result["training_iteration"] < 6:
            return
        wait_until(lambda: len(states_of(trial)) >= 2, "two states in the vault")
        os.kill(result["pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(result["pid"]), "the coordinator to be gone")
        assert trial.storage is not None
        self.paths = [Path(trial.storage.trial_fs_path, ".adaptdl", name) for name in states_of(trial)]
        for path in self.paths if self._all else self.paths[-1:]:
            self._damage(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_the_state_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    damages, watches = Damages(truncate), Watches()
    (trial,) = run(regression(), tmp_path, damages, watches, config=CONFIG, max_failures=1)
    assert trial.status == "TERMINATED"
    expected = undisturbed(CONFIG)
    check_results(watches.results, expected)
    check_results(logged(trial), expected)
    (warning,) = [line for line in said_by(watches.results[-1]["pid"]) if "instead" in line]
    assert re.search(f"{damages.paths[-1].name}.* is damaged.*goes on from .*{damages.paths[-2].name} instead", warning)
    assert vault_of(trial) == []


def test_a_trial_of_which_nothing_can_be_read_ends_with_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    damages = Damages(truncate, all_of_them=True)
    (trial,) = run(regression(), tmp_path, damages, config={**CONFIG, "epochs": 100}, max_failures=2)
    assert trial.status == "ERROR"
    error = Path(trial.error_file or "").read_text()
    assert error.count("no saved state of trial") == 2  # every time that Tune has started it
    assert all(str(path) in error for path in damages.paths)
    assert "Bring back a good copy, or remove" in error
    assert states_of(trial) == [path.name for path in damages.paths]  # still there, for whoever can mend them


def test_the_state_of_another_model_is_one_error_and_no_restarts(tmp_path: Path) -> None:
    (trial,) = run(
        regression(),
        tmp_path,
        config={"epochs": 1},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    )
    assert trial.checkpoint is not None
    (other,) = run(regression(), tmp_path, config={"epochs": 2, "width": 2}, restore=trial.checkpoint.path)
    assert other.status == "ERROR"
    assert other.num_failures == 1
    error = Path(other.error_file or "").read_text()
    assert "SnapshotError: the snapshot of model 'model' is from another module" in error
