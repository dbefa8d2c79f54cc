"""Carrying out one plan: bring newcomers and source to the same place, tell them, and wait for what they say.

See :mod:`adaptdl.plan` for the exchange itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ray.exceptions import RayError

from adaptdl.plan import Advance, LoopKind, Place, Plan, Position, Switched
from adaptdl.runtime.members import ReplicaRecord, ReplicaState
from adaptdl.runtime.messages import Missed
from adaptdl.runtime.waiting import within

__all__ = ["PlanAborted", "ReplicaUnreachable", "Switcher", "ask"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CALL_TIMEOUT_S = 60.0
"""A replica that does not answer a control call in this time is taken as lost; `ask` waits for its session, too."""
_TELL_TIMEOUT_S = 10.0
"""A newcomer that stands at its loop and does not take its plan, or order to go on, in this time hangs; nobody waits for it."""
_MAX_ATTEMPTS = 5
"""Targets that may be missed in a row. Each one lies an epoch further ahead than the one before."""
_LOOK_INTERVAL_S = 0.05
"""How often the source is asked where it is, while newcomers wait for its next training loop."""
_CHECK_INTERVAL_S = 1.0
"""How often a source that carries out a plan is asked where it is."""
_REMIND_INTERVAL_S = 60.0
"""How often the log says that a plan still waits."""


class PlanAborted(Exception):
    """The plan cannot be carried out any more; the message says why."""


class ReplicaUnreachable(Exception):
    """A control call to a replica failed.

    Attributes:
        record: the replica.
    """

    def __init__(self, record: ReplicaRecord, reason: str) -> None:
        super().__init__(f"replica {record.replica_id} on node {record.node_id[:8]}: {reason}")
        self.record = record


async def ask(record: ReplicaRecord, method: str, *args: Any, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
    """Calls a control method of a replica.

    Raises:
        ReplicaUnreachable: it is gone, or did not answer in time.
    """
    try:
        await within(timeout_s, record.launched.wait(), "its process to start")
        if record.actor is None or record.state is ReplicaState.GONE:
            raise ReplicaUnreachable(record, "is gone")
        call: Awaitable[Any] = getattr(record.actor, method).remote(*args)
        return await within(timeout_s, call, f"{method}()")
    except (RayError, TimeoutError) as error:
        raise ReplicaUnreachable(record, f"{method}() failed: {error}") from error


@dataclass
class _Pending:
    plan: Plan
    answer: asyncio.Future[Switched | Missed]


class Switcher:
    """Carries out plans, one at a time.

    Args:
        changed: set whenever something of a replica has changed.
    """

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._pending: _Pending | None = None
        self._told: dict[int, Plan] = {}
        """By generation: what replicas were told since the last generation has begun."""
        self.generation = 0
        """The number used last."""

    @property
    def plan(self) -> Plan | None:
        """The plan that replicas carry out right now."""
        return None if self._pending is None else self._pending.plan

    def deliver(self, answer: Switched | Missed) -> bool:
        """Takes what a replica said about the plan that is being carried out; False if it is about another one, or this one
        was given up."""
        pending = self._pending
        if pending is None or pending.plan.generation != answer.generation:
            return False
        if pending.answer.done():
            return pending.answer.exception() is None
        pending.answer.set_result(answer)
        return True

    def told(self, generation: int) -> Plan | None:
        """The plan of a generation that has not begun, as far as is known."""
        return self._told.get(generation)

    def began(self, generation: int) -> None:
        """Older plans cannot come about any more."""
        self._told = {told: plan for told, plan in self._told.items() if told > generation}

    def reported(self, replica_id: str) -> None:
        """A replica has sent a result. If it leads a first generation that is being formed, it stands: functions may report
        before their first loop, and have none."""
        plan = self.plan
        if plan is not None and plan.source is None and plan.members and plan.members[0].replica_id == replica_id:
            self.deliver(
                Switched(
                    generation=plan.generation,
                    num_replicas=plan.num_replicas,
                    num_nodes=plan.num_nodes,
                    position=Position(),
                    steps=0,
                    pause_s=0.0,
                )
            )

    def abort(self, reason: str) -> None:
        """Ends the wait for the plan that is being carried out, if there is one."""
        if self._pending is not None and not self._pending.answer.done():
            self._pending.answer.set_exception(PlanAborted(reason))

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    async def carry_out(
        self,
        *,
        source: ReplicaRecord | None,
        members: Sequence[ReplicaRecord],
        park: frozenset[str],
        reason: str,
        join_timeout_s: float,
        still_wanted: Callable[[], bool],
    ) -> tuple[Plan, Switched] | None:
        """Makes `members`, in rank order, the next generation, with the state of `source`.

        Returns:
            the plan and what became of it; None if it was given up before anything has happened.

        Raises:
            ReplicaUnreachable: a replica cannot be told.
            PlanAborted: `abort` was called, or the members did not find together.
        """
        newcomers = [record for record in members if not record.holds_state]
        for attempt in range(_MAX_ATTEMPTS):
            target = None
            if source is not None and newcomers:
                target = await self._gather(source, newcomers, attempt, join_timeout_s, still_wanted)
                if target is None:
                    return None
            plan = Plan(
                generation=self.next_generation(),
                members=tuple(record.member for record in members),
                source=None if source is None else source.replica_id,
                newcomers=frozenset(record.replica_id for record in newcomers),
                store=await self._open_store(source, members),
                target=target,
                park=park,
                reason=reason,
            )
            answer = await self._execute(plan, source, newcomers, join_timeout_s)
            if isinstance(answer, Switched):
                return plan, answer
            logger.debug(
                "generation %d missed its target %s, the source is at %s",
                plan.generation,
                target,
                answer.place.position,
            )
        logger.warning("newcomers have missed the loops of their group %d times; trying again later", _MAX_ATTEMPTS)
        return None

    async def _open_store(
        self, source: ReplicaRecord | None, members: Sequence[ReplicaRecord]
    ) -> tuple[str, int] | None:
        if not members:
            return None
        address: tuple[str, int] = await ask(source or members[0], "open_store")
        return address

    async def carry_out_standing(self, plan: Plan, members: Sequence[ReplicaRecord], join_timeout_s: float) -> Switched:
        """Carries out a plan of replicas that all stand, the first of which is the source.

        Raises:
            ReplicaUnreachable, PlanAborted: as `carry_out`.
        """
        answer = await self._execute(plan, members[0], members[1:], join_timeout_s)
        assert isinstance(answer, Switched), answer
        return answer

    # -- bringing them to the same place --------------------------------------------------------------------------

    async def _gather(
        self,
        source: ReplicaRecord,
        newcomers: Sequence[ReplicaRecord],
        attempt: int,
        timeout_s: float,
        still_wanted: Callable[[], bool],
    ) -> Position | None:
        """Chooses the place to meet and has all newcomers stand there; None if that came to nothing."""
        place = await self._meeting_place(source, attempt, still_wanted)
        if place is None:
            return None
        furthest = max((record.position for record in newcomers if record.position is not None), default=place.position)
        if furthest > place.position:
            place = Place(position=furthest, kind=LoopKind.TRAINING, steps=place.steps)
        for record in newcomers:
            if record.position != place.position:
                record.starts_again(time.monotonic())
                await ask(record, "advance", Advance(place=place), timeout_s=_TELL_TIMEOUT_S)
        deadline = time.monotonic() + timeout_s
        while not all(record.state is ReplicaState.READY for record in newcomers):
            if not await self._wait_for_change(deadline - time.monotonic()):
                logger.warning("newcomers did not reach %s within %g s", place.position, timeout_s)
                return None
            if any(not record.is_newcomer for record in newcomers) or not still_wanted():
                return None
        return place.position

    async def _meeting_place(
        self, source: ReplicaRecord, attempt: int, still_wanted: Callable[[], bool]
    ) -> Place | None:
        """At first the training loop the source is in, or its next one; after a miss, loops further ahead."""
        place: Place = await ask(source, "place")
        if source.state is ReplicaState.PARKED:
            return place
        if attempt > 0:
            return _ahead(place, attempt)
        began_at = place.position
        while place.kind is not LoopKind.TRAINING:
            if not still_wanted() or source.state is not ReplicaState.MEMBER:
                return None
            if place.position != began_at and place.position.epoch != began_at.epoch:
                return _ahead(place, 1)  # epochs pass between two looks: their training loops are not met by looking
            await asyncio.sleep(_LOOK_INTERVAL_S)
            place = await ask(source, "place")
        return place

    async def _wait_for_change(self, timeout_s: float) -> bool:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), max(0.0, timeout_s))
        except TimeoutError:
            return False
        return True

    # -- telling them ---------------------------------------------------------------------------------------------

    async def _execute(
        self, plan: Plan, source: ReplicaRecord | None, newcomers: Sequence[ReplicaRecord], join_timeout_s: float
    ) -> Switched | Missed:
        answer: asyncio.Future[Switched | Missed] = asyncio.get_running_loop().create_future()
        self._pending = _Pending(plan, answer)
        self._told[plan.generation] = plan
        try:
            await asyncio.gather(*(self._tell(record, plan, timeout_s=_TELL_TIMEOUT_S) for record in newcomers))
            if source is not None:
                await self._tell(source, plan, timeout_s=_CALL_TIMEOUT_S)
            if source is not None and source.state is ReplicaState.MEMBER:
                return await self._answer_of_training(plan, answer, source)
            done, _ = await asyncio.wait([answer], timeout=2 * join_timeout_s)
            if not done:
                raise PlanAborted(f"waited {2 * join_timeout_s:g} s for {plan.num_replicas} replicas to form a group")
            return answer.result()
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # taken note of: it was raised above, or another error was first
            self._pending = None

    async def _tell(self, record: ReplicaRecord, plan: Plan, *, timeout_s: float) -> None:
        is_member = record.state is ReplicaState.MEMBER
        if not is_member:
            record.told, record.place = plan.generation, None
        await ask(record, "reallocate" if is_member else "join", plan, timeout_s=timeout_s)

    async def _answer_of_training(
        self, plan: Plan, answer: asyncio.Future[Switched | Missed], source: ReplicaRecord
    ) -> Switched | Missed:
        """Waits for the answer of a source that trains. It comes to its boundary when it does: validation
        may take long."""
        began = reminded = time.monotonic()
        num_beyond = 0
        while True:
            done, _ = await asyncio.wait([answer], timeout=_CHECK_INTERVAL_S)
            if done:
                return answer.result()
            place: Place = await ask(source, "place")
            beyond = plan.target is not None and place.position > plan.target
            num_beyond = num_beyond + 1 if beyond else 0
            if num_beyond > 1 and not answer.done():  # it did not say so, or was not heard
                return Missed(generation=plan.generation, place=place)
            if time.monotonic() - reminded > _REMIND_INTERVAL_S:
                reminded = time.monotonic()
                logger.info("a plan still waits for %s of its group after %.0f s", place.kind.value, reminded - began)


def _ahead(place: Place, epochs: int) -> Place:
    """A loop that the source has not reached yet."""
    here = place.position
    if here.epoch >= 0:
        position = Position(epoch=here.epoch + epochs, loop=0)
    else:
        position = Position(epoch=here.epoch, loop=here.loop + epochs)
    return replace(place, position=position, kind=LoopKind.TRAINING, record=b"")
