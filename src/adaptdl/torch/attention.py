"""What rank 0 has to say at a boundary, and how everybody does it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adaptdl.plan import Plan
from adaptdl.torch import reallocation
from adaptdl.torch.batch_choice import better_batch
from adaptdl.torch.exchange import Exchanged
from adaptdl.torch.loop import Action, Loop, Notice
from adaptdl.torch.rng import rng_state

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["attend", "drop_passed_plan", "wants_attention"]

_LOOK_EVERY_S = 0.01
"""For what time brings; a step may be much shorter."""


def drop_passed_plan(session: ElasticSession) -> None:
    """Gives a plan back whose target the source has passed, and forgets one that a later plan came before."""
    plan = session.mailbox.plan
    if plan is not None and plan.generation <= session.generation:
        session.mailbox.plan = None  # it was on its way when the group broke, and was given up since
    elif plan is not None and plan.target is not None and plan.target < session.position:
        session.mailbox.plan = None
        session.host.missed(plan.generation, session.place())


def wants_attention(session: ElasticSession) -> bool:
    """Whether this replica, as rank 0, has something to say to all."""
    loop = session.loop
    if session.rank != 0 or loop is None:
        return False
    if loop.better_batch is not None or _plan_to_carry_out(session) is not None:
        return True
    now = time.monotonic()
    if now < loop.quiet_until and not session.reports.wants_snapshot:
        return False
    if _snapshot_due(session) or better_batch(session, loop) is not None:
        return True
    loop.quiet_until = now + _LOOK_EVERY_S
    return False


def attend(session: ElasticSession, loop: Loop, seen: Exchanged | None) -> Action:
    """Everybody hears what rank 0 has to say, and does it. Raises GroupBroken."""
    group = session.group
    assert group is not None
    notice = None
    if group.rank == 0:
        notice = Notice(
            plan=_plan_to_carry_out(session),
            batch=better_batch(session, loop),
            snapshot=_snapshot_due(session),
            interrupt=session.mailbox.interrupted or (seen is not None and seen.interrupted),
        )
    notice = group.broadcast_object(notice)
    assert isinstance(notice, Notice)
    if notice.interrupt or notice.snapshot or notice.plan is not None:
        session.sums.fold()
    rngs = group.all_gather_object(rng_state()) if notice.interrupt or notice.snapshot else []
    if notice.interrupt:
        if group.rank == 0:
            session.reports.send_snapshot_now(session.capture(rngs))
        group.all_gather_object(None)
        raise KeyboardInterrupt
    if notice.snapshot and group.rank == 0:
        began = time.monotonic()
        states = session.capture(rngs)
        session.reports.send_snapshot(states, copy_s=time.monotonic() - began)
    elif notice.snapshot:
        session.flush_report()
    if notice.batch is not None:
        loop.better_batch = None
        loop.loader.change_batch(notice.batch, group)
    if notice.plan is not None:
        session.mailbox.plan = None
        reallocation.switch(session, notice.plan)
    loop.steady_since = None
    return Action.CONTINUE if notice.plan is None else Action.REPARTITION


def _plan_to_carry_out(session: ElasticSession) -> Plan | None:
    plan = session.mailbox.plan
    if plan is None or plan.generation <= session.generation:
        return None
    return plan if plan.target in (None, session.position) else None


def _snapshot_due(session: ElasticSession) -> bool:
    interval_s, reports = session.snapshot_interval_s, session.reports
    is_due = interval_s is not None and time.monotonic() - reports.snapshot_at >= interval_s
    return (is_due or reports.wants_snapshot) and not reports.is_sending
