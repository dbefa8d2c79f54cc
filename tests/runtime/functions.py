"""Training functions for the tests. Each is made inside a function, so that it is pickled whole: replicas cannot import
the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TrainingFunction = Callable[[dict[str, Any]], None]


def linear_regression() -> TrainingFunction:
    """Reports for each epoch the parameters and the samples seen; the batch size is fixed.

    Config: epochs, samples, batch_size, sleep_s (per sample), fail_at (epoch), exit_at (epoch).
    """

    def train(config: dict[str, Any]) -> None:
        import contextlib
        import os
        import time

        import torch
        from ray import tune

        import adaptdl.torch as adl

        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(config.get("samples", 160), 4, dtype=torch.float64, generator=generator)
        data = torch.utils.data.TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
        loader = adl.AdaptiveDataLoader(data, batch_size=config.get("batch_size", 16), shuffle=True)
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 1, dtype=torch.float64)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
        model = adl.AdaptiveDataParallel(network, optimizer)
        for epoch in adl.remaining_epochs_until(config["epochs"]):
            for x, y in loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                time.sleep(config.get("sleep_s", 0.0005) * len(x))
                if config.get("exit_at") == epoch:
                    with contextlib.suppress(FileExistsError), open(config["exit_flag"], "x"):  # one replica only
                        os._exit(1)
            if config.get("fail_at") == epoch:
                raise ValueError("no such luck")
            weights = torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
            tune.report({"epoch": epoch, "weights": weights.tolist(), "loss": loss.item()})

    return train


def without_data_loop() -> TrainingFunction:
    """A plain function, as many users of Tune have them."""

    def train(config: dict[str, Any]) -> None:
        import time

        from ray import tune

        for step in range(config.get("steps", 3)):
            time.sleep(config.get("sleep_s", 0.0))
            tune.report({"score": step})

    return train


def held_at_its_end() -> TrainingFunction:
    """Trains for two epochs, and reports the last one and ends on each replica when it may.

    Config: directory, in which a replica says that it is there (``there-<rank>``) and is told that it may end
    (``end-<rank>``); exits (``sys.exit`` instead of a return).
    """

    def train(config: dict[str, Any]) -> None:
        import sys
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl

        data = torch.utils.data.TensorDataset(torch.ones(64, 1))
        loader = adl.AdaptiveDataLoader(data, batch_size=8)
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        model = adl.AdaptiveDataParallel(network, optimizer)
        for epoch in adl.remaining_epochs_until(2):
            for (x,) in loader:
                optimizer.zero_grad()
                model(x).mean().backward()
                optimizer.step()
            if epoch == 1:
                rank = adl.current_session().rank
                Path(config["directory"], f"there-{rank}").touch()
                until = time.monotonic() + 60
                while not Path(config["directory"], f"end-{rank}").exists() and time.monotonic() < until:
                    time.sleep(0.02)
            tune.report({"epoch": epoch})
            if epoch == 1 and config.get("exits"):
                sys.exit()

    return train
