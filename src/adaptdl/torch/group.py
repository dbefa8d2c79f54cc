"""The process group of one generation: forming it, what is sent through it, closing it.

The group is torch's default group, so that the user's own ``torch.distributed`` calls reach it too. Tensors on the
CPU travel by gloo and tensors on CUDA devices by NCCL.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from adaptdl.errors import AdaptDLError
from adaptdl.torch.connections import cut, open_sockets

__all__ = ["Group", "GroupBroken", "communicating"]

logger = logging.getLogger(__name__)


class GroupBroken(AdaptDLError):
    """A collective has failed: a replica of the group is gone, or has left it since it lost another one."""


@contextmanager
def communicating() -> Iterator[None]:
    """Within it torch's errors (RuntimeError, of which its communication errors are subclasses) become GroupBroken."""
    try:
        yield
    except RuntimeError as error:
        raise _broken(error) from error


def _broken(error: RuntimeError) -> GroupBroken:
    return GroupBroken(str(error).strip() or type(error).__name__)


class Group:
    """One formed process group.

    Attributes:
        rank: this replica's rank.
        num_replicas: K.
    """

    def __init__(self, rank: int, num_replicas: int, *, owned: bool = True) -> None:
        self.rank = rank
        self.num_replicas = num_replicas
        self.waits_since: float | None = None
        """Monotonic time since which the training thread waits in a collective; None: it does not."""
        self._owned = owned
        self._sockets: frozenset[int] = frozenset()
        """Inodes of the sockets that were opened when the group was formed."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """As `communicating`, for what waits for the others."""
        self.waits_since = time.monotonic()
        try:
            with communicating():
                yield
        finally:
            self.waits_since = None

    def wait_for(self, work: dist.Work) -> None:
        """As what is within `waiting`, without the cost of a context. Raises GroupBroken."""
        self.waits_since = time.monotonic()
        try:
            work.wait()
        except RuntimeError as error:
            raise _broken(error) from error
        finally:
            self.waits_since = None

    @classmethod
    def form(cls, store: dist.Store | None, name: str, rank: int, num_replicas: int, *, timeout_s: float) -> Group:
        """Meets the other `num_replicas - 1` members under `name` in `store`.

        Raises:
            GroupBroken: somebody did not come within `timeout_s`.
        """
        assert not dist.is_initialized(), "the group of the generation before must be closed first"
        if store is None:
            assert num_replicas == 1
            store = dist.HashStore()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        before = open_sockets()
        with communicating():
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
                group.all_reduce(torch.zeros(1, device="cpu"))
            except GroupBroken:
                group.close()
                raise
            group._sockets = frozenset(open_sockets()) - frozenset(before)
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

    @property
    def may_be_left(self) -> bool:
        """Whether another group can follow this one: not if torchrun or the user's script has formed it."""
        return self._owned

    def close(self) -> None:
        """Ends the group; what waits in it, or is asked of it by others, fails."""
        if self._owned and dist.is_initialized():
            try:
                dist.destroy_process_group()
            except RuntimeError as error:
                logger.debug("a broken group did not close in order: %s", error)

    def abort(self) -> None:
        """Makes whatever waits in a collective of this group fail; from any thread."""
        if self._owned and dist.is_initialized():
            self._abort_backends()
            cut(self._sockets)  # last: whoever wakes destroys the group

    @staticmethod
    def _abort_backends() -> None:
        """NCCL's do end what waits."""
        group: Any = dist.group.WORLD
        try:
            group.abort()
        except RuntimeError as error:
            logger.debug("a group could not be aborted: %s", error)

    def all_reduce(self, vector: torch.Tensor) -> None:
        """Sums `vector` over the replicas in place, and waits. As all that follows, it raises GroupBroken."""
        if self.num_replicas > 1:
            with self.waiting():
                dist.all_reduce(vector)

    def all_reduce_async(self, vector: torch.Tensor) -> dist.Work | None:
        """As `all_reduce`, without waiting. None: there is nobody to wait for."""
        return None if self.num_replicas == 1 else self._launch(dist.all_reduce, vector)

    def all_gather_async(self, vectors: torch.Tensor, vector: torch.Tensor) -> dist.Work | None:
        """`vectors` (shape: K · n) becomes everybody's `vector` (n), in rank order, once the work is waited for."""
        return self._launch(dist.all_gather_single, vectors, vector)

    @staticmethod
    def _launch(collective: Callable[..., dist.Work | None], *tensors: torch.Tensor) -> dist.Work | None:
        try:
            return collective(*tensors, async_op=True)
        except RuntimeError as error:
            raise _broken(error) from error

    def broadcast(self, tensor: torch.Tensor) -> None:
        if self.num_replicas > 1:
            with self.waiting():
                dist.broadcast(tensor, src=0)

    def broadcast_object(self, value: Any = None) -> Any:
        """Rank 0's `value`, on every replica."""
        if self.num_replicas == 1:
            return value
        if self.rank == 0:
            payload = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
            self.broadcast(torch.tensor([payload.numel()], device="cpu"))
            self.broadcast(payload)
            return value
        size = torch.zeros(1, dtype=torch.int64, device="cpu")
        self.broadcast(size)
        payload = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        self.broadcast(payload)
        return pickle.loads(payload.numpy().tobytes())

    def all_gather_object(self, value: Any) -> Sequence[Any]:
        """Everybody's `value` in rank order, on every replica."""
        if self.num_replicas == 1:
            return [value]
        values: list[Any] = [None] * self.num_replicas
        with self.waiting():
            dist.all_gather_object(values, value)
        return values
