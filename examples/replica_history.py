"""What happened to each trial's replicas while it ran, read from the log.

Every reallocation is one line of the logger ``adaptdl``, for people and for programs::

    reallocation trial=cd64740f 2→1 replicas reason="room for other trials" pause_s=0.06 steps=341
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from dataclasses import dataclass, field

_LINE = re.compile(r"reallocation trial=(?P<trial_id>\S+) (?P<before>\d+)→(?P<after>\d+) replicas")


@dataclass
class ReplicaHistory:
    """The numbers of replicas that one trial had, one after the other."""

    changes: list[tuple[float, int]] = field(default_factory=list)
    """(time of the log line in seconds, number of replicas from then on); 0 replicas: paused."""

    @property
    def grew(self) -> bool:
        """Beyond what it started or went on with."""
        return any(after > before > 0 for before, after in self._steps)

    @property
    def shrank(self) -> bool:
        """To fewer replicas, or to none: paused."""
        return any(after < before for before, after in self._steps)

    @property
    def _steps(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise(number for _, number in self.changes))

    def __str__(self) -> str:
        if not self.changes:
            return "never started"
        start_s = self.changes[0][0]
        return " → ".join(f"{number} ({at_s - start_s:.0f} s)" for at_s, number in self.changes)


class ReallocationLog(logging.Handler):
    """Keeps the history of every trial that the log tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.histories: defaultdict[str, ReplicaHistory] = defaultdict(ReplicaHistory)
        """By trial id."""

    def emit(self, record: logging.LogRecord) -> None:
        if line := _LINE.search(record.getMessage()):
            self.histories[line["trial_id"]].changes.append((record.created, int(line["after"])))
