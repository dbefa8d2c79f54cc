"""Starting replicas for a job, beside its training, and giving up those that do not get there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from adaptdl.plan import Place, Position
from adaptdl.runtime.backoff import Backoff
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.launching import Launcher, ReplicaFailed
from adaptdl.runtime.members import ReplicaRecord, ReplicaState, Roster
from adaptdl.runtime.messages import Outcome
from adaptdl.runtime.news import News
from adaptdl.runtime.results import Results
from adaptdl.runtime.switching import ReplicaUnreachable, Switcher, ask

__all__ = ["Ends", "Starter"]

logger = logging.getLogger(__name__)

_PLACE_TIMEOUT_S = 1.0
"""How long the start of a newcomer is held up by the question where the others are."""


class Ends(Protocol):
    """Who is told of a replica's end."""

    async def function_ended(self, record: ReplicaRecord, outcome: Outcome) -> None:
        """The user's function has ended in it."""

    async def process_ended(self, record: ReplicaRecord, reason: str) -> None:
        """Its process has ended, or could not be started."""


@dataclass(kw_only=True)
class Starter:
    """Starts the replicas of one job."""

    launcher: Launcher
    roster: Roster
    switcher: Switcher
    results: Results
    news: News
    ends: Ends
    changed: asyncio.Event
    spawn: Callable[[Awaitable[None]], asyncio.Task[None]]
    clock: Callable[[], float]
    unparking: bool = False
    """The parked replica is getting a reservation."""
    trouble: str = ""
    """Why the last start failed; empty once the wish has changed."""

    def __post_init__(self) -> None:
        self._backoff = Backoff()

    @property
    def may_start_in_s(self) -> float:
        """How long to wait with the next start, seconds; 0: it may be now."""
        return max(0.0, self._backoff.until - self.clock())

    def new_wish(self) -> None:
        """What failed before need not fail now."""
        self._backoff.reset()
        self.trouble = ""

    def start(self, nodes: Mapping[str, int], elastic: ElasticConfig, *, alone: bool, reason: str) -> None:
        """Starts replicas: node → number. `alone`: it is a single one, and nobody has the job's state."""
        for node_id, number in nodes.items():
            for _ in range(number):
                record = self.roster.add(node_id, self.clock(), alone=alone)
                record.task = self.spawn(self._live(record, elastic, reason if alone else None))

    def unpark(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        """Gets the parked replica a reservation."""
        self.unparking = True
        self.spawn(self._unpark(record, elastic))

    def failed(self, record: ReplicaRecord, reason: str) -> None:
        """A replica could not become a member. The next one is tried after a while."""
        wait_s = self._backoff.failed(self.clock())
        self.trouble = f"replica on node {record.node_id[:8]}: {reason}"
        logger.warning("%s; trying again in %.0f s", self.trouble, wait_s)
        self.changed.set()

    def give_up_in_s(self, record: ReplicaRecord, elastic: ElasticConfig) -> float:
        """How long a replica that starts may still take, seconds. A function that took long to get to its first loop
        may do so again; one that was there already is on its way to a later one, or was lost as it joined."""
        timeout_s = max(elastic.boot_timeout_s, 3 * (self.news.boot_s or 0.0))
        if record.was_ready:
            timeout_s = elastic.join_timeout_s
        return record.since + timeout_s - self.clock()

    async def _live(self, record: ReplicaRecord, elastic: ElasticConfig, alone_for: str | None) -> None:
        """A replica's life, from its reservation to the end of the user's function.

        Args:
            alone_for: if it is the first generation by itself, why it is started.
        """
        alone = alone_for is not None
        try:
            await self.launcher.reserve(record, elastic)
            await self.launcher.start_process(record, elastic)
            source = self.roster.source
            start = None if alone or source is None else await self._place_of(source)
            if record.state is ReplicaState.GONE:
                return
            generation = 0
            if alone_for is not None:
                generation = self.switcher.next_generation()
                self.news.began_alone(generation, alone_for)
            await self.launcher.load(
                record,
                elastic,
                snapshot=self.results.newest.snapshot if source is None or source is record else None,
                files=self.results.newest.files,
            )
            outcome = await self.launcher.run(record, elastic, alone=alone, generation=generation, start=start)
        except ReplicaFailed as error:
            await self.ends.process_ended(record, str(error))
        except Exception as error:  # whatever it was: nobody else would learn that this replica will not come
            logger.exception("replica %s could not be run", record.replica_id)
            await self.ends.process_ended(record, f"{type(error).__name__}: {error}")
        else:
            await self.ends.function_ended(record, outcome)
        finally:
            self.changed.set()

    async def _place_of(self, source: ReplicaRecord) -> Place | None:
        """Where the job is, for a newcomer to start there; None if it has no place yet."""
        try:
            place: Place = await ask(source, "place", timeout_s=_PLACE_TIMEOUT_S)
        except ReplicaUnreachable:
            return None
        return place if place.position > Position() else None

    async def _unpark(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        try:
            await self.launcher.reserve(record, elastic)
        except Exception as error:  # noqa: BLE001 (also what nobody has thought of: it is tried again after a while)
            self.failed(record, str(error))
        finally:
            self.unparking = False
            self.changed.set()
