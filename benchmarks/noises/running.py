"""Processes that measure, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

import adaptdl.torch as adl
from noises.training import Case

__all__ = ["Processes", "open_processes"]

_T = TypeVar("_T")
_Measure = Callable[[Case, int], _T | None]
_LIMIT_S = 900.0
"""No case takes nearly as long."""
_NUM, _AT_A_TIME = 4, 2
"""Processes; cases of a single replica that run side by side."""


class Processes:
    """As many as the largest case has replicas."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run(self, function: _Measure[_T], cases: Sequence[tuple[Case, int]]) -> Iterator[tuple[Case, _T]]:
        """What rank 0 makes of each case with its number of steps."""
        with tempfile.TemporaryDirectory(prefix="adaptdl-noises-") as directory:
            alone = [one for one in cases if one[0].num_replicas == 1]
            for first in range(0, len(alone), _AT_A_TIME):
                pair = alone[first : first + _AT_A_TIME]
                started = [self._start(function, case, num_steps, directory) for case, num_steps in pair]
                for (case, _), replicas in zip(pair, started, strict=True):
                    yield case, _first(replicas)
            for case, num_steps in cases:
                if case.num_replicas > 1:
                    yield case, _first(self._start(function, case, num_steps, directory))

    def _start(self, function: _Measure[_T], case: Case, num_steps: int, directory: str) -> list[Future[_T | None]]:
        """All its replicas; they meet in a file."""
        store = str(Path(directory, uuid.uuid4().hex))
        ranks = range(case.num_replicas)
        return [self._pool.submit(_replica, function, case, num_steps, rank, store) for rank in ranks]


def _first(replicas: Sequence[Future[_T | None]]) -> _T:
    """What rank 0 has made of it, once all have ended."""
    found, *_ = [future.result(timeout=_LIMIT_S) for future in replicas]
    assert found is not None
    return found


@contextmanager
def open_processes() -> Iterator[Processes]:
    """They are started once."""
    with ProcessPoolExecutor(_NUM, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Processes(pool)


def _replica(function: _Measure[_T], case: Case, num_steps: int, rank: int, store: str) -> _T | None:
    """As torchrun would have started it; the group is formed by the script itself."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = str(case.num_replicas)
    os.environ.update(RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # not used: the group is there
    meeting = dist.FileStore(store, case.num_replicas)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=case.num_replicas)
    try:
        with adl.open_session():
            return function(case, num_steps)
    finally:
        dist.destroy_process_group()
