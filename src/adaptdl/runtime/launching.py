"""Starting one replica's process, and ending it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from adaptdl.forking import worker_command
from adaptdl.plan import Place
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.imports import WITHOUT_RAY
from adaptdl.runtime.members import ReplicaRecord, ReplicaState
from adaptdl.runtime.messages import Cargo, Ending, JobInfo, Outcome, ReplicaSpec
from adaptdl.runtime.placement import Reservations, actor_options, runs_beside
from adaptdl.runtime.replica import Replica
from adaptdl.runtime.waiting import within

__all__ = ["Launcher", "ReplicaFailed"]

logger = logging.getLogger(__name__)

_NUM_CONTROL_THREADS = 8
"""Threads of a replica's actor: one for the user's function, the others for control calls."""


_IDLE_ANSWER_S = 2.0
_LEAVE_PYTHON_ALONE = {"config", "env_vars", "excludes", "py_modules", "worker_process_setup_hook", "working_dir"}
"""Parts of a runtime environment that do not say what workers are started with."""
_BY_VALUE_BYTES = 2**16
"""What is smaller travels in the call itself."""


@dataclass(frozen=True, kw_only=True)
class _Idle:
    """A process whose replica has left."""

    node_id: str
    actor: ActorHandle[Any]
    until: float
    """Monotonic time at which it is ended."""


@dataclass(kw_only=True)
class _Loading:
    """Replicas that are being sent the same cargo."""

    cargo: Cargo
    sent: Any
    """The cargo, or its only copy in the object store, which is gone when nobody is being sent it any more."""
    num_replicas: int = 0


class ReplicaFailed(Exception):
    """A replica's process has ended, or could not be started; the message says why."""


class Launcher:
    """Starts and ends the replicas of one job.

    Args:
        job: whose replicas they are.
        function: the user's function of one argument, pickled.
        config: its argument, pickled.
        coordinator: the actor the replicas report to.
        reservations: where places for them are taken from.
    """

    def __init__(
        self,
        *,
        job: JobInfo,
        function: bytes,
        config: bytes,
        coordinator: ActorHandle[Any],
        reservations: Reservations,
    ) -> None:
        self._job = job
        self._function = function
        self._config = config
        self._coordinator = coordinator
        self._reservations = reservations
        self._actor_class: Any = ray.remote(Replica)
        self._idle: list[_Idle] = []
        self._loading: _Loading | None = None

    async def reserve(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        """Takes a place on the replica's node.

        Raises:
            ReplicaFailed: the node has none to give.
        """
        assert elastic.resources_per_replica is not None
        record.reserving = asyncio.ensure_future(
            self._reservations.reserve(
                record.node_id, elastic.resources_per_replica, timeout_s=elastic.reservation_timeout_s
            )
        )
        try:
            await asyncio.wait([record.reserving])
            if record.reserving.cancelled():
                raise ReplicaFailed("it is no longer wanted")
            reservation = record.reserving.result()
        except (TimeoutError, RayError, RuntimeError) as error:
            raise ReplicaFailed(str(error)) from error
        finally:
            record.reserving.cancel()
        if record.state is ReplicaState.GONE:
            self._reservations.release(reservation)
            raise ReplicaFailed("it is no longer wanted")
        record.reservation = reservation

    async def start_process(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        """Starts the process at the record's reservation. Returns when it has answered.

        Raises:
            ReplicaFailed: it has not, in time.
        """
        assert record.reservation is not None
        if runs_beside(record.reservation.resources) and await self._take_idle(record):
            return
        actor: ActorHandle[Any] = self._actor_class.options(
            max_concurrency=_NUM_CONTROL_THREADS,
            max_restarts=0,
            max_task_retries=0,
            **actor_options(record.reservation),
            **_forked(record.reservation.resources, elastic),
        ).remote()
        record.actor = actor
        try:
            await within(elastic.boot_timeout_s, actor.ping.remote(), "the process of a replica to start")
        except (RayError, TimeoutError) as error:
            raise ReplicaFailed(str(error)) from error

    async def load(
        self,
        record: ReplicaRecord,
        elastic: ElasticConfig,
        *,
        snapshot: bytes | None,
        files: Mapping[str, bytes] | None,
    ) -> None:
        """Sends the process what is large: function and config, the state to start from, the user's own checkpoint.

        Raises:
            ReplicaFailed: it could not be sent, or was not taken in time.
        """
        assert record.actor is not None
        try:
            with self._shared(snapshot, files) as cargo:
                await within(elastic.boot_timeout_s, record.actor.load.remote(cargo), "a replica to have what it needs")
        except (RayError, OSError) as error:  # the object store may be full
            raise ReplicaFailed(f"it could not be sent what it needs: {_first_line(error)}") from error

    async def run(
        self,
        record: ReplicaRecord,
        elastic: ElasticConfig,
        *,
        alone: bool,
        generation: int,
        start: Place | None,
    ) -> Outcome:
        """Runs the user's function in the replica, to its end; after `load`.

        Raises:
            ReplicaFailed: the process ended before, or could not be told.
        """
        assert record.actor is not None
        assert record.reservation is not None
        resources = record.reservation.resources
        spec = ReplicaSpec(
            member=record.member,
            job=self._job,
            alone=alone,
            generation=generation,
            num_threads=max(1, int(resources.get("CPU", 1.0))),
            resources=dict(resources),
            start=start,
            snapshot_interval_s=elastic.snapshot_interval_s,
            join_timeout_s=elastic.join_timeout_s,
        )
        try:
            running: Any = record.actor.run.remote(spec, self._coordinator)
        except (RayError, OSError) as error:
            raise ReplicaFailed(f"it could not be told to run: {_first_line(error)}") from error
        record.launched.set()
        try:
            outcome: Outcome = await running
        except RayError as error:
            raise ReplicaFailed(f"its process ended: {_first_line(error)}") from error
        return outcome

    @contextlib.contextmanager
    def _shared(self, snapshot: bytes | None, files: Mapping[str, bytes] | None) -> Iterator[Any]:
        """While a replica is sent these (and function and config): what to send. Those that are sent the same share a copy."""
        loading = self._loading
        if loading is None or loading.cargo.snapshot is not snapshot or loading.cargo.files is not files:
            cargo = Cargo(function=self._function, config=self._config, snapshot=snapshot, files=files)
            sent = cargo if cargo.num_bytes < _BY_VALUE_BYTES else ray.put(cargo)
            loading = self._loading = _Loading(cargo=cargo, sent=sent)
        loading.num_replicas += 1
        try:
            yield loading.sent
        finally:
            loading.num_replicas -= 1
            if not loading.num_replicas and self._loading is loading:
                self._loading = None

    def end(self, record: ReplicaRecord) -> None:
        """Ends the process at once and gives the place back."""
        record.state = ReplicaState.GONE
        if record.actor is not None:
            _kill(record.actor)
        self.release(record)

    def release(self, record: ReplicaRecord) -> None:
        """Gives the replica's place back, or stops asking for one."""
        if record.reserving is not None:
            record.reserving.cancel()
        if record.reservation is not None:
            self._reservations.release(record.reservation)
            record.reservation = None

    async def end_when_unwound(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        """Ends a replica that leaves when its function has unwound, or after a while. Its process may be kept."""
        if record.task is not None and record.task is not asyncio.current_task():
            await asyncio.wait([record.task], timeout=elastic.leave_timeout_s)
        if record.state is ReplicaState.GONE:
            return
        if self._may_keep(record, elastic):
            assert record.actor is not None
            until = time.monotonic() + elastic.idle_process_s
            self._idle.append(_Idle(node_id=record.node_id, actor=record.actor, until=until))
            record.actor = None
        self.end(record)

    # -- processes without a replica ----------------------------------------------------------------------------------

    def _may_keep(self, record: ReplicaRecord, elastic: ElasticConfig) -> bool:
        """One process for each node, if it has nothing of the node and its function has left it in order."""
        return (
            record.actor is not None
            and record.reservation is not None
            and runs_beside(record.reservation.resources)
            and elastic.idle_process_s > 0
            and record.outcome is not None
            and record.outcome.ending is Ending.LEFT
            and all(idle.node_id != record.node_id for idle in self._idle)
        )

    async def _take_idle(self, record: ReplicaRecord) -> bool:
        """Gives `record` a process that is there already, if there is one on its node."""
        for idle in [idle for idle in self._idle if idle.node_id == record.node_id]:
            self._idle.remove(idle)
            try:
                await within(_IDLE_ANSWER_S, idle.actor.ping.remote(), "an idle process to answer")
            except (RayError, TimeoutError) as error:
                logger.debug("an idle process cannot be used: %s", error)
                _kill(idle.actor)
                continue
            record.actor = idle.actor
            return True
        return False

    def end_idle(self, *, all_of_them: bool = False) -> None:
        """Ends processes that were kept for long enough."""
        now = time.monotonic()
        for idle in [idle for idle in self._idle if all_of_them or idle.until <= now]:
            self._idle.remove(idle)
            _kill(idle.actor)


def _forked(resources: Mapping[str, float], elastic: ElasticConfig) -> dict[str, Any]:
    """The Ray options of a replica whose process is forked; none if it cannot be, or should not."""
    if not elastic.fork_processes or not ray.is_initialized():
        return {}
    if not set(ray.get_runtime_context().runtime_env) <= _LEAVE_PYTHON_ALONE:
        return {}
    command = worker_command(WITHOUT_RAY, max(1, int(resources.get("CPU", 1.0))))
    return {} if command is None else {"runtime_env": {"py_executable": command}}


def _kill(actor: ActorHandle[Any]) -> None:
    try:
        ray.kill(actor)
    except (RayError, ValueError) as error:
        logger.debug("cannot end a process: %s", error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
