"""A process of the peer's DDP group. torch is imported only where it is used: the trial that commands the workers
does not need it, and would be held up by it."""

from __future__ import annotations

import io
import time
from typing import Any

import ray

from pauses.step_log import Step, StepWriter

__all__ = ["DDPWorker"]


class DDPWorker:
    """An actor that trains as one rank of a gloo group.

    Args:
        rank: of this worker.
        num_workers: in the group.
        generation: number of the group.
        steps_directory: for its log of steps.
    """

    def __init__(self, rank: int, num_workers: int, generation: int, steps_directory: str) -> None:
        import torch

        from pauses.workload import NumberedSamples, make_net, make_optimizer

        torch.set_num_threads(1)
        self._rank, self._num_workers, self._generation = rank, num_workers, generation
        self._node_id = ray.get_runtime_context().get_node_id()
        self._writer = StepWriter(steps_directory, f"{generation}-{rank}")
        self._samples = NumberedSamples()
        self._net = make_net()
        self._optimizer = make_optimizer(self._net)
        self._model: Any = None
        self._num_steps = 0

    def address(self) -> str:
        """Where the group can meet: a free port on this worker's machine."""
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def setup(self, address: str, state: bytes | None) -> None:
        """Joins the group, with the state of a checkpoint if there is one."""
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        dist.init_process_group("gloo", init_method=address, rank=self._rank, world_size=self._num_workers)
        if state is not None:
            loaded = torch.load(io.BytesIO(state))
            self._net.load_state_dict(loaded["net"])
            self._optimizer.load_state_dict(loaded["optimizer"])
            self._num_steps = loaded["num_steps"]
        self._model = DistributedDataParallel(self._net)

    def train(self, num_steps: int) -> int:
        """Makes so many steps; returns how many have been made in all."""
        from torch.nn import functional
        from torch.utils.data import DataLoader, Subset

        from pauses.workload import BATCH_SIZE

        share = BATCH_SIZE // self._num_workers
        mine = [
            step * BATCH_SIZE + self._rank * share + index
            for step in range(self._num_steps, self._num_steps + num_steps)
            for index in range(share)
        ]
        for features, classes, numbers in DataLoader(Subset(self._samples, mine), batch_size=share):
            handed_s = time.monotonic()
            self._optimizer.zero_grad()
            functional.cross_entropy(self._model(features), classes).backward()
            self._optimizer.step()
            done_s = time.monotonic()
            self._writer.write(
                Step(
                    generation=self._generation,
                    rank=self._rank,
                    num_replicas=self._num_workers,
                    steps=self._num_steps,
                    batch=int(numbers[0]) // BATCH_SIZE,
                    handed_s=handed_s,
                    done_s=done_s,
                    node_id=self._node_id,
                )
            )
            self._num_steps += 1
        return self._num_steps

    def state(self) -> bytes:
        """What a checkpoint holds."""
        import torch

        buffer = io.BytesIO()
        torch.save(
            {
                "net": self._net.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "num_steps": self._num_steps,
            },
            buffer,
        )
        return buffer.getvalue()
