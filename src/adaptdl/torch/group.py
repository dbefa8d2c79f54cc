"""The process group of one generation: forming it, what is sent through it, closing it.

The group is torch's default group, so that the user's own ``torch.distributed`` calls reach it too. Tensors on the
CPU travel by gloo and tensors on CUDA devices by NCCL.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Group"]


class Group:
    """One formed process group.

    Attributes:
        rank: this replica's rank.
        num_replicas: K.
    """

    def __init__(self, rank: int, num_replicas: int, *, owned: bool = True) -> None:
        self.rank = rank
        self.num_replicas = num_replicas
        self._owned = owned

    @classmethod
    def form(cls, store: dist.Store | None, name: str, rank: int, num_replicas: int, *, timeout_s: float) -> Group:
        """Meets the other `num_replicas - 1` members under `name` in `store`.

        Raises:
            RuntimeError: (torch's DistStoreError among them) somebody did not come within `timeout_s`.
        """
        assert not dist.is_initialized(), "the group of the generation before must be closed first"
        if store is None:
            assert num_replicas == 1
            store = dist.HashStore()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(name, store),
            rank=rank,
            world_size=num_replicas,
            timeout=timedelta(seconds=timeout_s),
        )
        group = cls(rank, num_replicas)
        if num_replicas > 1:
            try:
                group.all_reduce(torch.zeros(1))
            except RuntimeError:
                group.close()
                raise
        return group

    @classmethod
    def from_environment(cls) -> Group:
        """torchrun's group; one that the user's script has already formed is taken as it is."""
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), owned=False)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", init_method="env://")
        return cls(dist.get_rank(), dist.get_world_size())

    def relax(self) -> None:
        """From now on members wait for each other as long as torch's default says: steps may be slow."""
        if self.num_replicas > 1:
            dist.distributed_c10d._set_pg_timeout(dist.distributed_c10d.default_pg_timeout)

    def close(self) -> None:
        if self._owned and dist.is_initialized():
            dist.destroy_process_group()

    def all_reduce(self, vector: torch.Tensor) -> None:
        """Sums `vector` over the replicas in place, and waits."""
        if self.num_replicas > 1:
            dist.all_reduce(vector)

    def all_reduce_async(self, vector: torch.Tensor) -> dist.Work | None:
        """As `all_reduce`, without waiting. None: there is nobody to wait for."""
        return dist.all_reduce(vector, async_op=True) if self.num_replicas > 1 else None

    def broadcast(self, tensor: torch.Tensor) -> None:
        if self.num_replicas > 1:
            dist.broadcast(tensor, src=0)

    def broadcast_object(self, value: Any = None) -> Any:
        """Rank 0's `value`, on every replica."""
        if self.num_replicas == 1:
            return value
        if self.rank == 0:
            payload = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
            dist.broadcast(torch.tensor([payload.numel()]), src=0)
            dist.broadcast(payload, src=0)
            return value
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, src=0)
        payload = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(payload, src=0)
        return pickle.loads(payload.numpy().tobytes())

    def all_gather_object(self, value: Any) -> Sequence[Any]:
        """Everybody's `value` in rank order, on every replica."""
        if self.num_replicas == 1:
            return [value]
        values: list[Any] = [None] * self.num_replicas
        dist.all_gather_object(values, value)
        return values
