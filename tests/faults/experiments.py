"""Whole experiments for the tests with faults: what they run, how they are watched, and what must be true at their end."""

from __future__ import annotations

import json
import os
import signal
import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from adaptdl.runtime import ElasticConfig
from adaptdl.torch.ambient import close_local_session
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from adaptdl.tune.checkpoint import Manifest
from adaptdl.tune.vault import VaultPlace
from tests.waiting import wait_until

NUM_CPUS = 2
EPOCHS = 10
CONFIG = {"epochs": EPOCHS, "sleep_s": 0.02}
"""Of `regression`, where a test does not say otherwise."""


def regression() -> Callable[[dict[str, Any]], None]:
    """Reports its (first) parameters after each epoch; float64, a fixed batch size, the data in an order of its own.

    Config: epochs, sleep_s (per step), width (of the model, to make another one), checkpoints (of the user's own), held_at (an
    epoch, which does not begin before the file `release` is there).
    """

    def train(config: dict[str, Any]) -> None:
        import contextlib
        import os
        import tempfile
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl

        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(64, 4, dtype=torch.float64, generator=generator)
        data = torch.utils.data.TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
        loader = adl.AdaptiveDataLoader(data, batch_size=8, shuffle=True)
        torch.manual_seed(0)
        network = torch.nn.Linear(4, config.get("width", 1), dtype=torch.float64)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.5)
        model = adl.AdaptiveDataParallel(network, optimizer)
        began_at = adl.finished_epochs()
        for epoch in adl.remaining_epochs_until(config["epochs"]):
            while epoch == config.get("held_at") and not os.path.exists(config["release"]):
                time.sleep(0.05)
            for x, y in loader:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y.expand(-1, network.out_features)).backward()
                optimizer.step()
                time.sleep(config.get("sleep_s", 0.01))
            weights = torch.cat([parameter.detach().reshape(-1)[:20] for parameter in network.parameters()]).tolist()
            metrics = {"epoch": epoch, "weights": weights, "began_at": began_at, "replica_pid": os.getpid()}
            with contextlib.ExitStack() as stack:
                checkpoint = None
                if config.get("checkpoints"):
                    directory = stack.enter_context(tempfile.TemporaryDirectory())
                    Path(directory, "epoch.txt").write_text(str(epoch))
                    checkpoint = tune.Checkpoint.from_directory(directory)
                tune.report(metrics, checkpoint=checkpoint)

    return train


def undisturbed(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What `regression` reports when nothing happens to it, on one replica and without Ray."""
    reported: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], **_: Any) -> None:
        reported.append(metrics)

    close_local_session()
    with unittest.mock.patch.object(tune, "report", report):
        regression()({**config, "sleep_s": 0.0, "checkpoints": False})
    close_local_session()
    return reported


@contextmanager
def local_ray() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()


def run(function: Any, tmp_path: Path, *callbacks: Callback, **more: Any) -> list[Trial]:
    """One experiment; its trials."""
    more.setdefault("scheduler", scheduler())
    analysis = tune.run(
        DistributedTrainableCreator(function),
        name="experiment",
        storage_path=str(tmp_path),
        callbacks=list(callbacks),
        verbose=0,
        raise_on_failed_trial=False,
        **more,
    )
    trials: list[Trial] = analysis.trials
    return trials


def scheduler() -> AdaptDLScheduler:
    return AdaptDLScheduler(interval_s=1.0, max_replicas=1, elastic=ElasticConfig(snapshot_interval_s=0.5))


class KillsCoordinator(Callback):
    """Kills the coordinator of a trial right after these results were seen, each once, and when that many are kept."""

    def __init__(self, *numbers: int, kept: int = 0) -> None:
        self._numbers = set(numbers)
        self._kept = kept
        self.pids: list[int] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        if result["training_iteration"] in self._numbers:
            self._numbers.discard(result["training_iteration"])
            assert trial.storage is not None
            path = trial.storage.trial_fs_path
            wait_until(lambda: num_kept(path) >= self._kept, f"a state with {self._kept} results", timeout_s=20)
            self.pids.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)


class Watches(Callback):
    """Writes down what Tune has seen."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.names: list[str] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self.results.append(dict(result))
        self.names.append(str(trial))


def logged(trial: Trial) -> list[dict[str, Any]]:
    """The rows of a trial's ``result.json`` on the storage."""
    assert trial.storage is not None
    path = Path(trial.storage.trial_fs_path, "result.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def vault_of(trial: Trial) -> list[str]:
    """The files of a trial's vault."""
    assert trial.storage is not None
    folder = Path(trial.storage.trial_fs_path, ".adaptdl")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def states_of(trial: Trial) -> list[str]:
    """The names of the complete states in a trial's vault, the newest last; what is being written is not one yet."""
    return [name for name in vault_of(trial) if name.endswith(".zip")]


def num_kept(trial_path: str) -> int:
    """How many results are contained in what the vault of a trial has kept."""
    place = VaultPlace.of(None, trial_path)
    assert place is not None
    manifests = [found.manifest for found in place.find()]
    return max((manifest.record.num_contained for manifest in manifests if isinstance(manifest, Manifest)), default=0)


def check_results(results: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Every result once, in order, and with the parameters of the undisturbed run."""
    numbers = [result["training_iteration"] for result in results]
    assert numbers == list(range(1, len(expected) + 1)), numbers
    assert [result["epoch"] for result in results] == [result["epoch"] for result in expected]
    for result, other in zip(results, expected, strict=True):
        assert result["weights"] == pytest.approx(other["weights"], rel=1e-10, abs=1e-12)
    times = [result["time_total_s"] for result in results]
    assert times == sorted(times)


def wait_until_empty(look: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    """Waits until `look` finds nothing; says what it has found last if it does not come to that."""
    deadline = time.monotonic() + timeout_s
    while left := look():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for these {what} to go: {left}"
        time.sleep(0.05)


def living_actors() -> list[str]:
    actors = ray._private.state.actors().values()
    return [actor["ActorClassName"] for actor in actors if actor["State"] != "DEAD"]


def living_groups() -> set[str]:
    """The ids of all placement groups that are there or will be."""
    groups = ray.util.placement_group_table().items()
    return {group_id for group_id, group in groups if group["state"] != "REMOVED"}
