"""The coordinator of one job: makes what the allocator wishes for so, with the replicas it commands.

It knows nothing of Tune. It belongs to an asyncio actor and never blocks its loop; the actor passes on what replicas
say (:meth:`ReplicaGroup.notify`, :meth:`ReplicaGroup.report`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ray.actor import ActorHandle

from adaptdl.plan import Place, Position, Switched, Update
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.launching import Launcher, ReplicaFailed
from adaptdl.runtime.members import ReplicaRecord, ReplicaState, Roster
from adaptdl.runtime.messages import (
    Ending,
    Event,
    JobError,
    JobInfo,
    JobStatus,
    Left,
    Missed,
    Outcome,
    Phase,
    Ready,
    SnapshotTaken,
)
from adaptdl.runtime.news import News
from adaptdl.runtime.placement import Reservations, prefix_of, runs_beside
from adaptdl.runtime.reconcile import Dismiss, Seen, Start, Switch, Wait, decide
from adaptdl.runtime.results import Results
from adaptdl.runtime.switching import PlanAborted, ReplicaUnreachable, Switcher, ask

__all__ = ["ReplicaGroup"]

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 2.0
_LONGEST_BACKOFF_S = 60.0
"""After replicas could not be started, the wish is tried again after a while that doubles each time."""
_PLACE_TIMEOUT_S = 1.0
"""How long the start of a newcomer is held up by the question where the others are."""
_OTHER_ERRORS_S = 1.0
"""After a replica raised, how long the others' errors are waited for: the first one may only say that a peer is gone."""


class ReplicaGroup:
    """The replicas of one job.

    Args:
        job: who it is.
        function: the user's function of one argument, pickled; only replicas unpickle it.
        config: its argument, pickled.
        coordinator: the actor this object lives in; replicas call its ``notify`` and ``report``.
        results: where results go; holds what the job is restored from.
        num_restarts: reallocations made before, if the job is restored.
        pause_s: their pauses together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        job: JobInfo,
        function: bytes,
        config: bytes,
        coordinator: ActorHandle[Any],
        results: Results,
        num_restarts: int = 0,
        pause_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._results = results
        self._clock = clock
        self._changed = asyncio.Event()
        self._reservations = Reservations(prefix_of(job.experiment, job.job_id))
        self._launcher = Launcher(
            job=job, function=function, config=config, coordinator=coordinator, reservations=self._reservations
        )
        self._switcher = Switcher(self._changed)
        self._roster = Roster()
        self.news = News(num_restarts=num_restarts, pause_s=pause_s, restored=results.newest_snapshot is not None)
        self._elastic: ElasticConfig | None = None
        self._wish: dict[str, int] = {}
        self._reason = ""
        self._trouble = ""
        self._backoff_s = 0.0
        self._may_start_at = 0.0
        self._unparking = False
        self._num_recoveries = 0
        self._recovered_at_steps = -1
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- from the allocator -----------------------------------------------------------------------------------------

    def set_allocation(self, allocation: Mapping[str, int], elastic: ElasticConfig, reason: str) -> None:
        """From now on the job should have these replicas; a wish that was not yet fulfilled is forgotten.

        Args:
            allocation: node → number of replicas; empty pauses the job.
            elastic: with `resources_per_replica` set.
            reason: for the log.
        """
        assert elastic.resources_per_replica is not None
        if self._ended:
            return
        wish = {node_id: number for node_id, number in allocation.items() if number > 0}
        if wish != self._wish:
            self._backoff_s, self._may_start_at, self._trouble = 0.0, 0.0, ""
        begin = self._elastic is None
        self._wish, self._elastic, self._reason = wish, elastic, reason
        if begin:
            self._spawn(self._reconcile())
        self._changed.set()

    def status(self) -> JobStatus:
        """How the job stands."""
        return self.news.status(
            phase=self._phase(),
            allocation=self._roster.count(),
            held=self._reservations.held(),
            wish=dict(self._wish),
            trouble=self._trouble,
        )

    def _phase(self) -> Phase:
        if self._ended:
            return Phase.ENDED
        if self._roster.count():
            return Phase.RUNNING
        if self._roster.members or self._roster.newcomers:
            return Phase.STARTING
        return Phase.WAITING if self.news.num_generations == 0 else Phase.PAUSED

    # -- from the replicas ------------------------------------------------------------------------------------------

    def notify(self, replica_id: str, event: Event) -> None:
        """Takes what a replica has to say. Never waits."""
        record = self._roster.get(replica_id)
        if record is None or self._ended:
            return
        match event:
            case Ready():
                if record.state is ReplicaState.STARTING:
                    self.news.booted(self._clock() - record.since)
                    record.position, record.state, record.since = event.position, ReplicaState.READY, self._clock()
            case Switched():
                if self._switcher.plan is None and record.state is ReplicaState.MEMBER and self.news.num_running == 0:
                    self.news.switched(event, self._reason)  # the first generation of a replica that is alone
                else:
                    self._switcher.deliver(event)
            case Missed():
                self._switcher.deliver(event)
            case Update():
                self.news.updated(event)
            case SnapshotTaken():
                self._results.keep_snapshot(event.data)
            case Left():
                pass  # the end of its function follows, or it is parked
        self._changed.set()

    async def report(
        self, replica_id: str, metrics: dict[str, Any], files: Mapping[str, bytes] | None, snapshot: bytes | None
    ) -> None:
        """Takes a result, after the one before was taken."""

        def valid() -> bool:
            return self._roster.get(replica_id) is not None

        await self._results.put(self.news.completed(metrics), files, snapshot, valid=valid)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends all replicas and gives every place back, also those still being asked for. May be called again."""
        self._ended = True
        self._switcher.abort("the job was stopped")
        for record in self._roster:
            self._end(record)
        self._reservations.close()
        self._changed.set()
        await self._results.end()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def fail(self, error: JobError) -> None:
        """Ends the job with an error, which comes after its last result."""
        if not self._ended:
            await self._results.end(error)
            await self.stop()

    async def _finish(self) -> None:
        """The function has returned on rank 0; the others have a moment to do so, too."""
        await self._results.end()
        for record in self._roster.newcomers:
            self._end(record)
        self._switcher.abort("the training function has returned")
        assert self._elastic is not None
        others = [record.task for record in self._roster.members if record.task is not None and not record.task.done()]
        others = [task for task in others if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=self._elastic.leave_timeout_s)
        await self.stop()

    def _end(self, record: ReplicaRecord) -> None:
        self._launcher.end(record)
        self._roster.gone(record)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- reconciling ------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        try:
            while not self._ended:
                self._changed.clear()
                await self._act()
        except Exception as error:  # our own mistake: the job must not hang on it
            logger.exception("the coordinator failed")
            await self.fail(JobError(f"the coordinator of this job failed: {error!r}"))

    async def _act(self) -> None:
        elastic = self._elastic
        assert elastic is not None
        self._tidy(elastic)
        now = self._clock()
        seen = Seen(
            wish=self._wish,
            members=self._roster.seen_members(),
            newcomers=self._roster.seen_newcomers(now),
            parked=self._roster.seen_parked(),
            unparking=self._unparking,
            min_replicas=elastic.min_replicas,
            gather_s=elastic.gather_s,
            may_start=now >= self._may_start_at,
        )
        match decide(seen):
            case Dismiss(replica_ids=ids):
                for record in self._roster.pick(ids):
                    self._end(record)
            case Start(nodes=nodes, unpark=unpark):
                self._start(nodes, unpark, elastic)
            case Switch(members=ids):
                await self._switch(self._roster.pick(ids), elastic)
            case Wait(timeout_s=timeout_s):
                await self._wait(timeout_s, elastic)

    async def _wait(self, timeout_s: float | None, elastic: ElasticConfig) -> None:
        now = self._clock()
        times = [timeout_s] if timeout_s is not None else []
        times += [
            record.since + self._boot_timeout_s(elastic) - now
            for record in self._roster.newcomers
            if record.state is ReplicaState.STARTING
        ]
        if self._may_start_at > now:
            times.append(self._may_start_at - now)
        try:
            await asyncio.wait_for(self._changed.wait(), max(0.01, min(times)) if times else None)
        except asyncio.TimeoutError:
            pass

    def _tidy(self, elastic: ElasticConfig) -> None:
        """Gives up what takes too long, and gives back what is not needed any more."""
        for record in self._roster.newcomers:
            waited_s = self._clock() - record.since
            if record.state is ReplicaState.STARTING and waited_s > self._boot_timeout_s(elastic):
                self._end(record)
                self._start_failed(record, f"it did not reach its data loop within {waited_s:.0f} s")
        for record in list(self._roster.members):
            if not record.launched.is_set() and record.node_id not in self._wish:
                self._end(record)  # was to be alone, and has not begun
        parked = self._roster.parked
        if parked is not None and parked.reservation is not None and parked.node_id not in self._wish:
            self._launcher.release(parked)

    def _boot_timeout_s(self, elastic: ElasticConfig) -> float:
        """Functions that take long before their first loop may take as long again."""
        return max(elastic.boot_timeout_s, 3 * (self.news.boot_s or 0.0))

    # -- starting ---------------------------------------------------------------------------------------------------

    def _start(self, nodes: Mapping[str, int], unpark: bool, elastic: ElasticConfig) -> None:
        nobody = self._roster.source is None and not self._roster.newcomers
        alone = nobody and sum(self._wish.values()) == 1
        for node_id, number in nodes.items():
            for _ in range(number):
                record = self._roster.add(node_id, self._clock(), alone=alone)
                record.task = self._spawn(self._live(record, elastic, alone))
        if unpark:
            assert self._roster.parked is not None
            self._unparking = True
            self._spawn(self._unpark(self._roster.parked, elastic))

    async def _live(self, record: ReplicaRecord, elastic: ElasticConfig, alone: bool) -> None:
        """A replica's life, from its reservation to the end of the user's function."""
        try:
            await self._launcher.reserve(record, elastic)
            await self._launcher.start_process(record, elastic)
            source = self._roster.source
            start = None if alone or source is None else await self._place_of(source)
            if record.state is ReplicaState.GONE:
                return
            outcome = await self._launcher.run(
                record,
                elastic,
                alone=alone,
                generation=self._switcher.next_generation() if alone else 0,
                start=start,
                snapshot=self._results.newest_snapshot if source is None or source is record else None,
                files=self._results.newest_files,
            )
        except ReplicaFailed as error:
            await self._process_ended(record, str(error))
        else:
            await self._function_ended(record, outcome)
        finally:
            self._changed.set()

    async def _place_of(self, source: ReplicaRecord) -> Place | None:
        """Where the job is, for a newcomer to start there; None if it has no place yet."""
        try:
            place: Place = await ask(source, "place", timeout_s=_PLACE_TIMEOUT_S)
        except ReplicaUnreachable:
            return None
        return place if place.position > Position() else None

    async def _unpark(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        try:
            await self._launcher.reserve(record, elastic)
        except ReplicaFailed as error:
            self._start_failed(record, str(error))
        finally:
            self._unparking = False
            self._changed.set()

    def _start_failed(self, record: ReplicaRecord, reason: str) -> None:
        self._backoff_s = min(_LONGEST_BACKOFF_S, max(_FIRST_BACKOFF_S, 2 * self._backoff_s))
        self._may_start_at = self._clock() + self._backoff_s
        self._trouble = f"replica on node {record.node_id[:8]}: {reason}"
        logger.warning("%s; trying again in %.0f s", self._trouble, self._backoff_s)
        self._changed.set()

    # -- changing generations ---------------------------------------------------------------------------------------

    async def _switch(self, members: list[ReplicaRecord], elastic: ElasticConfig) -> None:
        source, wish = self._roster.source, self._wish
        assert elastic.resources_per_replica is not None
        parks = not members and source is not None and runs_beside(elastic.resources_per_replica)
        try:
            done = await self._switcher.carry_out(
                source=source,
                members=members,
                park=frozenset({source.replica_id}) if parks and source is not None else frozenset(),
                reason=self._reason,
                join_timeout_s=elastic.join_timeout_s,
                still_wanted=lambda: self._wish == wish and not self._ended,
            )
        except ReplicaUnreachable as error:
            if error.record.state in (ReplicaState.MEMBER, ReplicaState.PARKED):
                await self._lost(error.record, str(error))
            elif error.record.state is not ReplicaState.GONE:
                self._end(error.record)
                self._start_failed(error.record, str(error))
            return
        except PlanAborted as error:
            logger.info("plan given up: %s", error)
            if source is None or source.state is ReplicaState.PARKED:
                await self._lost(source, str(error))
            return
        if done is None or self._ended:
            return
        plan, switched = done
        for record in self._roster.begin(plan, switched, self._clock()):
            self._spawn(self._retire(record, elastic))
        if self._roster.parked is not None:
            self._launcher.release(self._roster.parked)
        reallocation = self.news.switched(switched, plan.reason)
        logger.debug("%s", reallocation.describe(self._reservations.prefix))
        if switched.dropped:
            self._trouble = f"{len(switched.dropped)} newcomers did not join"

    async def _retire(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        await self._launcher.end_when_unwound(record, elastic.leave_timeout_s)
        self._roster.gone(record)
        self._changed.set()

    # -- what ends --------------------------------------------------------------------------------------------------

    async def _function_ended(self, record: ReplicaRecord, outcome: Outcome) -> None:
        record.outcome = outcome
        if self._ended or record.state in (ReplicaState.GONE, ReplicaState.LEAVING):
            return
        if outcome.ending is Ending.RAISED:
            await self._raised(record, outcome)
        elif record.is_newcomer and not self._plans_with(record):
            first = self._roster.source is None
            self._end(record)
            if first:  # it has found nothing to do: the function has no data loop, or none that is left
                await self._finish()
        elif outcome.ending is Ending.RETURNED:
            if record is self._roster.source or self._leads_plan(record):
                await self._finish()
        elif not self._plans_without(record):
            await self._lost(record, "it left although nobody had asked it to")

    async def _raised(self, record: ReplicaRecord, outcome: Outcome) -> None:
        assert outcome.error is not None
        if record.is_newcomer and self._roster.source is not None and not self._plans_with(record):
            self._end(record)
            self._start_failed(record, str(outcome.error))
            return
        if not outcome.about_communication:
            await self.fail(outcome.error)
            return
        # Somebody else's error, or death, is behind it.
        others = [member.task for member in self._roster.members if member is not record and member.task is not None]
        if others:
            await asyncio.wait(others, timeout=_OTHER_ERRORS_S, return_when=asyncio.ALL_COMPLETED)
        if not self._ended and record.state is not ReplicaState.GONE:
            await self._lost(record, str(outcome.error).splitlines()[0])

    async def _process_ended(self, record: ReplicaRecord, reason: str) -> None:
        if self._ended or record.state is ReplicaState.GONE:
            return
        if record.is_newcomer or not record.launched.is_set():
            self._end(record)
            self._start_failed(record, reason)
        elif record.state is ReplicaState.LEAVING:
            self._end(record)
        elif record.state is ReplicaState.PARKED:
            self._end(record)
            logger.warning("the parked replica is lost (%s); the job goes on from its newest snapshot", reason)
        else:
            await self._lost(record, reason)

    async def _lost(self, record: ReplicaRecord | None, reason: str) -> None:
        """The state of the job is lost, or part of its group: all start again from the newest snapshot."""
        if self._ended:
            return
        assert self._elastic is not None
        self._num_recoveries = 1 if self.news.steps > self._recovered_at_steps else self._num_recoveries + 1
        self._recovered_at_steps = self.news.steps
        who = "its replicas" if record is None else f"replica {record.replica_id} on node {record.node_id[:8]}"
        if self._num_recoveries > self._elastic.max_recoveries:
            await self.fail(JobError(f"the job lost {who} {self._num_recoveries} times without a step in between: {reason}"))
            return
        logger.warning("lost %s (%s); starting again from the newest snapshot", who, reason)
        self._switcher.abort(f"lost {who}")
        for other in self._roster:
            if other.state is not ReplicaState.LEAVING:
                self._end(other)
        self.news.lost()
        self._trouble, self._reason = f"lost {who}: {reason}", "lost a replica"
        await self._results.wake()
        self._changed.set()

    def _plans_with(self, record: ReplicaRecord) -> bool:
        plan = self._switcher.plan
        return plan is not None and record.member in plan.members

    def _plans_without(self, record: ReplicaRecord) -> bool:
        plan = self._switcher.plan
        return plan is not None and record.member not in plan.members

    def _leads_plan(self, record: ReplicaRecord) -> bool:
        plan = self._switcher.plan
        return plan is not None and plan.num_replicas > 0 and plan.members[0] == record.member
