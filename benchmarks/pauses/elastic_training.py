"""The training function as a user of AdaptDL writes it, with a line in the log per step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch.nn import functional

import adaptdl.torch as adl
from pauses.step_log import Step, StepWriter
from pauses.workload import BATCH_SIZE, STEPS_PER_EPOCH, NumberedSamples, make_net, make_optimizer

__all__ = ["train"]

_NUM_EPOCHS = 1000
"""More than there is time for: training ends when it is told to."""


def train(config: dict[str, Any]) -> None:
    """Trains until the file ``config["stop_file"]`` is there; steps are written to ``config["steps"]``."""
    torch.set_num_threads(1)
    session = adl.current_session()
    stop_file, writer = Path(config["stop_file"]), StepWriter(config["steps"], session.replica.replica_id)
    loader = adl.AdaptiveDataLoader(NumberedSamples(), batch_size=BATCH_SIZE)
    net = make_net()
    optimizer = make_optimizer(net)
    model = adl.AdaptiveDataParallel(net, optimizer)
    for epoch in adl.remaining_epochs_until(_NUM_EPOCHS):
        for features, classes, numbers in loader:
            handed_s = time.monotonic()
            optimizer.zero_grad()
            functional.cross_entropy(model(features), classes).backward()
            optimizer.step()
            done_s = time.monotonic()
            writer.write(
                Step(
                    generation=session.generation,
                    rank=session.rank,
                    num_replicas=session.num_replicas,
                    steps=session.num_steps,
                    batch=epoch * STEPS_PER_EPOCH + int(numbers[0]) // BATCH_SIZE,
                    handed_s=handed_s,
                    done_s=done_s,
                    node_id=session.replica.node_id,
                )
            )
            if stop_file.exists():
                break
        if stop_file.exists():
            break
    tune.report({"steps": session.num_steps})
