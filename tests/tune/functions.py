"""Training functions for the tests with Tune; made inside functions, as in `tests.runtime.functions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TrainingFunction = Callable[[dict[str, Any]], None]


def with_checkpoints() -> TrainingFunction:
    """Reports a checkpoint of its own each epoch, and what it finds when it starts."""

    def train(config: dict[str, Any]) -> None:
        import tempfile
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl

        found = tune.get_checkpoint()
        began_with = None
        if found is not None:
            with found.as_directory() as directory:
                began_with = int(Path(directory, "epoch.txt").read_text())
        data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        loader = adl.AdaptiveDataLoader(data, batch_size=16, shuffle=True)
        network = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        model = adl.AdaptiveDataParallel(network, optimizer)
        for epoch in adl.remaining_epochs_until(config["epochs"]):
            for x, y in loader:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                time.sleep(config.get("sleep_s", 0.0))
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "epoch.txt").write_text(str(epoch))
                metrics = {
                    "epoch": epoch,
                    "began_with": -1 if began_with is None else began_with,
                    "trial_id_in_replica": tune.get_context().get_trial_id(),
                }
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))

    return train


def misbehaving() -> TrainingFunction:
    """Does what the config's `mode` says."""

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        match config["mode"]:
            case "raises":
                raise ValueError("no such luck")
            case "silent":
                return
            case "good":
                tune.report({"score": 1.0})

    return train


def together() -> TrainingFunction:
    """Two epochs, between which it waits until all trials run.

    Config: directory, num_trials.
    """

    def train(config: dict[str, Any]) -> None:
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl

        here = Path(config["directory"])
        loader = adl.AdaptiveDataLoader(torch.utils.data.TensorDataset(torch.zeros(8)), batch_size=4)
        for epoch in adl.remaining_epochs_until(2):
            for _ in loader:
                pass
            (here / tune.get_context().get_trial_id()).touch()
            deadline = time.monotonic() + 120
            while len(list(here.iterdir())) < config["num_trials"]:
                if time.monotonic() > deadline:
                    raise TimeoutError("waited 120 s for the other trials")
                time.sleep(0.1)
            tune.report({"epoch": epoch})

    return train
