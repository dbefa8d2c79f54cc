"""Samples that take a while, and note how often each was fetched, by whomever."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["NUM_SAMPLES", "SlowSamples", "num_fetched"]

NUM_SAMPLES = 1 << 18
"""More than are trained on: everything happens in one pass."""
_FETCH_S = 1e-3
"""Slept for each sample, so that it takes as long on a busy machine."""


class SlowSamples(Dataset[tuple[Tensor, int, int]]):
    """Sample i is a vector, with i and the process that fetched it.

    Args:
        counts: a file that all processes share, made by the first one; the number of fetches of each sample.
    """

    def __init__(self, counts: Path) -> None:
        self._counts = _map(counts)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        time.sleep(_FETCH_S)
        self._counts[index] += 1
        return torch.ones(8), index, os.getpid()


def num_fetched(counts: Path, begin: int, end: int) -> int:
    """Fetches of the samples from `begin` to `end` − 1."""
    return int(_map(counts)[begin:end].sum())


def _map(counts: Path) -> Any:
    if not counts.exists():
        np.zeros(NUM_SAMPLES, np.int32).tofile(counts)
    return np.memmap(counts, np.int32, "r+")
