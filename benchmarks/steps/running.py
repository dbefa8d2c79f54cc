"""Starts the processes of a measurement, and hands back what rank 0 found."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from steps.cases import CASES
from steps.worker import Timed, measure_memory, measure_time

__all__ = ["run_memory", "run_time"]

_T = TypeVar("_T")
_LIMIT_S, _LONG_LIMIT_S = 300.0, 3600.0
"""Beyond what was asked for: of a case, and of one that `is_long`. None takes nearly as long."""


def run_time(case: str, num_replicas: int, seconds: float) -> Timed:
    """Seconds per step of a case, on processes of their own."""
    limit_s = seconds + (_LONG_LIMIT_S if CASES[case].is_long else _LIMIT_S)
    return _run(num_replicas, limit_s, _time, case, seconds)


def run_memory(case: str, num_replicas: int) -> float:
    """What the adaptive training holds at most beyond the plain one, as a share of parameters and gradients."""
    (adaptive, size), (plain, _) = (_run(num_replicas, _LIMIT_S, _memory, case, adaptive) for adaptive in (True, False))
    return (adaptive - plain) / size


def _time(rank: int, num_replicas: int, directory: str, case: str, seconds: float) -> Timed:
    return measure_time(CASES[case], rank, num_replicas, seconds, directory)


def _memory(rank: int, num_replicas: int, directory: str, case: str, adaptive: bool) -> tuple[int, int]:
    return measure_memory(CASES[case], rank, num_replicas, adaptive, directory)


def _run(num_replicas: int, limit_s: float, function: Callable[..., _T], *args: Any) -> _T:
    with (
        tempfile.TemporaryDirectory(prefix="adaptdl-steps-") as directory,
        ProcessPoolExecutor(num_replicas, mp_context=multiprocessing.get_context("spawn")) as processes,
    ):
        futures = [processes.submit(function, rank, num_replicas, directory, *args) for rank in range(num_replicas)]
        found = [future.result(timeout=limit_s) for future in futures]
        return found[0]
