"""How the memory of processes grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from storm.processes import rss_bytes

__all__ = ["MemoryWatch", "growth_mb_per_min"]

_WARM_UP = 0.25
"""The part of the time whose samples are left out: caches fill, threads start, libraries are loaded."""


@dataclass
class MemoryWatch:
    """Samples the resident memory of some processes from time to time."""

    interval_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    samples: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Process → (monotonic seconds, bytes)."""
    _sampled_s: float = -float("inf")

    @property
    def is_due(self) -> bool:
        return self.clock() - self._sampled_s >= self.interval_s

    def sample(self, pids: Iterable[int]) -> None:
        """Takes a sample of each process that is there."""
        self._sampled_s = self.clock()
        for pid in pids:
            if (size := rss_bytes(pid)) is not None:
                self.samples.setdefault(pid, []).append((self._sampled_s, size))


def growth_mb_per_min(samples: Iterable[tuple[float, int]]) -> float:
    """The slope of a straight line through the samples after the warm-up, in 10⁶ bytes per minute. NaN of too few."""
    taken = np.array(list(samples), dtype=np.float64).reshape(-1, 2)
    if len(taken) < 8:
        return float("nan")
    minutes, sizes_mb = (taken[:, 0] - taken[0, 0]) / 60, taken[:, 1] / 1e6
    warm = minutes >= _WARM_UP * minutes[-1]
    return float(np.polyfit(minutes[warm], sizes_mb[warm], 1)[0])
