"""Whole experiments on a real Ray."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from adaptdl.errors import UsageError
from adaptdl.runtime import ElasticConfig
from adaptdl.runtime.news import COLUMNS
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from tests.runtime.functions import linear_regression, without_data_loop
from tests.tune.functions import misbehaving, with_checkpoints
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_CPUS = 2


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left(ray_address: str) -> Iterator[None]:
    yield
    groups = [group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    assert groups == []
    wait_until(lambda: living_actors() == [], "all actors to be gone")
    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs to be free")


def living_actors() -> list[str]:
    actors = ray._private.state.actors().values()
    return [actor["ActorClassName"] for actor in actors if actor["State"] == "ALIVE"]


def run(trainable: Any, tmp_path: Path, scheduler: TrialScheduler | None = None, **more: Any) -> Any:
    return tune.run(
        trainable,
        scheduler=scheduler or AdaptDLScheduler(interval_s=1.0),
        storage_path=str(tmp_path),
        verbose=1,
        raise_on_failed_trial=False,
        **more,
    )


def results_of(analysis: Any) -> list[list[dict[str, Any]]]:
    """Per trial, its results in order."""
    return [frame.to_dict("records") for frame in analysis.trial_dataframes.values()]


def test_more_trials_than_devices_share_them_and_names_and_log_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="adaptdl")
    analysis = run(
        DistributedTrainableCreator(linear_regression()),
        tmp_path,
        config={"epochs": tune.grid_search([4, 30, 60]), "sleep_s": 0.002},
    )
    assert [trial.status for trial in analysis.trials] == ["TERMINATED"] * 3
    for trial, results in zip(analysis.trials, results_of(analysis), strict=True):
        assert [result["epoch"] for result in results] == list(range(trial.config["epochs"]))
        assert all(column in result for result in results for column in COLUMNS)
        assert str(trial) == (
            f"AdaptDLTrainable_{results[-1]['adaptdl/num_replicas']}_{results[-1]['adaptdl/num_restarts']}"
            f"_{trial.trial_id}"
        )
    last = results_of(analysis)[-1]
    assert {result["adaptdl/num_replicas"] for result in last} == {1, 2}  # it grew when the others had ended
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("reallocation ")]
    assert any(
        re.fullmatch(r'reallocation trial=\w+ 1→2 replicas reason="goodput ×[\d.]+" pause_s=\d+\.\d\d steps=\d+', line)
        for line in lines
    ), lines
    assert re.search(r"replicas\s+batch size\s+goodput", capsys.readouterr().out)


def test_asha_stops_trials_of_a_plain_function_in_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    asha = AsyncHyperBandScheduler(time_attr="training_iteration", max_t=6, grace_period=1, reduction_factor=2)
    analysis = run(
        without_data_loop(),
        tmp_path,
        AdaptDLScheduler(asha, interval_s=1.0),
        metric="score",
        mode="max",
        num_samples=3,
        config={"steps": 100, "sleep_s": 0.05},
    )
    assert [trial.status for trial in analysis.trials] == ["TERMINATED"] * 3
    assert max(len(results) for results in results_of(analysis)) == 6
    assert {str(trial) for trial in analysis.trials} == {
        f"AdaptDLTrainable_1_0_{trial.trial_id}" for trial in analysis.trials
    }
    out = capsys.readouterr().out
    assert "== Status ==" in out
    assert "AdaptDL: " in out
    assert "replicas" in out


def test_every_misbehaving_function_gets_one_clear_error_and_the_others_go_on(tmp_path: Path) -> None:
    modes = ["raises", "silent", "good"]
    analysis = run(DistributedTrainableCreator(misbehaving()), tmp_path, config={"mode": tune.grid_search(modes)})
    errors = {
        trial.config["mode"]: "" if trial.error_file is None else Path(trial.error_file).read_text()
        for trial in analysis.trials
    }
    statuses = {trial.config["mode"]: trial.status for trial in analysis.trials}
    assert statuses == {mode: "TERMINATED" if mode == "good" else "ERROR" for mode in modes}
    assert "raised ValueError: no such luck" in errors["raises"]
    assert 'raise ValueError("no such luck")' in errors["raises"]
    assert "returned without a result; it must call tune.report" in errors["silent"]


def test_more_replicas_than_the_cluster_holds_is_one_clear_error(tmp_path: Path) -> None:
    analysis = run(DistributedTrainableCreator(linear_regression(), min_replicas=3), tmp_path, config={"epochs": 1})
    (trial,) = analysis.trials
    assert trial.status == "ERROR"
    assert "`min_replicas` must not exceed what the cluster holds" in Path(trial.error_file).read_text()


def test_a_trial_without_our_scheduler_says_what_is_missing(tmp_path: Path) -> None:
    elastic = ElasticConfig(contact_timeout_s=1.0)
    trainable = DistributedTrainableCreator(linear_regression(), elastic=elastic)
    (trial,) = run(trainable, tmp_path, FIFOScheduler(), config={"epochs": 1}).trials
    assert "pass scheduler=AdaptDLScheduler()" in Path(trial.error_file).read_text()


def test_a_class_of_the_users_is_refused_before_anything_starts(tmp_path: Path) -> None:
    class Mine(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {}

    with pytest.raises(UsageError, match="is a class of its own; pass a function"):
        run(Mine, tmp_path)


class PausesOnce(FIFOScheduler):
    """Pauses a trial at its third result."""

    def __init__(self) -> None:
        super().__init__()
        self._paused: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["training_iteration"] == 3 and trial.trial_id not in self._paused:
            self._paused.add(trial.trial_id)
            return TrialScheduler.PAUSE
        return TrialScheduler.CONTINUE


def test_a_trial_that_its_scheduler_pauses_goes_on_where_it_was(tmp_path: Path) -> None:
    analysis = run(
        with_checkpoints(),
        tmp_path,
        AdaptDLScheduler(PausesOnce(), interval_s=1.0),
        config={"epochs": 6, "sleep_s": 0.05},
    )
    (trial,), (results,) = analysis.trials, results_of(analysis)
    assert trial.status == "TERMINATED"
    assert [result["epoch"] for result in results] == list(range(6))
    assert [result["began_with"] for result in results] == [-1, -1, -1, 2, 2, 2]
    assert {result["trial_id_in_replica"] for result in results} == {trial.trial_id}
    assert [result["adaptdl/num_restarts"] for result in results] == [0, 0, 0, 1, 1, 1]
    with trial.checkpoint.as_directory() as directory:
        assert Path(directory, "epoch.txt").read_text() == "5"


INTERRUPTED = """
import sys
import ray
from ray import tune
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from tests.runtime.functions import linear_regression
ray.init(address=sys.argv[1], log_to_driver=False)
tune.run(DistributedTrainableCreator(linear_regression()), scheduler=AdaptDLScheduler(interval_s=1.0), num_samples=2,
         config={"epochs": 10000}, storage_path=sys.argv[2], verbose=1)
"""


def test_ctrl_c_leaves_nothing(ray_address: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, ray_address, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    try:
        wait_until(lambda: living_actors().count("Replica") == 2, "two replicas to train", timeout_s=60)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Experiment has been interrupted" in out, out
    assert time.monotonic() - began < 20


class AtTheFirstEnd(Callback):
    """Notes which trials had reported something when the first one ended."""

    def __init__(self) -> None:
        self._reported: set[str] = set()
        self.reported: set[str] | None = None

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._reported.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self.reported is None:
            self.reported = set(self._reported)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("base", "epochs", "num_trials"),
    [
        (
            lambda: PopulationBasedTraining(
                time_attr="training_iteration", perturbation_interval=2, hyperparam_mutations={"lr": [0.1, 0.2]}
            ),
            3,
            3,
        ),
        (
            lambda: PopulationBasedTraining(
                time_attr="training_iteration",
                perturbation_interval=2,
                hyperparam_mutations={"lr": [0.1, 0.2]},
                synch=True,
            ),
            3,
            3,
        ),
        (lambda: HyperBandScheduler(time_attr="training_iteration", max_t=4, reduction_factor=2), 4, 4),
    ],
    ids=["pbt", "synchronous pbt", "hyperband"],
)
def test_schedulers_that_compare_a_population_have_all_of_it(
    base: Any, epochs: int, num_trials: int, tmp_path: Path
) -> None:
    """Of three or four trials on two devices: none ends before the three that are compared have begun."""
    at_the_first_end = AtTheFirstEnd()
    analysis = run(
        linear_regression(),
        tmp_path,
        AdaptDLScheduler(base(), interval_s=1.0, max_replicas=1),
        metric="epoch",
        mode="max",
        num_samples=num_trials,
        config={"epochs": epochs, "lr": tune.uniform(0.1, 0.2)},
        callbacks=[at_the_first_end],
    )
    assert [trial.status for trial in analysis.trials] == ["TERMINATED"] * num_trials
    assert at_the_first_end.reported is not None
    assert len(at_the_first_end.reported) >= 3
