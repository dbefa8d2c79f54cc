"""One line on a terminal that says how far a simulation is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["ProgressLine"]

_WIDTH = 30
_REDRAW_S = 0.1


class ProgressLine:
    """`on_turn` of a simulation: draws over its own line. On anything but a terminal it draws nothing."""

    def __init__(
        self, stream: TextIO, label: str, num_jobs: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._label, self._num_jobs, self._clock = stream, label, num_jobs, clock
        self._shown = stream.isatty()
        self._drawn_s = -_REDRAW_S
        self._length = 0

    def __call__(self, now_s: float, num_complete: int) -> None:
        if not self._shown or self._clock() < self._drawn_s + _REDRAW_S:
            return
        self._drawn_s = self._clock()
        done = int(_WIDTH * num_complete / max(self._num_jobs, 1))
        bar = "█" * done + "·" * (_WIDTH - done)
        self._draw(f"{self._label} {bar} {num_complete}/{self._num_jobs} jobs, {_duration(now_s)} simulated")

    def close(self) -> None:
        """Wipes the line."""
        if self._length:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def _draw(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60):02} s"
