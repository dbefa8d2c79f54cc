"""Real replicas without Ray: processes that run a training function under a session, and a small coordinator that moves
them through a scripted history. Every wait is bounded and says what it waited for."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from adaptdl.plan import Advance, LoopKind, Member, Place, Plan, Position, Switched, Update

TIMEOUT_S = 30.0

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["adaptdl.torch", "scipy.optimize", "tests.torch.warm"])


class PipeHost:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def ready(self, position: Position) -> None:
        self.send("ready", position)

    def broken(self, generation: int, place: Place, reason: str) -> None:
        self.send("broken", place)

    def missed(self, generation: int, place: Place) -> None:
        self.send("missed", place)

    def switched(self, switched: Switched) -> None:
        self.send("switched", switched)

    def left(self, generation: int) -> None:
        self.send("left", generation)

    def update(self, update: Update) -> None:
        self.send("update", update)

    def snapshot(self, data: bytes, steps: int) -> None:
        self.send("snapshot", (data, steps))

    def report(
        self, metrics: dict[str, Any], files: dict[str, bytes] | None, snapshot: bytes | None, number: int
    ) -> None:
        self.send("report", (metrics, files, snapshot))
        self.send("number", number)


def _child(connection: Connection, payload: bytes) -> None:
    import torch

    from adaptdl.torch import ElasticSession

    torch.set_num_threads(1)
    # Workers of data loaders are to be children of this process, and to end with it if it is killed.
    multiprocessing.set_start_method("fork", force=True)
    member, func, config, options = pickle.loads(payload)
    host = PipeHost(connection)
    session = ElasticSession(replica=member, host=host, address="127.0.0.1", **options)

    def control() -> None:
        while True:
            try:
                number, method, args = connection.recv()
            except EOFError:
                return
            host.send("answer", (number, getattr(session, method)(*args)))

    threading.Thread(target=control, daemon=True).start()
    values: list[Any] = []
    try:
        finished = session.run(lambda c: values.append(func(c)), config)
        host.send("done", values[-1] if finished else None)
    except BaseException:  # noqa: BLE001  # whatever it is, the test shows it
        host.send("failed", traceback.format_exc())
    finally:
        session.close()


class Replica:
    def __init__(self, member: Member, func: Callable[[Any], Any], config: Any, options: dict[str, Any]) -> None:
        self.member = member
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(
            target=_child,
            args=(theirs, pickle.dumps((member, func, config, options))),
        )
        self.process.start()
        theirs.close()
        self.messages: list[tuple[str, Any]] = []
        self._answers: dict[int, Any] = {}
        self._numbers = itertools.count()

    def pump(self) -> None:
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "answer":
                    self._answers[value[0]] = value[1]
                else:
                    self.messages.append((kind, value))
                    if kind == "failed":
                        raise AssertionError(f"{self.member.replica_id} failed:\n{value}")
        except (EOFError, ConnectionResetError):
            pass

    def take(self, kind: str) -> Any:
        for i, (name, value) in enumerate(self.messages):
            if name == kind:
                del self.messages[i]
                return value
        return None

    def has(self, kind: str) -> bool:
        return any(name == kind for name, _ in self.messages)

    def call(self, method: str, *args: Any) -> Any:
        number = next(self._numbers)
        self.connection.send((number, method, args))
        deadline = time.monotonic() + TIMEOUT_S
        while number not in self._answers:
            wait([self.connection], 0.1)
            self.pump()
            assert self.process.is_alive(), f"{self.member.replica_id} ended with code {self.process.exitcode}"
            assert time.monotonic() < deadline, f"{self.member.replica_id} did not answer {method} in {TIMEOUT_S} s"
        return self._answers.pop(number)


class Trial:
    """A coordinator of one trial; use it as a context manager."""

    def __init__(self, func: Callable[[Any], Any], config: Any = None, **options: Any) -> None:
        self.func, self.config, self.options = func, config, {"snapshot_interval_s": None, **options}
        self.members: list[Replica] = []
        self.all: list[Replica] = []
        self.parked: Replica | None = None
        self.generation = 0
        self.switches: list[Switched] = []
        self.num_missed = 0

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: Any) -> None:
        for replica in self.all:
            replica.process.kill()
        for replica in self.all:
            replica.process.join(10)

    def start(self, node: str = "node-0", **more: Any) -> Replica:
        member = Member(replica_id=f"replica-{len(self.all)}", node_id=node)
        replica = Replica(member, self.func, self.config, {**self.options, **more})
        self.all.append(replica)
        return replica

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for replica in self.all:
                replica.pump()
            if (value := condition()) is not None and value is not False:
                return value
            alive = [r.connection for r in self.all if r.process.is_alive()]
            wait(alive, 0.02) if alive else time.sleep(0.02)
            told = {r.member.replica_id: [kind for kind, _ in r.messages[-5:]] for r in self.all}
            assert time.monotonic() < deadline, f"{what} did not happen in {TIMEOUT_S} s; last heard: {told}"

    def reallocate(
        self,
        num_replicas: int,
        *,
        nodes: list[str] | None = None,
        keep: list[Replica] | None = None,
        joining: list[Replica] | None = None,
        park: bool = False,
    ) -> Switched:
        """To `num_replicas`, keeping the first of the present ones (or `keep`) and taking those in `joining`, which stand
        at a loop already; returns when it is done."""
        self.generation += 1
        survivors = self.members[:num_replicas] if keep is None else keep
        joining = joining or []
        source = self.members[0] if self.members else self.parked
        if not self.members and self.parked is not None and num_replicas and keep is None:
            survivors = [self.parked]
        start = source.call("place") if source is not None else None
        names = nodes or ["node-0"] * (num_replicas - len(survivors) - len(joining))
        started = [self.start(name, **({"start": start} if start else {})) for name in names]
        newcomers = joining + started
        members = survivors + newcomers
        for replica in started:
            self.wait_for(f"{replica.member.replica_id} at its loop", lambda r=replica: r.take("ready"))
        target = None
        if newcomers and source is not None and self.members:
            target = self._meet(source, newcomers)
        store = None
        if members:
            store = (source or members[0]).call("open_store")
        plan = Plan(
            generation=self.generation,
            members=tuple(r.member for r in members),
            source=None if source is None else source.member.replica_id,
            newcomers=frozenset(r.member.replica_id for r in newcomers),
            store=store,
            target=target,
            park=frozenset([source.member.replica_id]) if park and source is not None else frozenset(),
            reason="test",
        )
        while True:
            for replica in newcomers:
                replica.call("join", plan)
            if source is not None and not self.members:
                source.call("join", plan)
            elif source is not None:
                source.call("reallocate", plan)
            speaker = members[0] if members else source
            assert speaker is not None
            self.wait_for(
                f"generation {self.generation} ({num_replicas} replicas)",
                lambda speaker=speaker: speaker.has("switched") or (source is not None and source.has("missed")),
            )
            if speaker.has("switched"):
                break
            source.take("missed")
            self.num_missed += 1
            plan = dataclasses.replace(plan, target=self._meet(source, newcomers, later=True))
        switched = speaker.take("switched")
        self.switches.append(switched)
        self.parked = source if park and not members else None
        self.members = [r for r in members if r.member.replica_id not in switched.dropped]
        return switched

    def _meet(self, source: Replica, newcomers: list[Replica], later: bool = False) -> Position:
        place: Place = source.call("place")
        if place.kind is not LoopKind.TRAINING or later:
            place = Place(position=Position(epoch=place.position.epoch + 1), kind=LoopKind.BETWEEN)
        for replica in newcomers:
            replica.call("advance", Advance(place=place))
            self.wait_for(f"{replica.member.replica_id} at {place.position}", lambda r=replica: r.take("ready"))
        return place.position

    def reach(self, step: int) -> None:
        """Waits until the trial makes this step (and, if it is one of the function's stops, waits there)."""
        source = self.members[0]
        self.wait_for(f"step {step}", lambda: source.call("place").steps >= step - 1)

    def finish(self) -> list[Any]:
        """Waits until the present members have returned; what they returned, in rank order."""
        return [self.wait_for(f"the end of {r.member.replica_id}", lambda r=r: r.take("done")) for r in self.members]

    def messages(self, kind: str) -> list[Any]:
        return [value for replica in self.all for name, value in replica.messages if name == kind]
