"""Carrying out a plan: from one generation to the next, at a boundary (``adaptdl/plan.py`` has the whole story)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from adaptdl.errors import AdaptDLError
from adaptdl.plan import Member, Plan, Switched
from adaptdl.torch.group import Group
from adaptdl.torch.mailbox import Leave
from adaptdl.torch.transfer import broadcast_states, write_snapshot

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Pause", "join", "switch"]

logger = logging.getLogger(__name__)

_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.002, 0.02
"""A newcomer looks this often whether the source has come, or a newer order. (A wait in the store cannot be interrupted.)"""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A generation has been formed; its first batch was not yet handed out."""

    since: float
    """Monotonic time of the end of the last step before."""
    counts: bool
    """Whether there was a step before."""
    dropped: frozenset[str] = frozenset()


def switch(session: ElasticSession, plan: Plan) -> None:
    """Ends the generation of all old replicas; those that stay, or are parked and called back, return as members.

    Raises:
        Leave: this replica is not a member any more.
    """
    me, is_source, stays = _role(session, plan)
    session.drop_group()
    if is_source and plan.members and plan.store is not None:
        session.store.connect(plan.store).set(_key(plan, "go"), "")
    if is_source and not plan.members:
        session.host.snapshot(write_snapshot(session.capture()), session.num_steps)
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
    elif stays or is_source:
        _enter(session, plan, me)
    if not stays:
        _say_left(session, plan)
        if me not in plan.park:
            raise Leave
        session.park()


def join(session: ElasticSession, plan: Plan) -> None:
    """Makes a newcomer, or a parked replica, part of `plan`. Returns without having joined if a newer order comes first.

    Raises:
        Leave: the replica was only to hand over its state.
        RuntimeError: the others did not come.
    """
    me, is_source, stays = _role(session, plan)
    if plan.source is not None and plan.store is not None:
        store = session.store.connect(plan.store)
        if is_source:
            store.set(_key(plan, "go"), "")
        elif not _wait(session, store, _key(plan, "go")):
            return
    _enter(session, plan, me)
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


def _wait(session: ElasticSession, store: dist.Store, key: str) -> bool:
    """Waits for `key`, or for a newer order. The source comes when it comes; whoever gave the plan can take it back. If the
    source is gone, nobody comes, and there will be a newer order."""
    interval_s = _SHORTEST_POLL_S
    while not session.mailbox.any():
        try:
            if store.check([key]):
                return True
        except RuntimeError as error:
            logger.info("replica %s has lost the store of its plan: %s", session.replica.replica_id, error)
            return False
        time.sleep(interval_s)
        interval_s = min(interval_s * 1.01, _LONGEST_POLL_S)
    return False


def _enter(session: ElasticSession, plan: Plan, me: str) -> None:
    """Forms the generation and brings its members to the source's state; the source need not be a member."""
    members = plan.members
    store = None if plan.store is None else session.store.connect(plan.store)
    hands_over = plan.source is not None and all(member.replica_id != plan.source for member in members)
    handed_over: Mapping[str, Any] | None = None
    handed_over_at = 0.0
    if hands_over:
        assert store is not None
        handed_over, handed_over_at = _hand_over(session, plan, store, me)
        if plan.source == me:
            _await_formed(session, plan, store)
            return
    dropped: frozenset[str] = frozenset()
    try:
        group, states = _form(session, plan, store, "group", members, me, share=not hands_over)
    except RuntimeError as error:
        survivors = tuple(member for member in members if member.replica_id not in plan.newcomers)
        if hands_over or not survivors or len(survivors) == len(members) or me in plan.newcomers:
            raise
        logger.warning("newcomers %s did not join (%s); going on without them", sorted(plan.newcomers), error)
        dropped, members = plan.newcomers, survivors
        group, states = _form(session, plan, store, "fallback", members, me, share=False)
    session.group = group
    if handed_over is not None:
        waited_s = time.monotonic() - handed_over_at
        session.load(handed_over, resume=False)
        session.last_step_at -= waited_s
    elif states is not None and group.rank != 0:
        session.load(states, resume=False)
    if hands_over and group.rank == 0:
        assert store is not None
        store.set(_key(plan, "formed"), "")
    session.enter_group(group, plan, len({member.node_id for member in members}))
    session.pause = Pause(since=session.last_step_at, counts=session.num_steps > 0, dropped=dropped)
    session.agree_on_batch()


def _form(
    session: ElasticSession,
    plan: Plan,
    store: dist.Store | None,
    name: str,
    members: tuple[Member, ...],
    me: str,
    *,
    share: bool,
) -> tuple[Group, Mapping[str, Any] | None]:
    """The group of `members`; if `share` and there are newcomers, with the states of its rank 0."""
    rank = [member.replica_id for member in members].index(me)
    group = Group.form(store, _key(plan, name), rank, len(members), timeout_s=session.join_timeout_s)
    try:
        states = None
        if share and plan.newcomers and len(members) > 1:
            states = broadcast_states(group, session.shared_states() if rank == 0 else None)
            group.all_gather_object(None)
        group.relax()
    except BaseException:
        group.close()
        raise
    return group, states


def _hand_over(session: ElasticSession, plan: Plan, store: dist.Store, me: str) -> tuple[Mapping[str, Any], float]:
    """The source, which is going, gives its state to all members: what it gave, and when it began (monotonic)."""
    assert plan.source is not None
    order = [plan.source, *(member.replica_id for member in plan.members)]
    rank = order.index(me)
    group = Group.form(store, _key(plan, "handover"), rank, len(order), timeout_s=session.join_timeout_s)
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
    except dist.DistStoreError as error:
        raise AdaptDLError(
            f"the members of generation {plan.generation} must have met within {session.join_timeout_s} s of taking "
            f"over the state of {plan.source}, but have not"
        ) from error
