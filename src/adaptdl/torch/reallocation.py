"""Carrying out a plan: from one generation to the next, at a boundary (``adaptdl/plan.py`` has the whole story)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from adaptdl.plan import Member, Plan, Switched
from adaptdl.torch.batch_choice import agree_on_batch
from adaptdl.torch.group import Group, GroupBroken, communicating
from adaptdl.torch.mailbox import Leave
from adaptdl.torch.modes import in_no_mode
from adaptdl.torch.transfer import broadcast_states

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Pause", "join", "switch"]

logger = logging.getLogger(__name__)

_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.002, 0.02
"""This often is looked whether the others have come, or a newer order. (A wait in the store cannot be interrupted.)"""

_CONNECT_TIMEOUT_S, _CONNECT_TIMEOUT_PER_REPLICA_S = 5.0, 0.05
"""All that form a group were there a moment ago: it takes milliseconds, unless one was lost since. Each of hundreds asks one
store for the address of each other one: the longer of the two."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A generation has been formed; its first batch was not yet handed out."""

    since: float
    """Monotonic time of the end of the last step before."""
    counts: bool
    """Whether there was a step before."""
    dropped: frozenset[str] = frozenset()


@in_no_mode
def switch(session: ElasticSession, plan: Plan) -> None:
    """Ends the generation of all old replicas; those that stay, or are parked and called back, return as members.

    Raises:
        Leave: this replica is not a member any more.
        GroupBroken: the others were lost; the replica holds the state of the step before.
    """
    me, is_source, stays = _role(session, plan)
    session.drop_group()
    if is_source and not plan.members:
        session.reports.send_snapshot_now(session.capture())
        pause_s = time.monotonic() - session.last_step_at
        session.host.switched(
            Switched(
                generation=plan.generation,
                num_replicas=0,
                num_nodes=0,
                position=session.position,
                steps=session.num_steps,
                pause_s=pause_s,
            )
        )
    elif (stays or is_source) and not _enter(session, plan, me):
        raise GroupBroken("the others have gone on without this replica")
    if not stays:
        _say_left(session, plan)
        if me not in plan.park:
            raise Leave
        session.park()


@in_no_mode
def join(session: ElasticSession, plan: Plan) -> None:
    """Makes a newcomer, or a parked replica, part of `plan`. Returns without having joined if a newer order comes first.

    Raises:
        Leave: the replica was only to hand over its state.
        GroupBroken: the others were lost on the way.
    """
    me, _, stays = _role(session, plan)
    if not _enter(session, plan, me):
        return
    if not stays:
        _say_left(session, plan)
        raise Leave


def _role(session: ElasticSession, plan: Plan) -> tuple[str, bool, bool]:
    """Who this replica is, and whether it is the plan's source, and a member."""
    me = session.replica.replica_id
    return me, plan.source == me, any(member.replica_id == me for member in plan.members)


def _say_left(session: ElasticSession, plan: Plan) -> None:
    session.generation = plan.generation
    session.host.left(plan.generation)


def _key(plan: Plan, name: str) -> str:
    return f"{plan.generation}/{name}"


def _roll_call(session: ElasticSession, plan: Plan, me: str) -> frozenset[str] | None:
    """Who is here, the source included; None if this replica is not among them, has a newer order, or was told that the
    plan was given up."""
    keeper = plan.source or plan.members[0].replica_id
    expected = {keeper, *(member.replica_id for member in plan.members)}
    if len(expected) == 1:
        return frozenset(expected)
    assert plan.store is not None
    with communicating():
        store = session.store.connect(plan.store)
        if me == keeper:
            return _call_roll(session, plan, store, expected - {me})
        store.set(_key(plan, f"here/{me}"), "")
        roll = _wait_for_roll(session, plan, store)
    return roll if roll is not None and me in roll else None


def _call_roll(session: ElasticSession, plan: Plan, store: dist.Store, others: set[str]) -> frozenset[str] | None:
    """Waits until all `others` are here that are not known to be lost, and writes down who is. None, and nothing written, if
    the plan is taken back meanwhile: the others may have gone to another one."""
    deadline = time.monotonic() + session.join_timeout_s
    here: set[str] = set()
    while True:
        here |= {replica_id for replica_id in others - here if store.check([_key(plan, f"here/{replica_id}")])}
        missing = others - here - session.mailbox.lost
        if not missing or time.monotonic() > deadline:
            break
        if session.mailbox.takes_back(plan):
            return None
        time.sleep(_SHORTEST_POLL_S)
    if here != others:
        logger.warning("generation %d begins without %s", plan.generation, sorted(others - here))
    roll = frozenset({session.replica.replica_id, *here})
    store.set(_key(plan, "roll"), json.dumps(sorted(roll)))
    return roll


def _wait_for_roll(session: ElasticSession, plan: Plan, store: dist.Store) -> frozenset[str] | None:
    """Waits for the roll, or a newer order: the source comes when it comes, and whoever gave the plan can take it back.

    Raises:
        RuntimeError: the source is gone; this replica holds a state, too.
    """
    interval_s = _SHORTEST_POLL_S
    while not session.mailbox.takes_back(plan):
        try:
            if store.check([_key(plan, "roll")]):
                return frozenset(json.loads(store.get(_key(plan, "roll"))))
        except RuntimeError as error:
            if session.replica.replica_id not in plan.newcomers:
                raise
            logger.info("replica %s has lost the store of its plan: %s", session.replica.replica_id, error)
            return None
        time.sleep(interval_s)
        interval_s = min(interval_s * 1.01, _LONGEST_POLL_S)
    return None


def _enter(session: ElasticSession, plan: Plan, me: str) -> bool:
    """Forms the generation and brings its members to the source's state; the source need not be a member. False if this
    replica does not become a part of it."""
    session.tried = plan.generation
    roll = _roll_call(session, plan, me)
    if roll is None:
        return False
    members = tuple(member for member in plan.members if member.replica_id in roll)
    newcomers = plan.newcomers & roll
    dropped = frozenset(member.replica_id for member in plan.members) - roll
    if not members:
        raise GroupBroken("nobody came to take over the state")
    store = None if plan.store is None else session.store.connect(plan.store)
    hands_over = plan.source is not None and all(member.replica_id != plan.source for member in members)
    handed_over: Mapping[str, Any] | None = None
    handed_over_at = 0.0
    if hands_over:
        assert store is not None
        handed_over, handed_over_at = _hand_over(session, plan, store, members, me)
        if plan.source == me:
            _await_formed(session, plan, store)
            return True
    group, states = _form(session, plan, store, members, me, share=bool(newcomers) and not hands_over)
    session.group = group
    if handed_over is not None:
        waited_s = time.monotonic() - handed_over_at
        session.load(handed_over, resume=False)
        session.last_step_at -= waited_s
    elif states is not None and group.rank != 0:
        session.load(states, resume=False)
    else:
        session.sums.undo_void_step()
    if hands_over and group.rank == 0:
        assert store is not None
        with communicating():
            store.set(_key(plan, "formed"), "")
    session.enter_group(group, plan, len({member.node_id for member in members}))
    session.pause = Pause(since=session.last_step_at, counts=session.num_steps > 0, dropped=dropped)
    agree_on_batch(session)
    return True


def _form(
    session: ElasticSession,
    plan: Plan,
    store: dist.Store | None,
    members: tuple[Member, ...],
    me: str,
    *,
    share: bool,
) -> tuple[Group, Mapping[str, Any] | None]:
    """The group of `members`; if `share`, with the states of its rank 0."""
    rank = [member.replica_id for member in members].index(me)
    group = _group(session, plan, store, "group", rank, len(members))
    try:
        states = None
        if share and len(members) > 1:
            states = broadcast_states(group, session.shared_states() if rank == 0 else None)
            group.all_gather_object(None)
    except BaseException:
        group.close()
        raise
    return group, states


def _group(
    session: ElasticSession, plan: Plan, store: dist.Store | None, name: str, rank: int, num_replicas: int
) -> Group:
    timeout_s = min(session.join_timeout_s, max(_CONNECT_TIMEOUT_S, _CONNECT_TIMEOUT_PER_REPLICA_S * num_replicas))
    group = Group.form(store, _key(plan, name), rank, num_replicas, timeout_s=timeout_s)
    group.relax()
    return group


def _hand_over(
    session: ElasticSession, plan: Plan, store: dist.Store, members: tuple[Member, ...], me: str
) -> tuple[Mapping[str, Any], float]:
    """The source, which is going, gives its state to all members: what it gave, and when it began (monotonic)."""
    assert plan.source is not None
    order = [plan.source, *(member.replica_id for member in members)]
    rank = order.index(me)
    group = _group(session, plan, store, "handover", rank, len(order))
    try:
        began_at = time.monotonic()
        states = broadcast_states(group, session.shared_states() if rank == 0 else None)
        group.all_gather_object(None)
    finally:
        group.close()
    return states, began_at


def _await_formed(session: ElasticSession, plan: Plan, store: dist.Store) -> None:
    """The source keeps the store until the members have met."""
    try:
        store.wait([_key(plan, "formed")], timedelta(seconds=session.join_timeout_s))
    except RuntimeError as error:
        raise GroupBroken(
            f"the members of generation {plan.generation} must have met within {session.join_timeout_s} s of taking "
            f"over the state of {plan.source}, but have not"
        ) from error
