"""The replicas of a job, as its coordinator knows them."""

from __future__ import annotations

import asyncio
import enum
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from adaptdl.plan import Member, Place, Plan, Position, Switched
from adaptdl.runtime.messages import Outcome
from adaptdl.runtime.placement import Reservation
from adaptdl.runtime.reconcile import SeenReplica

__all__ = ["ReplicaRecord", "ReplicaState", "Roster"]


class ReplicaState(enum.Enum):
    """What a replica is to its job.

    ::

        STARTING --stands at a data loop--> READY --plan--> MEMBER
        READY --told to go on to a later loop--> STARTING
        (alone in the first generation) --> MEMBER
        MEMBER --plan without it--> LEAVING --function unwound, or ended--> GONE
        MEMBER --its group is broken--> STANDING --plan of the survivors--> MEMBER
        MEMBER --pause--> PARKED --plan with it--> MEMBER
        PARKED --plan without it, state handed over--> LEAVING
        any --process ended, given up--> GONE
    """

    STARTING = "starting"
    READY = "ready"
    MEMBER = "member"
    STANDING = "standing"
    PARKED = "parked"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass(eq=False)
class ReplicaRecord:
    """One replica."""

    member: Member
    state: ReplicaState
    since: float
    """Monotonic time at which it began to start, was told to go on to a later loop or, if it is READY, became so."""
    reservation: Reservation | None = None
    reserving: asyncio.Future[Reservation] | None = None
    """A reservation that is being asked for."""
    actor: ActorHandle[Any] | None = None
    position: Position | None = None
    """Where it stands if it is READY."""
    place: Place | None = None
    """Where it stands if it is STANDING; None while it goes on to where the others stand, or carries out a plan."""
    told: int = 0
    """The generation of the last plan that it was told, not being a member; 0 once a newcomer is ready again."""
    broke: int = 0
    """The newest generation of which it has said that it is broken."""
    answers_by: float | None = None
    """Until when (monotonic) it has to say what became of a plan that was given up."""
    was_ready: bool = False
    """It has stood at a data loop."""
    holds_state: bool = False
    """It has been a member: what it holds is the state of the job at its last boundary."""
    launched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was told to run the user's function."""
    outcome: Outcome | None = None
    """How the user's function ended in it."""
    task: asyncio.Task[None] | None = None
    """Lasts as long as the user's function."""

    @property
    def replica_id(self) -> str:
        return self.member.replica_id

    @property
    def node_id(self) -> str:
        return self.member.node_id

    @property
    def is_newcomer(self) -> bool:
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)

    def starts_again(self, now: float) -> None:
        """A newcomer is on its way to a data loop once more, and says when it is ready."""
        self.state, self.position, self.since = ReplicaState.STARTING, None, now


class Roster:
    """All replicas of one job that are not gone."""

    def __init__(self) -> None:
        self._records: dict[str, ReplicaRecord] = {}
        self.members: list[ReplicaRecord] = []
        """In rank order."""
        self.parked: ReplicaRecord | None = None

    def __iter__(self) -> Iterator[ReplicaRecord]:
        return iter(list(self._records.values()))

    def get(self, replica_id: str) -> ReplicaRecord | None:
        return self._records.get(replica_id)

    def add(self, node_id: str, now: float, *, alone: bool) -> ReplicaRecord:
        """A new replica for `node_id`; `alone` in the first generation it is a member from the start."""
        member = Member(replica_id=secrets.token_hex(4), node_id=node_id)
        record = ReplicaRecord(member=member, state=ReplicaState.STARTING, since=now)
        if alone:
            record.state, record.holds_state = ReplicaState.MEMBER, True
            self.members = [record]
        self._records[record.replica_id] = record
        return record

    def gone(self, record: ReplicaRecord) -> None:
        """Forgets a replica."""
        record.state = ReplicaState.GONE
        self._records.pop(record.replica_id, None)
        self.members = [member for member in self.members if member is not record]
        if self.parked is record:
            self.parked = None

    @property
    def newcomers(self) -> list[ReplicaRecord]:
        return [record for record in self._records.values() if record.is_newcomer]

    @property
    def source(self) -> ReplicaRecord | None:
        """Who holds the state of the job: rank 0, or the one that was parked."""
        return self.members[0] if self.members else self.parked

    def count(self) -> dict[str, int]:
        """node → members that have a process."""
        counts: dict[str, int] = {}
        for record in self.members:
            if record.launched.is_set():
                counts[record.node_id] = counts.get(record.node_id, 0) + 1
        return counts

    def begin(self, plan: Plan, switched: Switched, now: float) -> list[ReplicaRecord]:
        """Makes the members of `plan` the members; returns those that have to leave."""
        before = [*self.members, *([] if self.parked is None else [self.parked])]
        members = [self._records.get(member.replica_id) for member in plan.members]
        self.members = [
            record for record in members if record is not None and record.replica_id not in switched.dropped
        ]
        for record in self.members:
            record.answers_by = None
            if record.broke < plan.generation:  # else it has lost this generation before it was known to have begun
                record.state, record.holds_state, record.place = ReplicaState.MEMBER, True, None
        self.parked = None
        leaving = []
        for record in before:
            if record in self.members:
                continue
            if record.replica_id in plan.park:
                record.state, record.since, self.parked = ReplicaState.PARKED, now, record
            else:
                record.state = ReplicaState.LEAVING
                leaving.append(record)
        leaving += [record for record in members if record is not None and record.replica_id in switched.dropped]
        return leaving

    def seen_members(self) -> list[SeenReplica]:
        return [SeenReplica(replica_id=record.replica_id, node_id=record.node_id) for record in self.members]

    def seen_newcomers(self, now: float) -> list[SeenReplica]:
        return [
            SeenReplica(
                replica_id=record.replica_id,
                node_id=record.node_id,
                ready=record.state is ReplicaState.READY,
                waited_s=now - record.since,
            )
            for record in self.newcomers
        ]

    def seen_parked(self) -> SeenReplica | None:
        if self.parked is None:
            return None
        return SeenReplica(
            replica_id=self.parked.replica_id, node_id=self.parked.node_id, ready=self.parked.reservation is not None
        )

    def stands(self, record: ReplicaRecord, generation: int, place: Place) -> None:
        """A replica has lost its group. It may be one of a generation that has begun without anybody saying so."""
        record.state, record.place, record.holds_state = ReplicaState.STANDING, place, True
        record.broke, record.answers_by = generation, None
        if self.parked is record:
            self.parked = None
        if record not in self.members:
            self.members.append(record)

    @property
    def survivors(self) -> list[ReplicaRecord]:
        """Members that can go on: their function has not ended."""
        return [record for record in self.members if record.launched.is_set() and record.outcome is None]

    def pick(self, replica_ids: Sequence[str]) -> list[ReplicaRecord]:
        return [self._records[replica_id] for replica_id in replica_ids]
