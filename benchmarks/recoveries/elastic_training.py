"""The training function as a user of AdaptDL writes it, with a line in the log per batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from storm.batch_log import BatchWriter
from torch.nn import functional

import adaptdl.torch as adl
from recoveries.workload import BATCH_SIZE, STEP_S, make_net, make_optimizer, make_samples

__all__ = ["train"]

_NUM_EPOCHS = 1000
"""More than there is time for: training ends when it is told to."""


def train(config: dict[str, Any]) -> None:
    """Trains until the file ``config["stop_file"]`` is there; batches are written to ``config["batches"]``."""
    torch.set_num_threads(1)
    session = adl.current_session()
    stop_file = Path(config["stop_file"])
    writer = BatchWriter(Path(config["batches"]), session.replica.replica_id, session.replica.node_id)
    loader = adl.AdaptiveDataLoader(make_samples(), batch_size=BATCH_SIZE)
    net = make_net()
    optimizer = make_optimizer(net)
    model = adl.AdaptiveDataParallel(net, optimizer)
    for epoch in adl.remaining_epochs_until(_NUM_EPOCHS):
        for features, classes, numbers in loader:
            writer.handed_out(
                generation=session.generation,
                rank=session.rank,
                num_replicas=session.num_replicas,
                step=session.num_steps,
                epoch=epoch,
                samples=numbers.tolist(),
            )
            time.sleep(STEP_S)
            optimizer.zero_grad()
            functional.cross_entropy(model(features), classes).backward()
            optimizer.step()
            if stop_file.exists():
                break
        if stop_file.exists():
            break
    adl.report({"steps": session.num_steps})
