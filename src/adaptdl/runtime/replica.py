"""A replica: one process that runs the user's function under an elastic session.

The function runs in one thread of a threaded actor; control calls arrive in others and never wait for it. torch and Tune
are imported here and nowhere else in this package, when :meth:`Replica.run` begins.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.actor import ActorHandle

from adaptdl.plan import Advance, Place, Plan, Position, Pulse, Switched, Update
from adaptdl.runtime.imports import import_all
from adaptdl.runtime.messages import (
    Broken,
    Cargo,
    Ending,
    Event,
    Left,
    Missed,
    Outcome,
    Ready,
    ReplicaSpec,
    SnapshotTaken,
    TrainingFunctionError,
)

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Replica"]

logger = logging.getLogger(__name__)

_SESSION_TIMEOUT_S = 60.0
"""How long a control call waits for the session, which is there once torch is imported."""


class CoordinatorHost:
    """The session's host: sends everything on to the coordinator's actor, which has `notify` and `report`."""

    def __init__(self, coordinator: ActorHandle[Any], replica_id: str) -> None:
        self._coordinator = coordinator
        self._replica_id = replica_id
        self._num_sent = 0
        self._sending = threading.Lock()

    def _send(self, event: Event | None) -> Any:
        """One of several threads sends something small; it is taken in its turn (:mod:`adaptdl.runtime.turns`)."""
        with self._sending:
            number, self._num_sent = self._num_sent, self._num_sent + 1
            return self._coordinator.notify.remote(self._replica_id, number, event)

    def ready(self, position: Position) -> None:
        self._send(Ready(position=position))

    def broken(self, generation: int, place: Place, reason: str) -> None:
        self._send(Broken(generation=generation, place=place, reason=reason))

    def missed(self, generation: int, place: Place) -> None:
        self._send(Missed(generation=generation, place=place))

    def switched(self, switched: Switched) -> None:
        self._send(switched)

    def left(self, generation: int) -> None:
        self._send(Left(generation=generation))

    def update(self, update: Update) -> None:
        self._send(update)

    def snapshot(self, data: bytes, steps: int) -> None:
        """Returns when the coordinator has taken it: what is said afterwards may rely on it."""
        ray.get(self._coordinator.notify.remote(self._replica_id, None, SnapshotTaken(data=data, steps=steps)))

    def flush(self) -> None:
        """Returns when the coordinator has taken all that was sent to it."""
        ray.get(self._send(None))

    def report(
        self, metrics: dict[str, Any], files: dict[str, bytes] | None, snapshot: bytes | None, number: int
    ) -> None:
        ray.get(self._coordinator.report.remote(self._replica_id, metrics, files, snapshot, number))


class Replica:
    """The actor. Made with ``max_concurrency`` > 1: `run` lasts as long as the user's function."""

    def __init__(self) -> None:
        self._cargo: Cargo | None = None
        self._session: ElasticSession | None = None
        self._has_session = threading.Event()

    def ping(self) -> int:
        """Answers once the process is there: its id."""
        return os.getpid()

    def load(self, cargo: Cargo) -> None:
        """What the next `run` needs. By itself, since Ray keeps a call's arguments in its object store until the call returns."""
        self._cargo = cargo

    def run(self, spec: ReplicaSpec, coordinator: ActorHandle[Any]) -> Outcome:
        """Runs the user's function to its end, after `load`. Never raises what the function raises: the outcome says it. May be
        called again, for another replica in the same process."""
        try:
            self._enter_directory(spec.job.directory)
            began = time.monotonic()
            import_all()
            logger.debug("replica %s imported torch in %.1f s", spec.member.replica_id, time.monotonic() - began)
            from adaptdl.runtime.reporting import ReportingSession, installed

            host = CoordinatorHost(coordinator, spec.member.replica_id)
            cargo, self._cargo = self._cargo, None
            assert cargo is not None
            session = self._make_session(spec, cargo.snapshot, host)
            function, config, files = cloudpickle.loads(cargo.function), cloudpickle.loads(cargo.config), cargo.files
            del cargo
            with installed(ReportingSession(session, spec, files)):
                returned = session.run(function, config)
                led = session.rank == 0
            host.flush()
        except BaseException as error:  # noqa: BLE001 (whatever it was: the coordinator is told)
            return _raised(spec, error)
        finally:
            self._has_session.clear()
            self._session = None
        return Outcome(ending=Ending.RETURNED, led=led) if returned else Outcome(ending=Ending.LEFT)

    def open_store(self) -> tuple[str, int]:
        return self._ready_session().open_store()

    def place(self) -> Place:
        return self._ready_session().place()

    def pulse(self) -> Pulse:
        return self._ready_session().pulse()

    def lost(self, replica_ids: frozenset[str]) -> None:
        self._ready_session().lost(replica_ids)

    def abandon(self, generation: int) -> None:
        self._ready_session().abandon(generation)

    def give_up(self, generation: int) -> None:
        self._ready_session().give_up(generation)

    def reallocate(self, plan: Plan) -> None:
        self._ready_session().reallocate(plan)

    def join(self, plan: Plan) -> None:
        self._ready_session().join(plan)

    def advance(self, advance: Advance) -> None:
        self._ready_session().advance(advance)

    def leave(self) -> None:
        self._ready_session().leave()

    def _make_session(self, spec: ReplicaSpec, snapshot: bytes | None, host: CoordinatorHost) -> ElasticSession:
        import torch

        from adaptdl.torch.session import ElasticSession

        torch.set_num_threads(spec.num_threads)
        session = ElasticSession(
            replica=spec.member,
            host=host,
            snapshot=snapshot,
            start=spec.start,
            snapshot_interval_s=spec.snapshot_interval_s,
            join_timeout_s=spec.join_timeout_s,
        )
        if spec.alone:
            plan = Plan(generation=spec.generation, members=(spec.member,), source=None, reason="start")
            session.join(replace(plan, newcomers=frozenset({spec.member.replica_id}), store=session.open_store()))
        self._session = session
        self._has_session.set()
        return session

    def _ready_session(self) -> ElasticSession:
        if not self._has_session.wait(_SESSION_TIMEOUT_S):
            raise TimeoutError(f"waited {_SESSION_TIMEOUT_S:g} s for the replica's session")
        assert self._session is not None
        return self._session

    @staticmethod
    def _enter_directory(directory: str | None) -> None:
        if directory is None or os.environ.get("RAY_CHDIR_TO_TRIAL_DIR", "1") == "0":
            return
        os.makedirs(directory, exist_ok=True)
        os.environ.setdefault("TUNE_ORIG_WORKING_DIR", os.getcwd())
        os.chdir(directory)


def _raised(spec: ReplicaSpec, error: BaseException) -> Outcome:
    text = "".join(traceback.format_exception(error))
    try:
        pickled: bytes | None = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 (one that holds a lock, a socket, ...: its text has to do)
        pickled = None
    message = f"the training function of {spec.job.name} raised {type(error).__name__}: {error}\n\n{text}"
    return Outcome(
        ending=Ending.RAISED,
        error=TrainingFunctionError(message, pickled),
        about_communication=_is_about_communication(error),
    )


def _is_about_communication(error: BaseException) -> bool:
    """Whether `error` only says that a peer is gone, which another replica's error explains better."""
    if any(base.__name__ in ("DistBackendError", "DistNetworkError") for base in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    )
