"""A policy that gives one trial the allocations of a script, each when the one before has taken effect."""

from __future__ import annotations

import enum
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptdl.policy import Allocation, Decision, Job, Node
from pauses.step_log import StepLog

__all__ = ["STEADY_S", "Act", "LoggedReallocation", "ReallocationLines", "Scripted", "ScriptedPolicy", "script"]

STEADY_S = 3.0
"""The time before a decision to start replicas whose steps are what training does when nothing else goes on."""
_SETTLING_S = 1.0
"""Before that: what the change before has left to do."""
_LEAST_STEPS = 40
"""Of each generation."""
_REPLICAS_PER_NODE = 2
_LINE = re.compile(r"reallocation trial=\S+ (?P<before>\d+)→(?P<after>\d+) replicas .*pause_s=(?P<pause_s>[\d.]+)")


class Act(enum.Enum):
    """What a line of the script does."""

    START = "start"
    GROW = "1→2"
    MOVE = "2→2 on another node"
    SHRINK = "2→1"
    PAUSE = "1→0"
    RESUME = "0→1"

    @property
    def starts_replicas(self) -> bool:
        """While others train."""
        return self in (Act.GROW, Act.MOVE)


@dataclass(kw_only=True)
class Scripted:
    """One line of the script."""

    act: Act
    allocation: Allocation
    decided_s: float = field(default=float("nan"))
    """When the policy gave it for the first time, monotonic seconds."""


def script(nodes: Sequence[str], count: int) -> list[Scripted]:
    """`count` changes of each kind, from node to node."""
    lines = [Scripted(act=Act.START, allocation={nodes[0]: 1})]
    for index in range(count):
        here, there = nodes[index % len(nodes)], nodes[(index + 1) % len(nodes)]
        lines += [
            Scripted(act=Act.GROW, allocation={here: 2}),
            Scripted(act=Act.MOVE, allocation={there: 2}),
            Scripted(act=Act.SHRINK, allocation={there: 1}),
            Scripted(act=Act.PAUSE, allocation={}),
            Scripted(act=Act.RESUME, allocation={there: 1}),
        ]
    return lines


@dataclass(frozen=True, kw_only=True)
class LoggedReallocation:
    """What the library says of a reallocation."""

    before: int
    after: int
    pause_s: float


class ReallocationLines(logging.Handler):
    """Keeps what the log of AdaptDL says of reallocations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[LoggedReallocation] = []

    def emit(self, record: logging.LogRecord) -> None:
        if line := _LINE.match(record.getMessage()):
            self.seen.append(
                LoggedReallocation(before=int(line["before"]), after=int(line["after"]), pause_s=float(line["pause_s"]))
            )


class ScriptedPolicy:
    """Implements :class:`adaptdl.policy.Policy`, but for one trial, and with a memory.

    Args:
        count: changes of each kind.
        log: of the trial's steps.
        lines: what the library has logged.
        stop_file: made when the script is over; the training function looks for it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        count: int,
        log: StepLog,
        lines: ReallocationLines,
        stop_file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._log = log
        self._lines = lines
        self._stop_file = stop_file
        self._clock = clock
        self._script: list[Scripted] = []
        self._generation_before = -1
        self.decided: list[Scripted] = []
        """The lines of the script so far."""
        self.is_over = False

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """What the script says now."""
        if not self.decided:
            usable = [node.node_id for node in nodes if node.resources.get("CPU", 0.0) >= _REPLICAS_PER_NODE]
            self._script = script(usable, self._count)
            self._advance()
        self._log.read()
        if not self.is_over and self._has_taken_effect():
            self._advance()
        allocations = {job.job_id: self.decided[-1].allocation for job in jobs}
        return Decision(allocations=allocations, objective=0.0, gap=None, message=self.decided[-1].act.value)

    def _has_taken_effect(self) -> bool:
        """Whether the newest line is carried out, and has been trained with for long enough."""
        number, newest = len(self.decided), self.decided[-1]
        if len(self._lines.seen) < number:
            return False
        if newest.act is Act.PAUSE:
            return True
        steps = self._log.newest
        if not steps or steps[0].generation <= self._generation_before or len(steps) < _LEAST_STEPS:
            return False
        if number < len(self._script) and self._script[number].act.starts_replicas:
            return self._clock() - steps[0].handed_s >= _SETTLING_S + STEADY_S
        return True

    def _advance(self) -> None:
        number, steps = len(self.decided), self._log.newest
        self._generation_before = steps[-1].generation if steps else -1
        if number == len(self._script):
            self.is_over = True
            self._stop_file.touch()
            return
        self._script[number].decided_s = self._clock()
        self.decided.append(self._script[number])
