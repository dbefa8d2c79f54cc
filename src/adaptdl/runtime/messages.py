"""What goes between the coordinator of a job, its replicas, and the allocator, beside :mod:`adaptdl.plan`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptdl.errors import AdaptDLError
from adaptdl.goodput import JobReport
from adaptdl.plan import Member, Place, Position, Switched, Update

__all__ = [
    "Broken",
    "Cargo",
    "Ending",
    "Event",
    "JobError",
    "JobInfo",
    "JobStatus",
    "Left",
    "Missed",
    "Outcome",
    "Phase",
    "Ready",
    "Reallocation",
    "ReplicaSpec",
    "Result",
    "SnapshotTaken",
    "TrainingFunctionError",
]


class JobError(AdaptDLError):
    """A job cannot go on; the message says why and what to do."""


class TrainingFunctionError(JobError):
    """The user's training function raised; the message ends with its own traceback.

    Attributes:
        cause_pickle: the exception itself, pickled; None if it cannot be.
    """

    def __init__(self, message: str, cause_pickle: bytes | None = None) -> None:
        super().__init__(message, cause_pickle)
        self.cause_pickle = cause_pickle

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """Who a job is, as ``tune.get_context()`` tells the user's function."""

    job_id: str
    name: str
    experiment: str
    directory: str | None = None
    """Where the function runs; made if it is not there. None: it runs where the process was started."""


@dataclass(frozen=True, kw_only=True)
class Cargo:
    """What may be large of all that a replica needs to run the user's function; the same for all that start together."""

    function: bytes
    """The user's function of one argument, pickled."""
    config: bytes
    """Its argument, pickled."""
    snapshot: bytes | None
    """The state to start from."""
    files: Mapping[str, bytes] | None
    """The user's own checkpoint: file name → content."""

    @property
    def num_bytes(self) -> int:
        files = 0 if self.files is None else sum(map(len, self.files.values()))
        return len(self.function) + len(self.config) + len(self.snapshot or b"") + files


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """The rest of it."""

    member: Member
    job: JobInfo
    alone: bool
    """The first generation is this replica alone: it is a member before the function starts."""
    generation: int
    """The number of that first generation."""
    num_threads: int
    """Threads torch may use, ≥ 1."""
    resources: Mapping[str, float]
    start: Place | None
    snapshot_interval_s: float
    join_timeout_s: float


class Ending(enum.Enum):
    """How the user's function ended in one replica."""

    RETURNED = "returned"
    LEFT = "left"
    RAISED = "raised"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of the user's function in one replica."""

    ending: Ending
    error: TrainingFunctionError | None = None
    about_communication: bool = False
    """The error says only that another replica could not be reached."""
    led: bool = False
    """It was rank 0 as its function returned: all results of the job were taken."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    position: Position


@dataclass(frozen=True, kw_only=True)
class Missed:
    generation: int
    place: Place


@dataclass(frozen=True, kw_only=True)
class Left:
    generation: int


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A replica has lost its group and stands."""

    generation: int
    """The newest one that it has been part of, or has tried to form."""
    place: Place
    reason: str


@dataclass(frozen=True, kw_only=True)
class SnapshotTaken:
    data: bytes
    steps: int


Event = Broken | Ready | Missed | Left | SnapshotTaken | Switched | Update
"""What a replica tells its coordinator; the session's :class:`~adaptdl.plan.Host` calls as values."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One result of the user's function."""

    metrics: dict[str, Any]
    files: Mapping[str, bytes] | None


class Phase(enum.Enum):
    """What a job is doing, as others see it.

    ::

        WAITING --allocation--> STARTING --first generation--> RUNNING <--plans--> PAUSED
        any --function ended, error, stop--> ENDED
    """

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Reallocation:
    """One reallocation that has happened."""

    number: int
    """Counts from 1; what ``adaptdl/num_restarts`` shows."""
    before: int
    """Replicas before."""
    after: int
    """Replicas after; 0: paused."""
    num_nodes: int
    reason: str
    pause_s: float
    steps: int
    """Optimizer steps of the job before the change."""

    def describe(self, trial_id: str) -> str:
        """The line for the log."""
        return (
            f"reallocation trial={trial_id} {self.before}→{self.after} replicas "
            f'reason="{self.reason}" pause_s={self.pause_s:.2f} steps={self.steps}'
        )


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the coordinator tells the allocator."""

    phase: Phase
    allocation: Mapping[str, int]
    """node → members of the generation that trains now."""
    held: Mapping[str, int]
    """node → reservations, those of replicas that start or leave included."""
    wish: Mapping[str, int]
    """The allocation asked for last that has not been given up."""
    num_restarts: int
    pause_s: float
    """All pauses of the job together."""
    boot_s: float | None
    """How long a replica took to start, at last."""
    report: JobReport | None
    metrics: Mapping[str, float]
    """The ``adaptdl/…`` columns."""
    reallocations: tuple[Reallocation, ...] = ()
    """The last ones, oldest first."""
    lost_on: frozenset[str] = frozenset()
    """Nodes on which replicas were lost a short while ago: they may be gone, which Ray takes 15 s to see."""
    trouble: str = ""
    """Why the wish is not fulfilled, if it was given up or waits."""

    @property
    def num_replicas(self) -> int:
        return sum(self.allocation.values())
