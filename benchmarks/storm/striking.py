"""Carries out the schedule: kills replicas, takes nodes away, and brings new ones."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from storm.batch_log import ReplicaLog, TrialLog
from storm.cluster import Nodes
from storm.processes import is_alive, kill, title
from storm.schedule import Event, Kind

__all__ = ["Storm", "Strike"]

logger = logging.getLogger(__name__)

_WARNING_S = 15.0
"""From the notice that a node drains to its end."""
_REPLACED_AFTER_S = 5.0
"""From the end of a node to the start of a new one."""


@dataclass(frozen=True, kw_only=True)
class Strike:
    """Something that has happened."""

    kind: Kind
    at_s: float
    """Monotonic seconds; of a node that drained, when it was gone."""
    late_s: float
    """How much later than scheduled."""
    hit: tuple[tuple[int, str], ...]
    """Trial and `replica_id` of those whose process was killed."""


class Storm:
    """Everything that is scheduled, and what follows from it.

    Args:
        events: what is to happen.
        nodes: of the cluster.
        logs: number of the trial → its log.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        events: Sequence[Event],
        nodes: Nodes,
        logs: Mapping[int, TrialLog],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._logs = logs
        self._clock = clock
        self._began_s = clock()
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self.strikes: list[Strike] = []
        self.num_missed = 0
        """Events that found nobody to hit."""
        for event in events:
            self._at(self._began_s + event.at_s, self._action(event))

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began_s

    def do_what_is_due(self) -> None:
        """Carries out all whose time has come."""
        while self._queue and self._queue[0][0] <= self._clock():
            due_s, _, act = heapq.heappop(self._queue)
            act(due_s)

    def _at(self, at_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, (at_s, next(self._order), act))

    def _action(self, event: Event) -> Callable[[float], None]:
        by_kind = {Kind.KILL: self._kill, Kind.LOSE: self._lose, Kind.DRAIN: self._drain}
        return lambda due_s: by_kind[event.kind](event, due_s)

    # -- what happens -------------------------------------------------------------------------------------------------

    def _kill(self, event: Event, due_s: float) -> None:
        living = self._living()
        if not living:
            self.num_missed += 1
            return
        trial, replica = living[int(event.draw * len(living))]
        at_s = self._clock()
        kill([replica.pid])
        self._struck(Kind.KILL, at_s, due_s, [(trial, replica)])

    def _lose(self, event: Event, due_s: float) -> None:
        if (node_id := self._pick(event)) is not None:
            self._take_away(node_id, Kind.LOSE, due_s)

    def _drain(self, event: Event, due_s: float) -> None:
        if (node_id := self._pick(event)) is not None:
            logger.info("node %s drains", node_id[:8])
            self._nodes.drain(node_id, _WARNING_S)
            self._at(self._clock() + _WARNING_S, lambda due_s: self._take_away(node_id, Kind.DRAIN, due_s))

    def _take_away(self, node_id: str, kind: Kind, due_s: float) -> None:
        on_it = [(trial, replica) for trial, replica in self._living() if replica.node_id == node_id]
        at_s = self._nodes.lose(node_id)
        self._struck(kind, at_s, due_s, on_it)
        self._at(self._clock() + _REPLACED_AFTER_S, lambda _: self._bring())

    def _bring(self) -> None:
        logger.info("node %s is new", self._nodes.add()[:8])

    def _struck(self, kind: Kind, at_s: float, due_s: float, hit: Sequence[tuple[int, ReplicaLog]]) -> None:
        names = tuple((trial, replica.replica_id) for trial, replica in hit)
        self.strikes.append(Strike(kind=kind, at_s=at_s, late_s=at_s - due_s, hit=names))
        logger.info("%.0f s: %s, hitting %s", self.elapsed_s, kind.value, names or "nobody")

    # -- who can be hit -----------------------------------------------------------------------------------------------

    def _living(self) -> list[tuple[int, ReplicaLog]]:
        """The replicas whose training function runs, those that have not joined yet included."""
        found = []
        for trial, log in sorted(self._logs.items()):
            log.read()
            for replica in log.replicas:
                if replica.ended_s is None and is_alive(replica.pid) and "Replica" in title(replica.pid):
                    found.append((trial, replica))
        return found

    def _pick(self, event: Event) -> str | None:
        usable = self._nodes.usable
        if len(usable) < 2:  # nobody could go on
            self.num_missed += 1
            return None
        return usable[int(event.draw * len(usable))]
