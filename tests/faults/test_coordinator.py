"""A coordinator is killed: its trial goes on from its newest state, and Tune sees every result once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from adaptdl.runtime import ElasticConfig
from adaptdl.tune import AdaptDLScheduler
from tests.faults.experiments import (
    CONFIG,
    EPOCHS,
    KillsCoordinator,
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


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    return undisturbed(CONFIG)


class KillsWithAResultOnItsWay(Callback):
    """Keeps Tune's loop busy until the coordinator has kept the result after this one, and kills it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._trial: Trial | None = None
        self.pids: list[int] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if result["training_iteration"] == self._number and not self.pids:
            self._trial = trial
            self.pids = [result["pid"]]

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if self._trial is None:
            return
        trial, self._trial = self._trial, None
        before = set(states_of(trial))
        wait_until(
            lambda: set(states_of(trial)) - before, "a state that was kept while Tune does not look", timeout_s=20
        )
        os.kill(self.pids[0], signal.SIGKILL)


def check_end(
    trial: Trial, watches: Watches, expected: list[dict[str, Any]], killed: list[int], began_at_least_at: int
) -> None:
    assert trial.status == "TERMINATED"
    assert trial.num_failures == len(set(killed)) == 2
    check_results(watches.results, expected)
    check_results(logged(trial), expected)
    assert trial.last_result["training_iteration"] == trial.last_result["epoch"] + 1 == EPOCHS
    assert watches.results[-1]["began_at"] >= began_at_least_at  # not made all over again
    restarts = [int(name.split("_")[2]) for name in watches.names]
    assert restarts == sorted(restarts)
    wait_until(lambda: not any(is_alive(pid) for pid in killed), "the killed processes to be gone")
    assert vault_of(trial) == []


def test_without_checkpoints_of_tunes_it_goes_on_where_it_was(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    """Also when the driver has received a result that it has not looked at, or should have and will not."""
    kills, later, watches = KillsCoordinator(1), KillsWithAResultOnItsWay(6), Watches()
    (trial,) = run(regression(), tmp_path, kills, later, watches, config=CONFIG, max_failures=2)
    check_end(trial, watches, expected, kills.pids + later.pids, began_at_least_at=3)


def test_with_older_checkpoints_of_tunes_it_goes_on_where_it_was(
    tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    """Tune restores a checkpoint and forgets the results since. After the last one, the trial has no others to tell."""
    kills, watches = KillsCoordinator(7, EPOCHS, kept=4), Watches()
    (trial,) = run(
        regression(),
        tmp_path,
        kills,
        watches,
        config=CONFIG,
        max_failures=2,
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=4, checkpoint_at_end=False),
    )
    check_end(trial, watches, expected, kills.pids, began_at_least_at=4)


class Exploits(FIFOScheduler):
    """At its eighth result, trial 1 takes over the checkpoint that trial 0 made at its third one, as PBT does."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        (donor,) = (other for other in tune_controller.get_trials() if other.config["id"] == 0)
        if trial is donor or result["training_iteration"] != 8 or (self._folder / "exploited").exists():
            return TrialScheduler.CONTINUE
        assert donor.latest_checkpoint_result.metrics["training_iteration"] == 3
        tune_controller.pause_trial(trial, should_checkpoint=False)
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = donor.latest_checkpoint_result
        (self._folder / "exploited").touch()
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        paused = [trial for trial in tune_controller.get_trials() if trial.status == Trial.PAUSED]
        return paused[0] if paused else super().choose_trial_to_run(tune_controller)


class KillsAfterTheExploit(Callback):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._killed = False

    def on_checkpoint(self, iteration: int, trials: Any, trial: Trial, checkpoint: Any, **info: Any) -> None:
        if trial.config["id"] == 0 and trial.last_result["training_iteration"] == 3:
            (self._folder / "ready").touch()

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        goes_on = trial.status == Trial.RUNNING and (self._folder / "exploited").exists()
        if trial.config["id"] == 1 and goes_on and not self._killed:
            self._killed = True
            os.kill(result["pid"], signal.SIGKILL)


def marked() -> Any:
    """Reports who its model was made by: a buffer that goes where the model's state goes. Trial 0 waits with its fourth
    epoch until it has been exploited, trial 1 with its eighth until it can exploit."""

    def train(config: dict[str, Any]) -> None:
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl

        data = torch.utils.data.TensorDataset(torch.randn(32, 2), torch.randn(32, 1))
        loader = adl.AdaptiveDataLoader(data, batch_size=8)
        network = torch.nn.Linear(2, 1)
        network.register_buffer("made_by", torch.tensor(float(config["id"])))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        model = adl.AdaptiveDataParallel(network, optimizer)
        for epoch in adl.remaining_epochs_until(12):
            for x, y in loader:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                time.sleep(0.03)
            deadline = time.monotonic() + 60
            if epoch == (3, 7)[config["id"]]:
                flag = Path(config["folder"], ("exploited", "ready")[config["id"]])
                while not flag.exists():
                    assert time.monotonic() < deadline, f"waited 60 s for {flag}"
                    time.sleep(0.05)
            tune.report({"epoch": epoch, "made_by": network.made_by.item()})

    return train


def test_a_trial_that_took_over_anothers_state_does_not_go_back_to_its_own(tmp_path: Path) -> None:
    watches = Watches()
    trials = run(
        marked(),
        tmp_path,
        KillsAfterTheExploit(tmp_path),
        watches,
        scheduler=AdaptDLScheduler(
            Exploits(tmp_path), interval_s=1.0, max_replicas=1, elastic=ElasticConfig(snapshot_interval_s=0.5)
        ),
        config={"id": tune.grid_search([0, 1]), "folder": str(tmp_path)},
        max_failures=1,
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=3),
    )
    assert [trial.status for trial in trials] == ["TERMINATED"] * 2
    (trial,) = (trial for trial in trials if trial.config["id"] == 1)
    assert trial.num_failures == 1
    results = [result for result in watches.results if result["trial_id"] == trial.trial_id]
    assert [result["made_by"] for result in results] == [1.0] * 8 + [0.0] * 9
    assert [result["training_iteration"] for result in results] == [*range(1, 9), *range(4, 13)]
    assert [result["epoch"] for result in results] == [*range(8), *range(3, 12)]
