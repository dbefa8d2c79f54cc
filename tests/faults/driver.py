"""A driver of Tune in a process of its own, to be killed: ``python -m tests.faults.driver ADDRESS STORAGE HOW``.

HOW is ``run`` or ``resume`` (tune.run, and with resume=True), ``fit`` or ``restore`` (Tuner, and Tuner.restore); or
``uneven`` or ``resume-uneven``, the first two with trials of which one ends early. What Tune sees is appended to
``seen.jsonl`` in STORAGE, trials that are complete to ``complete``, and how all ended is written to ``ended.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial

from adaptdl.tune import DistributedTrainableCreator
from tests.faults.experiments import regression, scheduler

NUM_TRIALS = 2
CONFIG = {"epochs": 16, "sleep_s": 0.03}
HELD_AT = 12
"""Trials start seconds apart, and none is to end while another one has not come far: this epoch begins when the test says so."""
EPOCHS = (4, 25)
"""Of the trials for `uneven`: the first ends long before the second."""


class Records(Callback):
    def __init__(self, path: str) -> None:
        self._path = path

    def on_trial_result(self, iteration: int, trials: Any, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        names = ("trial_id", "training_iteration", "epoch", "weights", "began_at", "time_total_s", "pid", "replica_pid")
        with open(self._path, "a") as file:
            file.write(json.dumps({**{name: result[name] for name in names}, "name": str(trial)}) + "\n")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        with Path(self._path).with_name("complete").open("a") as file:
            file.write(trial.trial_id + "\n")


class Ends(Callback):
    """Says how the trials are at the end; nothing if the driver did not live to see it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        ended = [
            {
                "trial_id": trial.trial_id,
                "name": str(trial),
                "status": trial.status,
                "path": None if trial.storage is None else trial.storage.trial_fs_path,
                "last": trial.last_result["training_iteration"],
            }
            for trial in trials
        ]
        Path(self._path).write_text(json.dumps(ended))


def main(address: str, storage: str, how: str) -> None:
    ray.init(address=address, log_to_driver=False)
    trainable = DistributedTrainableCreator(regression())
    config = {**CONFIG, "held_at": HELD_AT, "release": f"{storage}/release"}
    callbacks = [Records(f"{storage}/seen.jsonl"), Ends(f"{storage}/ended.json")]
    uneven = how.endswith("uneven")
    if uneven or how in ("run", "resume"):
        tune.run(
            trainable,
            name="experiment",
            storage_path=storage,
            config={**CONFIG, "epochs": tune.grid_search(list(EPOCHS))} if uneven else config,
            num_samples=1 if uneven else NUM_TRIALS,
            scheduler=scheduler(),
            callbacks=callbacks,
            resume=how.startswith("resume"),
            verbose=0,
        )
    elif how == "fit":
        tune.Tuner(
            trainable,
            param_space=config,
            tune_config=tune.TuneConfig(num_samples=NUM_TRIALS, scheduler=scheduler()),
            run_config=tune.RunConfig(
                name="experiment",
                storage_path=storage,
                callbacks=callbacks,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=3),
                verbose=0,
            ),
        ).fit()
    else:
        tune.Tuner.restore(f"{storage}/experiment", trainable=trainable, param_space=config).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
