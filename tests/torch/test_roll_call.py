"""Who calls or awaits the roll of a plan, and what ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from adaptdl.plan import Advance, LoopKind, Member, Place, Plan, Position
from adaptdl.torch import reallocation
from adaptdl.torch.mailbox import Mailbox, Order

JOIN_TIMEOUT_S, SOON_S = 10.0, 2.0


def plan(generation: int) -> Plan:
    members = (Member(replica_id="a", node_id="n"), Member(replica_id="c", node_id="n"))
    return Plan(generation=generation, members=members, source="a", newcomers=frozenset({"c"}), store=("host", 1))


def session(me: str, store: dist.Store) -> Any:
    return SimpleNamespace(
        replica=Member(replica_id=me, node_id="n"),
        mailbox=Mailbox(),
        store=SimpleNamespace(connect=lambda _: store),
        join_timeout_s=JOIN_TIMEOUT_S,
    )


@pytest.mark.parametrize("me", ["a", "c"])
@pytest.mark.parametrize(
    "takes_back",
    [
        lambda mailbox: mailbox.put(plan(4)),
        lambda mailbox: mailbox.put(Order.LEAVE),
        lambda mailbox: setattr(mailbox, "given_up", 3),
    ],
    ids=["a newer plan", "to leave", "given up"],
)
def test_a_plan_that_is_taken_back_is_not_waited_for(me: str, takes_back: Callable[[Mailbox], None]) -> None:
    store = dist.HashStore()
    waiting = session(me, store)
    threading.Timer(0.1, takes_back, [waiting.mailbox]).start()
    began = time.monotonic()
    assert reallocation._roll_call(waiting, plan(3), me) is None
    assert time.monotonic() - began < SOON_S
    assert not store.check(["3/roll"])


def test_an_older_plan_that_comes_late_is_no_reason_to_stop_waiting() -> None:
    store = dist.HashStore()
    caller, other = session("a", store), session("c", store)
    for waiting in (caller, other):
        waiting.mailbox.put(plan(2))
        waiting.mailbox.given_up = 2
    threading.Timer(0.1, reallocation._roll_call, [other, plan(3), "c"]).start()
    assert reallocation._roll_call(caller, plan(3), "a") == {"a", "c"}


def test_only_orders_up_to_the_plan_that_failed_are_forgotten() -> None:
    mailbox = Mailbox()
    mailbox.put(plan(2))
    mailbox.put(Advance(place=Place(position=Position(), kind=LoopKind.BETWEEN)))
    mailbox.put(plan(3))
    mailbox.clear(2)
    assert mailbox.wait() == plan(3)
    mailbox.put(plan(4))
    mailbox.clear(4)
    assert mailbox.wait(timeout_s=0.0) is None
