"""A coordinator without Ray: its replicas are names, whose orders are written down and which say what a test says for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from adaptdl.plan import LoopKind, Place, Plan, Position, Switched
from adaptdl.runtime import recovering, replica_group, starting, switching
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.members import ReplicaRecord, ReplicaState
from adaptdl.runtime.messages import Broken, Event, JobInfo, Ready
from adaptdl.runtime.placement import Reservation
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results

__all__ = ["JOIN_TIMEOUT_S", "Coordinated", "eventually"]

JOIN_TIMEOUT_S = 0.5


async def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


async def _nowhere(*_: Any, **__: Any) -> Reservation:
    """There is no Ray that could give a place to another replica, and none may be started for it."""
    await asyncio.Event().wait()
    raise AssertionError


class Coordinated:
    """A `ReplicaGroup` whose replicas, one on each of `nodes`, train in generation 1; those on `newcomers` are to join them."""

    def __init__(self, nodes: str, newcomers: str = "", **elastic: Any) -> None:
        self.orders: list[tuple[str, str, Any]] = []
        """Node, method and what it was given, of all control calls."""
        self.answers: dict[str, Callable[[str], Any]] = {"open_store": lambda _: ("host", 1), "pulse": lambda _: None}
        """What a replica on a node answers, by method; it may raise."""
        self.group = ReplicaGroup(
            job=JobInfo(job_id="job", name="job", experiment="tests"),
            function=b"",
            config=b"",
            coordinator=None,  # type: ignore[arg-type]
            results=Results(),
        )
        self.group._reservations.reserve = _nowhere  # type: ignore[method-assign]
        self.records: dict[str, ReplicaRecord] = {}
        for node in nodes + newcomers:
            record = self.group._roster.add(node, time.monotonic(), alone=False)
            if node in nodes:
                record.state, record.holds_state = ReplicaState.MEMBER, True
                self.group._roster.members.append(record)
            record.launched.set()
            self.records[node] = record
        self.group._generation = self.group._switcher.generation = 1
        self._num_said = dict.fromkeys(nodes + newcomers, 0)
        config = {"join_timeout_s": JOIN_TIMEOUT_S, "progress_timeout_s": 0.4, "boot_timeout_s": 0.4, **elastic}
        self._elastic = ElasticConfig(resources_per_replica={"CPU": 1}, gather_s=0.0, **config)
        self.wish(nodes + newcomers)

    def wish(self, nodes: str) -> None:
        """The job should have a replica on each of them."""
        self.group.set_allocation(dict.fromkeys(nodes, 1), self._elastic, "test")

    @staticmethod
    @contextmanager
    def running(nodes: str, newcomers: str = "", **elastic: Any) -> Iterator[Coordinated]:
        """Within it, control calls reach no actor."""
        coordinated = Coordinated(nodes, newcomers, **elastic)
        with (
            patch.object(replica_group, "ask", coordinated._ask),
            patch.object(recovering, "ask", coordinated._ask),
            patch.object(starting, "ask", coordinated._ask),
            patch.object(switching, "ask", coordinated._ask),
        ):
            yield coordinated

    async def _ask(self, record: ReplicaRecord, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
        await asyncio.sleep(0.001)
        self.orders.append((record.node_id, method, args[0] if args else None))
        answer = self.answers.get(method)
        return None if answer is None else answer(record.node_id)

    async def say(self, node: str, event: Event) -> None:
        number, self._num_said[node] = self._num_said[node], self._num_said[node] + 1
        await self.group.notify(self.records[node].replica_id, number, event)

    async def ready(self, node: str, epoch: int) -> None:
        await self.say(node, Ready(position=Position(epoch=epoch)))

    async def break_(self, node: str, generation: int, steps: int = 5, kind: LoopKind = LoopKind.TRAINING) -> None:
        place = Place(position=Position(epoch=0), kind=kind, steps=steps)
        await self.say(node, Broken(generation=generation, place=place, reason="a peer is gone"))

    async def switch(self, node: str, generation: int, num_replicas: int, *dropped: str) -> None:
        await self.say(
            node,
            Switched(
                generation=generation,
                num_replicas=num_replicas,
                num_nodes=num_replicas,
                position=Position(epoch=0),
                steps=5,
                pause_s=0.1,
                dropped=frozenset(self.records[name].replica_id for name in dropped),
            ),
        )

    def told(self, generation: int) -> list[str]:
        """The nodes whose replicas were told the plan of this generation."""
        return sorted(
            node for node, _, given in self.orders if isinstance(given, Plan) and given.generation == generation
        )

    def was_told(self, generation: int, nodes: str) -> Callable[[], bool]:
        return lambda: self.told(generation) == sorted(nodes)

    @property
    def newest_plan(self) -> int:
        return max(given.generation for _, _, given in self.orders if isinstance(given, Plan))
