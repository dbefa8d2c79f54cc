"""Survivors that stand, are told a plan, and cannot carry it out, or do so after all; as the coordinator hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from adaptdl.plan import Advance, LoopKind, Member, Place, Position, Pulse
from adaptdl.runtime.members import ReplicaRecord, ReplicaState
from adaptdl.runtime.switching import ReplicaUnreachable
from tests.runtime.coordinators import JOIN_TIMEOUT_S, Coordinated, eventually

SOON_S = 0.05
PLACE = Place(position=Position(epoch=0), kind=LoopKind.TRAINING, steps=5)


def run(nodes: str, story: Callable[[Coordinated], Awaitable[None]], newcomers: str = "", **elastic: int) -> None:
    async def main() -> None:
        with Coordinated.running(nodes, newcomers, **elastic) as job:
            try:
                await story(job)
            finally:
                await job.group.stop()

    asyncio.run(main())


async def told_plan_2(job: Coordinated, nodes: str) -> None:
    for node in nodes:
        await job.break_(node, 1)
    await eventually(job.was_told(2, nodes), "the first plan")


def test_a_group_that_cannot_be_formed_is_one_more_recovery() -> None:
    """However far apart its members say so."""

    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        await job.break_("a", 2)
        await asyncio.sleep(SOON_S)
        assert job.newest_plan == 2  # c has not said what it came to
        await job.break_("c", 2)
        await eventually(job.was_told(3, "ac"), "the second plan")
        await job.switch("a", 3, 2)
        await eventually(lambda: not job.group._recovery.is_open, "the end of the recovery")
        assert [record.state for record in job.records.values()] == [ReplicaState.MEMBER] * 2
        assert job.group._recoveries._count == 2

    run("ac", story)


def test_what_was_said_of_an_older_group_does_not_count() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        await job.break_("c", 1)  # it has not looked at its orders yet
        await asyncio.sleep(SOON_S)
        assert job.group._switcher.plan is not None  # not given up
        await job.switch("a", 2, 2)
        await eventually(lambda: not job.group._recovery.is_open, "the end of the recovery")
        assert job.newest_plan == 2

    run("ac", story)


def test_a_group_that_was_formed_after_its_plan_was_given_up_is_the_jobs() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        await asyncio.sleep(2 * JOIN_TIMEOUT_S + SOON_S)
        assert ("a", "give_up", 2) in job.orders
        assert job.group._switcher.plan is None
        await job.switch("a", 2, 2)
        await asyncio.sleep(SOON_S)
        assert not job.group._recovery.is_open
        assert job.newest_plan == 2
        assert job.group._generation == 2
        await asyncio.sleep(2 * JOIN_TIMEOUT_S + SOON_S)  # nobody has to say anything any more
        assert len(job.group._roster.survivors) == 2

    run("ac", story, progress_timeout_s=60)


def test_who_comes_too_late_for_the_roll_does_not_keep_the_others_from_training() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "acd")
        await job.break_("d", 2)
        await asyncio.sleep(SOON_S)
        await job.switch("a", 2, 2, "d")
        await eventually(lambda: not job.group._recovery.is_open, "the end of the recovery")
        assert [record.node_id for record in job.group._roster.members] == ["a", "c"]

    run("acd", story)


def test_a_member_that_has_lost_a_generation_before_it_was_known_to_have_begun_stands() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        await job.break_("c", 2)
        await job.switch("a", 2, 2)
        assert (job.records["a"].state, job.records["c"].state) == (ReplicaState.MEMBER, ReplicaState.STANDING)
        await job.break_("a", 2)
        await eventually(job.was_told(3, "ac"), "the next plan")

    run("ac", story)


def test_who_never_says_what_became_of_a_plan_is_lost() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        await job.break_("a", 2)
        await eventually(job.was_told(3, "a"), "a plan without the other one")
        assert job.records["c"].state is ReplicaState.GONE

    run("ac", story, progress_timeout_s=60)


def test_a_survivor_that_dies_while_a_group_is_formed_is_not_waited_for() -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "acd")
        lost = job.records["d"]
        await job.group.process_ended(lost, "killed")
        await eventually(
            lambda: ("a", "lost", frozenset([lost.replica_id])) in job.orders, "whoever calls the roll to be told"
        )
        await job.switch("a", 2, 2, "d")
        await eventually(lambda: not job.group._recovery.is_open, "the end of the recovery")

    run("acd", story)


def test_a_member_that_is_stuck_while_all_seem_to_wait_is_lost() -> None:
    async def story(job: Coordinated) -> None:
        job.answers["pulse"] = lambda _: Pulse(place=PLACE, generation=1, waited_s=100.0, num_batches=3)
        await eventually(lambda: ("c", "abandon", 1) in job.orders, "the group to be abandoned")
        await job.break_("a", 1)  # it is free, and the other one is not
        await eventually(job.was_told(2, "a"), "a plan without the one that is stuck")
        assert job.records["c"].state is ReplicaState.GONE

    run("ac", story)


def test_a_survivor_that_was_told_a_plan_and_does_not_answer_is_lost() -> None:
    async def story(job: Coordinated) -> None:
        answers = Pulse(place=PLACE, generation=1, waited_s=None, num_batches=3)
        job.answers["pulse"] = lambda node: answers if node == "a" else stopped()
        await told_plan_2(job, "ac")
        await eventually(lambda: job.records["c"].state is ReplicaState.GONE, "the stopped one to be lost")
        assert job.records["a"].state is ReplicaState.STANDING

    run("ac", story, join_timeout_s=30)


def stopped() -> Pulse:
    raise ReplicaUnreachable(ReplicaRecord(Member(replica_id="c", node_id="c"), ReplicaState.STANDING, 0.0), "stopped")


def test_going_on_to_where_the_others_stand_is_no_recovery_of_its_own() -> None:
    async def story(job: Coordinated) -> None:
        await job.break_("a", 1, steps=5)
        await job.break_("c", 1, steps=4, kind=LoopKind.BETWEEN)
        await eventually(lambda: any(isinstance(given, Advance) for _, _, given in job.orders), "an order to go on")
        await job.break_("c", 1)
        await eventually(job.was_told(2, "ac"), "the plan")
        assert job.group._recoveries._count == 1

    run("ac", story)


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_groups_that_fail_again_and_again_fail_the_job_only_after_the_last_recovery(num_failures: int) -> None:
    async def story(job: Coordinated) -> None:
        await told_plan_2(job, "ac")
        for generation in range(2, 2 + num_failures):
            await eventually(job.was_told(generation, "ac"), "the plan")
            await job.break_("a", generation)
            await job.break_("c", generation)
            await asyncio.sleep(SOON_S)
        assert job.group._ended == (num_failures == 3)

    run("ac", story, max_recoveries=3)


@pytest.mark.parametrize("says_so_first", [False, True])
def test_a_newcomer_whose_group_has_failed_is_told_nothing_before_it_is_ready_again(says_so_first: bool) -> None:
    """Whether it had to go on before or not: it may hang, and who hangs does not answer."""

    async def story(job: Coordinated) -> None:
        def orders() -> list[str]:
            return [method for node, method, _ in job.orders if node == "c"]

        job.answers["place"] = lambda _: PLACE
        await job.ready("c", -1)
        await eventually(lambda: orders() == ["advance"], "an order to go on")
        await job.ready("c", PLACE.position.epoch)
        await eventually(job.was_told(2, "ac"), "the plan with it")
        if says_so_first:
            await job.ready("c", PLACE.position.epoch)
        await job.break_("a", 2)
        await eventually(job.was_told(3, "a"), "the plan without it")
        await job.switch("a", 3, 1)
        if says_so_first:
            await eventually(job.was_told(4, "ac"), "another plan with it")
        else:
            await eventually(lambda: job.records["c"].state is ReplicaState.GONE, "the newcomer to be given up")
            assert orders() == ["advance", "join"]

    run("a", story, newcomers="c", progress_timeout_s=60)


def test_a_newcomer_that_had_waited_for_long_has_time_to_go_on() -> None:
    """Also if what it goes on for is no longer wanted."""

    async def story(job: Coordinated) -> None:
        def place(_: str) -> Place:
            job.records["c"].since -= 100.0  # so long it has stood, until others were ready, too
            return PLACE

        job.answers["place"] = place
        await job.ready("c", -1)
        await eventually(lambda: ("c", "advance", Advance(place=PLACE)) in job.orders, "an order to go on")
        job.wish("acd")
        await asyncio.sleep(SOON_S)
        assert job.records["c"].state is ReplicaState.STARTING
        await job.ready("c", PLACE.position.epoch)
        await eventually(job.was_told(2, "ac"), "the plan")

    run("a", story, newcomers="c", progress_timeout_s=60, join_timeout_s=30)
