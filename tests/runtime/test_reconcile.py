"""What the coordinator does next, given what is wished for and what is there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.runtime.reconcile import Dismiss, Seen, SeenReplica, Start, Switch, Wait, decide


def replica(name: str, *, ready: bool = True, waited_s: float = 0.0) -> SeenReplica:
    """``a1`` is replica 1 on node ``a``."""
    return SeenReplica(replica_id=name, node_id=name[0], ready=ready, waited_s=waited_s)


def test_a_job_without_replicas_starts_those_it_should_have() -> None:
    assert decide(Seen(wish={"a": 2, "b": 1})) == Start(nodes={"a": 2, "b": 1})


def test_nothing_is_done_when_the_wish_is_fulfilled() -> None:
    assert decide(Seen(wish={"a": 1}, members=[replica("a1")])) == Wait()


def test_nothing_is_done_for_a_job_that_should_have_nothing_and_has_nothing() -> None:
    assert decide(Seen(wish={})) == Wait()


def test_newcomers_start_beside_training_and_join_when_all_are_ready() -> None:
    members = [replica("a1")]
    assert decide(Seen(wish={"a": 3}, members=members)) == Start(nodes={"a": 2})
    starting = [replica("a2", ready=False), replica("a3")]
    assert decide(Seen(wish={"a": 3}, members=members, newcomers=starting, gather_s=5)) == Wait(timeout_s=5)
    ready = [replica("a2"), replica("a3")]
    assert decide(Seen(wish={"a": 3}, members=members, newcomers=ready)) == Switch(members=("a1", "a2", "a3"))


def test_newcomers_that_are_ready_do_not_wait_for_slow_ones_for_ever() -> None:
    newcomers = [replica("a2", ready=False), replica("a3", waited_s=6)]
    seen = Seen(wish={"a": 3}, members=[replica("a1")], newcomers=newcomers, gather_s=5)
    assert decide(seen) == Switch(members=("a1", "a3"))


def test_those_that_must_go_leave_at_once_if_others_stay() -> None:
    members = [replica("a1"), replica("b1"), replica("a2")]
    assert decide(Seen(wish={"a": 2, "c": 1}, members=members)) == Start(nodes={"c": 1})
    newcomers = [replica("c1", ready=False)]
    seen = Seen(wish={"a": 2, "c": 1}, members=members, newcomers=newcomers)
    assert decide(seen) == Switch(members=("a1", "a2"))


def test_the_old_replicas_train_on_until_the_new_ones_are_ready_if_nobody_stays() -> None:
    members = [replica("a1")]
    assert decide(Seen(wish={"b": 1}, members=members, newcomers=[replica("b1", ready=False)])) == Wait()
    seen = Seen(wish={"b": 1}, members=members, newcomers=[replica("b1")])
    assert decide(seen) == Switch(members=("b1",))


def test_a_job_does_not_shrink_below_its_minimum_on_the_way() -> None:
    members = [replica("a1"), replica("b1")]
    wish = {"a": 1, "c": 1}
    starting = Seen(wish=wish, members=members, newcomers=[replica("c1", ready=False)], min_replicas=2)
    assert decide(starting) == Wait()
    ready = Seen(wish=wish, members=members, newcomers=[replica("c1")], min_replicas=2)
    assert decide(ready) == Switch(members=("a1", "c1"))


def test_a_pause_is_a_generation_without_members() -> None:
    assert decide(Seen(wish={}, members=[replica("a1"), replica("a2")])) == Switch(members=())


def test_newcomers_that_are_no_longer_wanted_are_dismissed_those_not_ready_first() -> None:
    newcomers = [replica("a2", ready=False), replica("a3")]
    assert decide(Seen(wish={"a": 2}, members=[replica("a1")], newcomers=newcomers)) == Dismiss(replica_ids=("a2",))


def test_a_parked_replica_comes_back_when_its_node_is_wished_for() -> None:
    parked = replica("a1", ready=False)
    assert decide(Seen(wish={"a": 1}, parked=parked)) == Start(nodes={}, unpark=True)
    assert decide(Seen(wish={"a": 1}, parked=parked, unparking=True)) == Wait()
    assert decide(Seen(wish={"a": 1}, parked=replica("a1"))) == Switch(members=("a1",))


def test_a_parked_replica_does_not_wait_for_newcomers() -> None:
    seen = Seen(wish={"a": 2}, parked=replica("a1"), newcomers=[replica("a2", ready=False)])
    assert decide(seen) == Switch(members=("a1",))


def test_a_job_parked_elsewhere_goes_on_where_it_is_wished_for() -> None:
    parked = replica("a1", ready=False)
    assert decide(Seen(wish={"b": 1}, parked=parked)) == Start(nodes={"b": 1})
    assert decide(Seen(wish={"b": 1}, parked=parked, newcomers=[replica("b1")])) == Switch(members=("b1",))


def test_nothing_is_started_for_a_while_after_a_failure() -> None:
    assert decide(Seen(wish={"a": 1}, may_start=False)) == Wait()


NODES = "abc"
wishes = st.dictionaries(st.sampled_from(NODES), st.integers(1, 3))


@given(wish=wishes, first=wishes, ready=st.lists(st.booleans(), min_size=20, max_size=20))
@settings(max_examples=200, deadline=None)
def test_doing_what_it_says_ends_with_the_wish_fulfilled(
    wish: dict[str, int], first: dict[str, int], ready: list[bool]
) -> None:
    members = [replica(f"{node}{i}") for node in NODES for i in range(first.get(node, 0))]
    newcomers: list[SeenReplica] = []
    numbers = iter(range(100, 1000))
    for _ in range(40):
        action = decide(Seen(wish=wish, members=members, newcomers=newcomers, gather_s=1))
        match action:
            case Start(nodes=nodes):
                newcomers += [
                    replica(f"{node}{next(numbers)}", ready=False) for node in nodes for _ in range(nodes[node])
                ]
            case Dismiss(replica_ids=ids):
                newcomers = [newcomer for newcomer in newcomers if newcomer.replica_id not in ids]
            case Switch(members=ids):
                known = {one.replica_id: one for one in [*members, *newcomers]}
                members = [known[name] for name in ids]
                newcomers = [newcomer for newcomer in newcomers if newcomer.replica_id not in ids]
            case Wait():
                if not newcomers:
                    break
                slow = iter(ready)
                newcomers = [replica(one.replica_id, ready=one.ready or next(slow, True)) for one in newcomers]
                ready = ready[1:] or [True]
                newcomers = newcomers or newcomers
                if all(not one.ready for one in newcomers):
                    newcomers[0] = replica(newcomers[0].replica_id, waited_s=2)
    assert not newcomers
    assert {node: sum(one.node_id == node for one in members) for node in NODES} == {
        node: wish.get(node, 0) for node in NODES
    }
