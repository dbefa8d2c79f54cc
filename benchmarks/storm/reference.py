"""The same trials without a storm: one replica each, in plain processes, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

from storm.training import train

__all__ = ["run_undisturbed"]

_LONGEST_S = 1200.0
"""If they take longer, something is stuck."""


def run_undisturbed(configs: Sequence[dict[str, Any]]) -> None:
    """Trains each to its end; their states are in their directories afterwards.

    Raises:
        multiprocessing.TimeoutError: they do not come to their end.
    """
    processes = min(len(configs), len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        pool.map_async(_train_alone, configs, chunksize=1).get(_LONGEST_S)


def _train_alone(config: dict[str, Any]) -> None:
    train({**config, "step_s": 0.0, "with_log": False})
