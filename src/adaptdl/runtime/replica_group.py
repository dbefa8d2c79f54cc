"""The coordinator of one job: makes what the allocator wishes for so, with the replicas it commands.

It knows nothing of Tune. It belongs to an asyncio actor and never blocks its loop; the actor passes on what replicas
say (:meth:`ReplicaGroup.notify`, :meth:`ReplicaGroup.report`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from ray.actor import ActorHandle

from adaptdl.plan import LoopKind, Place, Plan, Pulse, Switched, Update
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.endings import Circumstances, Recoveries, Verdict, judge_death, judge_outcome
from adaptdl.runtime.launching import Launcher
from adaptdl.runtime.members import ReplicaRecord, ReplicaState, Roster
from adaptdl.runtime.messages import (
    Broken,
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
from adaptdl.runtime.recovering import Recovery, bring_together, furthest, plan_of_survivors, stand
from adaptdl.runtime.results import Results
from adaptdl.runtime.starting import Starter
from adaptdl.runtime.switching import PlanAborted, ReplicaUnreachable, Switcher, ask
from adaptdl.runtime.turns import Turns
from adaptdl.runtime.watching import SHARE_BETWEEN_LOOKS, Watch, progress_limit_s

__all__ = ["ReplicaGroup"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
"""How long survivors are waited for before it is looked who is left."""

_PULSE_TIMEOUT_S = 2.0
"""How long a sign of life is waited for; none is no proof of anything, until there has been none for long enough."""

_LONGEST_LOOK_S = 10.0
"""Between two looks whether replicas hang."""

_SUSPECT_S = 30.0
"""For so long after it a node on which a replica was lost may be gone itself."""

_OTHER_ERRORS_S = 1.0
"""After a replica raised, how long the others' errors are waited for: the first may only say that a peer is gone."""


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
        self._turns = Turns()
        self._reservations = Reservations(prefix_of(job.experiment, job.job_id))
        self._launcher = Launcher(
            job=job, function=function, config=config, coordinator=coordinator, reservations=self._reservations
        )
        self._switcher = Switcher(self._changed)
        self._roster = Roster()
        self.news = News(num_restarts=num_restarts, pause_s=pause_s, restored=results.newest.snapshot is not None)
        self._starter = Starter(
            launcher=self._launcher,
            roster=self._roster,
            switcher=self._switcher,
            results=results,
            news=self.news,
            ends=self,
            changed=self._changed,
            spawn=self._spawn,
            clock=clock,
        )
        self._elastic: ElasticConfig | None = None
        self._wish: dict[str, int] = {}
        self._reason = ""
        self._generation = 0
        """The one that has begun last."""
        self._abandoned_at: float | None = None
        """When its members were told that it does not work."""
        self._recovery = Recovery()
        self._recoveries = Recoveries()
        self._lost_on: dict[str, float] = {}
        """Nodes on which processes ended that should not have, and when (by `clock`) the last one did."""
        self._num_reported = 0
        """The number of the last result, as the replicas count them."""
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
            self._starter.new_wish()
        begin = self._elastic is None
        self._wish, self._elastic, self._reason = wish, elastic, reason
        if begin:
            self._spawn(self._or_fail(self._reconcile))
            self._spawn(self._or_fail(self._watch))
        self._changed.set()

    def status(self) -> JobStatus:
        """How the job stands."""
        now = self._clock()
        return self.news.status(
            phase=self._phase(),
            allocation=self._roster.count(),
            held=self._reservations.held(),
            wish=dict(self._wish),
            lost_on=frozenset(node_id for node_id, at in self._lost_on.items() if now - at < _SUSPECT_S),
            trouble=self._starter.trouble,
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

    async def notify(self, replica_id: str, number: int | None, event: Event | None) -> None:
        """Takes what a replica has to say, in the order of the numbers; None has no place in it. `event` None: nothing, it asks
        whether all before was taken."""
        if number is None:
            self._take(replica_id, event)
            return
        async with self._turns.turn(replica_id, number):
            self._take(replica_id, event)

    def _take(self, replica_id: str, event: Event | None) -> None:
        record = self._roster.get(replica_id)
        if record is None or self._ended:
            return
        match event:
            case Ready():
                if record.state is ReplicaState.STANDING:
                    record.place = Place(position=event.position, kind=LoopKind.TRAINING)
                if record.is_newcomer:
                    if not record.was_ready:
                        self.news.booted(self._clock() - record.since)
                    record.was_ready = True
                    record.position, record.state, record.since = event.position, ReplicaState.READY, self._clock()
                    record.told = 0
            case Broken():
                self._broken(record, event)
            case Missed():
                self._switcher.deliver(event)
            case Switched():
                self._switched(event)
            case Update():
                self.news.updated(event, self._clock())
            case SnapshotTaken():
                self._results.keep_snapshot(event.data)
            case Left() | None:
                pass  # the end of its function follows, or it is parked
        self._changed.set()

    async def report(
        self,
        replica_id: str,
        metrics: dict[str, Any],
        files: Mapping[str, bytes] | None,
        snapshot: bytes | None,
        number: int,
    ) -> None:
        """Takes a result, after the one before was taken; not again, if it was taken from a rank 0 that was lost since."""

        def valid() -> bool:
            return self._roster.get(replica_id) is not None and number > self._num_reported

        self._switcher.reported(replica_id)
        if number <= self._num_reported:
            return
        if await self._results.put(self.news.completed(metrics), files, snapshot, valid=valid):
            self._num_reported = number

    # -- the end ----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends all replicas and gives every place back, also those still being asked for. May be called again."""
        self._ended = True
        self._switcher.abort("the job was stopped")
        for record in self._roster:
            self._end(record)
        self._launcher.end_idle(all_of_them=True)
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
        self._ended = True
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

    def _spawn(self, coroutine: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- reconciling ------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        while not self._ended:
            self._changed.clear()
            await self._act()

    async def _or_fail(self, lasting: Callable[[], Awaitable[None]]) -> None:
        """Does what lasts as long as the job."""
        try:
            await lasting()
        except Exception as error:  # our own mistake: the job must not hang on it
            logger.exception("the coordinator failed")
            await self.fail(JobError(f"the coordinator of this job failed: {error!r}"))

    async def _act(self) -> None:
        elastic = self._elastic
        assert elastic is not None
        self._tidy(elastic)
        if self._recovery.is_open:
            await self._recover(elastic)
            return
        now = self._clock()
        seen = Seen(
            wish=self._wish,
            members=self._roster.seen_members(),
            newcomers=self._roster.seen_newcomers(now),
            parked=self._roster.seen_parked(),
            unparking=self._starter.unparking,
            min_replicas=elastic.min_replicas,
            gather_s=elastic.gather_s,
            may_start=self._starter.may_start_in_s == 0,
        )
        match decide(seen):
            case Dismiss(replica_ids=ids):
                for record in self._roster.pick(ids):
                    self._dismiss(record, elastic)
            case Start(nodes=nodes, unpark=unpark):
                nobody = self._roster.source is None and not self._roster.newcomers
                alone = nobody and sum(self._wish.values()) == 1
                self._starter.start(nodes, elastic, alone=alone, reason=self._reason)
                if unpark and self._roster.parked is not None:
                    self._starter.unpark(self._roster.parked, elastic)
            case Switch(members=ids):
                await self._switch(self._roster.pick(ids), elastic)
            case Wait(timeout_s=timeout_s):
                await self._wait(timeout_s, elastic)

    async def _wait(self, timeout_s: float | None, elastic: ElasticConfig) -> None:
        """Until something changes, or the next thing is due."""
        times = [] if timeout_s is None else [timeout_s]
        times += [self._starter.give_up_in_s(record, elastic) for record in self._starting()]
        if self._starter.may_start_in_s > 0:
            times.append(self._starter.may_start_in_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.01, min(times)) if times else None)

    def _starting(self) -> list[ReplicaRecord]:
        """Those that get there in time, or are given up; one that is to be alone is a member already, which nobody watches
        before it was told to begin."""
        newcomers = [record for record in self._roster.newcomers if record.state is ReplicaState.STARTING]
        return [*newcomers, *(record for record in self._roster.members if not record.launched.is_set())]

    def _tidy(self, elastic: ElasticConfig) -> None:
        """Gives up what takes too long, and gives back what is not needed any more."""
        self._launcher.end_idle()
        for record in self._starting():
            if self._starter.give_up_in_s(record, elastic) <= 0:
                self._end(record)
                what = "at its data loop" if record.launched.is_set() else "running"
                self._starter.failed(record, f"it was not {what} after {self._clock() - record.since:.0f} s")
        for record in self._roster.members:
            if not record.launched.is_set() and record.node_id not in self._wish:
                self._end(record)  # was to be alone, and has not begun
        parked = self._roster.parked
        if parked is not None and parked.reservation is not None and parked.node_id not in self._wish:
            self._launcher.release(parked)

    # -- changing generations ---------------------------------------------------------------------------------------

    async def _switch(self, members: list[ReplicaRecord], elastic: ElasticConfig) -> None:
        source, wish, began = self._roster.source, self._wish, self._clock()
        paused = not self._roster.members
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
            if error.record.state in (ReplicaState.MEMBER, ReplicaState.STANDING, ReplicaState.PARKED):
                await self._lost(error.record, str(error))
            elif error.record.state is not ReplicaState.GONE:
                self._end(error.record)
                self._starter.failed(error.record, str(error))
            return
        except PlanAborted as error:
            logger.info("plan given up: %s", error)
            for record in members:  # whoever is alive says again that it is ready
                if record.is_newcomer and record.told:
                    record.starts_again(self._clock())
            if self._recovery.is_open:
                return
            if source is None:
                await self._start_again("its replicas", str(error))
            elif source.state is ReplicaState.PARKED:
                await self._lost(source, str(error))
            return
        if done is None or self._ended:
            return
        plan, switched = done
        if paused:  # what counts is how long it took to go on, not how long there was nothing
            switched = replace(switched, pause_s=min(switched.pause_s, self._clock() - began))
        self._began(plan, switched, elastic)
        if self._roster.parked is not None:
            self._launcher.release(self._roster.parked)

    def _began(self, plan: Plan, switched: Switched, elastic: ElasticConfig) -> None:
        """A generation has begun."""
        self._generation, self._abandoned_at = plan.generation, None
        self._switcher.began(plan.generation)
        for record in self._roster.begin(plan, switched, self._clock()):
            self._spawn(self._retire(record, elastic))
        if not any(record.state is ReplicaState.STANDING for record in self._roster.members):
            self._recovery.close()
        reallocation = self.news.switched(switched, plan.reason)
        self.news.steps_from(self._clock())
        logger.debug("%s", reallocation.describe(self._reservations.prefix))
        if switched.dropped:
            self._starter.trouble = f"{len(switched.dropped)} replicas did not join"

    def _switched(self, event: Switched) -> None:
        """A group was formed; maybe one whose plan was given up: then it is the job's all the same, since it trains."""
        if self._switcher.deliver(event):
            return
        plan = self._switcher.told(event.generation)
        if plan is not None:
            assert self._elastic is not None
            logger.info("generation %d has begun after its plan was given up", plan.generation)
            self._switcher.abort(f"generation {plan.generation} has begun")
            self._began(plan, event, self._elastic)

    def _dismiss(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        """Lets a newcomer go that is no longer wanted; one that waits at its loop can leave its process in order."""
        if record.state is ReplicaState.READY:
            record.state = ReplicaState.LEAVING
            self._spawn(self._ask_to_leave(record, elastic))
        else:
            self._end(record)

    async def _ask_to_leave(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        with contextlib.suppress(ReplicaUnreachable):
            await ask(record, "leave", timeout_s=elastic.leave_timeout_s)
        await self._retire(record, elastic)

    async def _retire(self, record: ReplicaRecord, elastic: ElasticConfig) -> None:
        await self._launcher.end_when_unwound(record, elastic)
        self._roster.gone(record)
        self._changed.set()

    # -- what ends --------------------------------------------------------------------------------------------------

    def _circumstances(self, record: ReplicaRecord) -> Circumstances:
        plan = self._switcher.plan
        return Circumstances(
            is_newcomer=record.is_newcomer,
            is_member=record.state is ReplicaState.MEMBER,
            stands=record.state is ReplicaState.STANDING,
            is_parked=record.state is ReplicaState.PARKED,
            launched=record.launched.is_set(),
            job_has_state=self._roster.source is not None,
            joins=plan is not None and record.member in plan.members,
            leaves=plan is not None and record.member not in plan.members,
        )

    async def function_ended(self, record: ReplicaRecord, outcome: Outcome) -> None:
        """The user's function has ended in a replica."""
        record.outcome = outcome
        if not self._ended:
            reason = "it left although nobody had asked it to" if outcome.error is None else str(outcome.error)
            await self._carry_out(judge_outcome(outcome, self._circumstances(record)), record, reason)

    async def process_ended(self, record: ReplicaRecord, reason: str) -> None:
        """A replica's process has ended, or could not be started."""
        if not self._ended and record.state is not ReplicaState.GONE:
            self._lost_on[record.node_id] = self._clock()
            await self._carry_out(judge_death(self._circumstances(record)), record, reason)

    async def _carry_out(self, verdict: Verdict, record: ReplicaRecord, reason: str) -> None:
        match verdict:
            case Verdict.FORGET:
                self._end(record)
            case Verdict.TRY_AGAIN:
                self._end(record)
                self._starter.failed(record, reason)
            case Verdict.FINISH if record.is_newcomer and self._results.newest.snapshot is None:
                await self.fail(
                    JobError(
                        "the training function ended before its replicas could form a group, as it has no loop over an "
                        "AdaptiveDataLoader; such a function runs on one replica: set `min_replicas=1`"
                    )
                )
            case Verdict.FINISH:
                await self._finish()
            case Verdict.FAIL:
                assert record.outcome is not None
                assert record.outcome.error is not None
                await self.fail(record.outcome.error)
            case Verdict.BLAME:
                await self._blame(record, reason)
            case Verdict.LOST:
                await self._lost(record, reason)
            case Verdict.NOTHING:
                pass

    async def _blame(self, record: ReplicaRecord, reason: str) -> None:
        """Waits a moment for the error, or death, that is behind this one; it decides. Else the group is broken."""
        others = [member.task for member in self._roster.members if member is not record and member.task is not None]
        if others:
            await asyncio.wait(others, timeout=_OTHER_ERRORS_S)
        if not self._ended and record.state is not ReplicaState.GONE:
            await self._lost(record, reason.splitlines()[0])

    # -- losing replicas: see `recovering` ------------------------------------------------------------------------------

    async def _lost(self, record: ReplicaRecord, reason: str) -> None:
        """A replica that held the state of the job is gone. Those that are left go on."""
        if self._ended:
            return
        who = f"replica {record.replica_id} on node {record.node_id[:8]}"
        self._lost_on[record.node_id] = self._clock()  # also if its process has not ended yet: it may be out of reach
        self._end(record)
        if not self._roster.survivors:
            await self._start_again(who, reason)
            return
        logger.warning("lost %s (%s); going on with %d replicas", who, reason, len(self._roster.survivors))
        self._recovery.open(f"lost {who}", explains=True)
        self._spawn(self._abandon())
        plan = self._switcher.plan
        if plan is not None:
            source = None if plan.source is None else self._roster.get(plan.source)
            if source is None:
                self._switcher.abort(f"lost {who}")
            else:
                self._spawn(self._tell_lost(source, record.replica_id))
        self._changed.set()

    async def _abandon(self) -> None:
        """Members need not wait in collectives for one that is gone: its connections may stay open, as those of a process that
        was stopped, or of a machine that has lost its power."""
        members = [record for record in self._roster.survivors if record.state is ReplicaState.MEMBER]
        generation = self._generation
        if self._abandoned_at is None:
            self._abandoned_at = self._clock()
        await asyncio.gather(*(ask(record, "abandon", generation) for record in members), return_exceptions=True)

    async def _tell_lost(self, source: ReplicaRecord, replica_id: str) -> None:
        """Whoever calls the roll of a plan under way need not wait for a replica that is gone."""
        with contextlib.suppress(ReplicaUnreachable):
            await ask(source, "lost", frozenset([replica_id]))

    def _broken(self, record: ReplicaRecord, event: Broken) -> None:
        """A replica has lost its group, and stands; unless it has said so before it knew of its newest plan."""
        if record.state in (ReplicaState.LEAVING, ReplicaState.GONE) or event.generation < record.told:
            return
        self._roster.stands(record, event.generation, event.place)
        what = f"a group of {len(self._roster.members)} replicas broke: {event.reason}"
        self._recovery.open(what, explains=False)
        self._switcher.abort("the group is broken")

    async def _recover(self, elastic: ElasticConfig) -> None:
        """One step of putting together those that are left."""
        members = self._roster.survivors
        if not members:
            await self._start_again("all replicas", self._recovery.reason)
            return
        if not stand(members):
            await self._wait_for_survivors(members)
            return
        source = furthest(members)
        others = [record for record in members if record is not source]
        try:
            if not await bring_together(source, others) or not await self._may_try_again(self._recovery.reason):
                return
            await self._regroup(source, others, elastic)
        except ReplicaUnreachable as error:
            await self._lost(error.record, str(error))
        except PlanAborted as error:
            logger.info("the survivors could not go on: %s", error)

    async def _wait_for_survivors(self, members: list[ReplicaRecord]) -> None:
        """Until something changes, for a moment; those that were to speak by now are lost."""
        now = self._clock()
        silent = [record for record in members if record.answers_by is not None and record.answers_by < now]
        for record in silent:
            await self._lost(record, "it does not say what became of a plan that was given up")
        if not silent:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN_S)

    async def _regroup(self, source: ReplicaRecord, others: list[ReplicaRecord], elastic: ElasticConfig) -> None:
        """Makes replicas that stand in the same place a generation.

        Raises:
            ReplicaUnreachable, PlanAborted: it has not begun, as far as is known. Whoever was told has to say what it came to.
        """
        plan = await plan_of_survivors(self._switcher, source, others, self._recovery.reason)
        try:
            switched = await self._switcher.carry_out_standing(plan, [source, *others], elastic.join_timeout_s)
        except (ReplicaUnreachable, PlanAborted):
            if not self._ended and self._recovery.is_open:
                self._give_up(plan, elastic)
            raise
        if not self._ended:
            self._began(plan, switched, elastic)

    def _give_up(self, plan: Plan, elastic: ElasticConfig) -> None:
        """A plan of survivors has failed: none of them need wait for the others, and each will say so, by and by."""
        for record in self._roster.survivors:
            if record.told == plan.generation and record.state is ReplicaState.STANDING and record.place is None:
                record.answers_by = self._clock() + 2 * elastic.join_timeout_s
                self._spawn(self._tell_given_up(record, plan.generation))

    async def _tell_given_up(self, record: ReplicaRecord, generation: int) -> None:
        with contextlib.suppress(ReplicaUnreachable):
            await ask(record, "give_up", generation)

    async def _may_try_again(self, reason: str) -> bool:
        """Counts recoveries without a step in between; fails the job if there are too many."""
        assert self._elastic is not None
        count = self._recoveries.count(self.news.steps)
        if count <= self._elastic.max_recoveries:
            return True
        await self.fail(JobError(f"the job was interrupted the {count}th time without a step in between: {reason}"))
        return False

    async def _start_again(self, who: str, reason: str) -> None:
        """Nobody holds the state of the job any more: all start again from the newest snapshot."""
        if self._ended or not await self._may_try_again(f"lost {who}: {reason}"):
            return
        logger.warning("lost %s (%s); starting again from the newest snapshot", who, reason)
        self._recovery.close()
        self._abandoned_at = None
        self._switcher.abort(f"lost {who}")
        for other in self._roster:
            if other.state is not ReplicaState.LEAVING:
                self._end(other)
        self.news.lost()
        self._num_reported = 0
        self._starter.trouble, self._reason = f"lost {who}: {reason}", "lost all replicas"
        await self._results.rewind()
        self._changed.set()

    async def _watch(self) -> None:
        """Ends replicas that hang, as long as the job runs."""
        watch = Watch()
        while not self._ended:
            assert self._elastic is not None
            limit_s = progress_limit_s(
                self._elastic.progress_timeout_s, self.news.step_time_s, self._elastic.boot_timeout_s
            )
            await asyncio.sleep(min(_LONGEST_LOOK_S, SHARE_BETWEEN_LOOKS * limit_s))
            # Whoever carries out an order after a loss may take its time, but answers.
            members = [record for record in self._roster.survivors if record.place is None]
            pulses = await asyncio.gather(*(self._pulse(record, limit_s) for record in members))
            found = watch.look(
                {
                    record.replica_id: pulse
                    for record, pulse in zip(members, pulses, strict=True)
                    if pulse is None or record.state is ReplicaState.MEMBER
                },
                self._clock(),
                limit_s,
                abandoned_at=self._abandoned_at,
            )
            for record in members:
                if record.replica_id in found.hanging and record in self._roster.survivors and record.place is None:
                    await self._lost(record, f"it hangs: {found.hanging[record.replica_id]}")
            if found.deadlocked:
                logger.warning("%d replicas wait for each other for more than %.0f s", len(members), limit_s)
                await self._abandon()

    async def _pulse(self, record: ReplicaRecord, limit_s: float) -> Pulse | None:
        try:
            pulse: Pulse = await ask(record, "pulse", timeout_s=min(_PULSE_TIMEOUT_S, limit_s))
        except ReplicaUnreachable:
            return None
        return pulse
