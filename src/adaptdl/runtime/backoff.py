"""Not trying again at once what has just failed."""

from __future__ import annotations

__all__ = ["Backoff"]

_FIRST_S = 2.0
_LONGEST_S = 60.0


class Backoff:
    """After failures in a row the time until the next try doubles each time.

    Attributes:
        until: monotonic time of the next try.
    """

    def __init__(self) -> None:
        self._wait_s = 0.0
        self.until = 0.0

    def failed(self, now: float) -> float:
        """Another failure; how long to wait, seconds."""
        self._wait_s = min(_LONGEST_S, max(_FIRST_S, 2 * self._wait_s))
        self.until = now + self._wait_s
        return self._wait_s

    def reset(self) -> None:
        self._wait_s = self.until = 0.0
