"""Replicas on this machine, real ones, that a script starts, joins and sends away."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from adaptdl.plan import Member, Place, Plan
from adaptdl.torch import ElasticSession
from first_batches.training import Handed, Setting, train

__all__ = ["Replica"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["first_batches.training", "scipy.optimize"])
_LIMIT_S = 300.0


class _Host:
    """A :class:`adaptdl.plan.Host` that passes on what the script waits for."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, kind: str, value: Any = None) -> None:
        with self._lock:
            self._connection.send((kind, value))

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*values: Any) -> None:
            if name in ("ready", "switched", "left"):
                self.send(name, values[0])

        return tell


def _run(connection: Connection, member: Member, setting: Setting, start: Place | None, plan: Plan | None) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data loaders' workers
    host, log = _Host(connection), list[Handed]()
    session = ElasticSession(replica=member, host=host, start=start, snapshot_interval_s=None, address="127.0.0.1")
    if plan is not None:
        session.join(plan)

    def obey() -> None:
        while True:
            method, args = connection.recv()
            host.send("answer", getattr(session, method)(*args))

    threading.Thread(target=obey, daemon=True).start()
    try:
        session.run(lambda _: train(setting, log), {})
        host.send("log", log)
    except Exception:  # noqa: BLE001  # whatever it is, the script shows it
        host.send("failed", traceback.format_exc())
    finally:
        session.close()


class Replica:
    """One process.

    Args:
        start: where the trial is that it is to join; None: it is the first one.
    """

    def __init__(self, name: str, setting: Setting, start: Place | None = None) -> None:
        self.member = Member(replica_id=name, node_id="node")
        self._connection, theirs = _CONTEXT.Pipe()
        alone = Plan(generation=1, members=(self.member,), source=None) if start is None else None
        self._process = _CONTEXT.Process(target=_run, args=(theirs, self.member, setting, start, alone))
        self._process.start()
        theirs.close()
        self._waiting: list[tuple[str, Any]] = []

    def wait_for(self, kind: str) -> Any:
        """The next message of this kind. Raises TimeoutError, or RuntimeError if the process has failed."""
        deadline = time.monotonic() + _LIMIT_S
        while True:
            for index, (found, value) in enumerate(self._waiting):
                if found == kind:
                    del self._waiting[index]
                    return value
                if found == "failed":
                    raise RuntimeError(value)
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{self.member.replica_id}: waited {_LIMIT_S:g} s for {kind!r}")
            self._waiting.append(self._connection.recv())

    def call(self, method: str, *args: Any) -> Any:
        """What this method of the session returns."""
        self._connection.send((method, args))
        return self.wait_for("answer")

    def end(self) -> list[Handed]:
        """Its log, once it has come to its end."""
        log: list[Handed] = self.wait_for("log")
        self._process.join(_LIMIT_S)
        return log

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
