"""The same losses under Ray Train's elastic mode: DDP in one or two workers, with a checkpoint every 40 steps.

Written as Ray's documentation has it. The workers look for a change of the cluster every 5 s instead of every 60 s.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from storm.cluster import Nodes

from recoveries.measuring import Loss, Recovered, lose_and_measure

__all__ = ["run_peer"]

_STEPS_PER_CHECKPOINT = 40
_LOOK_INTERVAL_S = 5.0
_LOSSES = (Loss.FOLLOWERS_NODE, Loss.FOLLOWER)
"""Ranks make no difference: all workers start again from the checkpoint."""


def run_peer(nodes: Nodes, count: int, directory: Path) -> dict[Loss, list[Recovered]]:
    """Loses a worker, and a worker's node, `count` times each. For the rest see
    :func:`recoveries.measuring.lose_and_measure`."""
    return lose_and_measure(_LOSSES * count, nodes, directory, _fit)


def _fit(directory: Path, config: dict[str, str]) -> str:
    """Runs Ray Train on the cluster that this process is connected to, until the stop file is there."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(1, 2),
            resources_per_worker={"CPU": 1},
            elastic_resize_monitor_interval_s=_LOOK_INTERVAL_S,
        ),
        run_config=RunConfig(
            name="elastic",
            storage_path=str(directory / "results"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return str(trainer.fit().metrics)


def train(config: dict[str, Any]) -> None:
    """A worker: trains until the stop file is there, from the newest checkpoint."""
    import os

    import ray
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist
    from storm.batch_log import BatchWriter
    from torch.nn import functional

    from recoveries.workload import BATCH_SIZE, STEP_S, make_net, make_optimizer, make_samples

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    began = torch.tensor([int(time.monotonic() * 1e3)])
    dist.broadcast(began, 0)  # the number of this group of workers
    generation = int(began.item())
    node_id = ray.get_runtime_context().get_node_id()
    writer = BatchWriter(Path(config["batches"]), f"{generation}-{rank}-{os.getpid()}", node_id)

    samples, net = make_samples(), make_net()
    optimizer = make_optimizer(net)
    num_steps = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state = torch.load(Path(directory, "state.pt"))
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        num_steps = state["num_steps"]
    model = ray.train.torch.prepare_model(net)

    while True:
        first = num_steps * BATCH_SIZE % len(samples)
        numbers = range(first + rank, first + BATCH_SIZE, num_workers)
        features = torch.stack([samples[number][0] for number in numbers])
        classes = torch.tensor([samples[number][1] for number in numbers])
        writer.handed_out(
            generation=generation,
            rank=rank,
            num_replicas=num_workers,
            step=num_steps,
            epoch=0,
            samples=numbers,
        )
        time.sleep(STEP_S)
        optimizer.zero_grad()
        functional.cross_entropy(model(features), classes).backward()
        optimizer.step()
        num_steps += 1
        if num_steps % _STEPS_PER_CHECKPOINT == 0:
            with tempfile.TemporaryDirectory() as directory:
                checkpoint = None
                if rank == 0:
                    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "num_steps": num_steps}
                    torch.save(state, Path(directory, "state.pt"))
                    checkpoint = ray.train.Checkpoint.from_directory(directory)
                ray.train.report({"steps": num_steps}, checkpoint=checkpoint)
            stops = torch.tensor([int(Path(config["stop_file"]).exists())])
            dist.all_reduce(stops)
            if stops.item():
                return
