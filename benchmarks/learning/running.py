"""Processes that train, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import adaptdl.torch as adl
from learning.training import Point, Run, train

__all__ = ["Processes", "open_processes"]

_MEETING_S = 120.0
"""Within which replicas answer each other."""
_LIMIT_S = 900.0
"""No run takes nearly as long."""
_NUM = 2
"""Processes; replicas of a run of all of them."""
_PREFIX = "adaptdl-learning-"
"""Of the directory in which replicas meet."""


class Processes:
    """Two of them, which train what they are given: each a run of its own, or both the same one."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def each(self, runs: Sequence[Run]) -> Iterator[list[Point]]:
        """Runs on one replica, in their order; as many at a time as there are processes."""
        futures = [self._pool.submit(_alone, run) for run in runs]
        return (future.result(timeout=_LIMIT_S * len(runs)) for future in futures)

    def together(self, run: Run) -> list[Point]:
        """A run on two replicas."""
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
            futures = [self._pool.submit(_replica, run, _NUM, rank, directory) for rank in range(_NUM)]
            return futures[0].result(timeout=_LIMIT_S)


@contextmanager
def open_processes() -> Iterator[Processes]:
    """They are started once, so that a run begins at once."""
    pool = ProcessPoolExecutor(_NUM, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield Processes(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _replica(run: Run, num_replicas: int, rank: int, directory: str) -> list[Point]:
    """As torchrun would have started it; the group is formed by the script itself."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_replicas), LOCAL_WORLD_SIZE=str(num_replicas))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # not used: the group is there
    store = dist.FileStore(str(Path(directory, "store")), num_replicas)
    limit = timedelta(seconds=_MEETING_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_replicas, timeout=limit)
    try:
        with adl.open_session():
            return train(run)
    finally:
        dist.destroy_process_group()


def _alone(run: Run) -> list[Point]:
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
        return _replica(run, 1, 0, directory)
