"""Who hangs, from the pulses of all members."""

from __future__ import annotations

from adaptdl.plan import LoopKind, Place, Position, Pulse
from adaptdl.runtime.watching import Watch, progress_limit_s

LIMIT_S = 30.0


def pulse(num_batches: int, waited_s: float | None = None, kind: LoopKind = LoopKind.TRAINING) -> Pulse:
    place = Place(position=Position(epoch=0), kind=kind, steps=num_batches)
    return Pulse(place=place, generation=1, waited_s=waited_s, num_batches=num_batches)


def test_who_makes_others_wait_hangs_and_they_do_not() -> None:
    watch = Watch()
    assert not watch.look({"a": pulse(5), "b": pulse(5)}, 0.0, LIMIT_S).hanging
    assert not watch.look({"a": pulse(5, 20.0), "b": pulse(5)}, 20.0, LIMIT_S).hanging
    assert set(watch.look({"a": pulse(5, 31.0), "b": pulse(5)}, 31.0, LIMIT_S).hanging) == {"b"}


def test_a_process_that_does_not_answer_hangs_after_the_limit() -> None:
    watch = Watch()
    assert not watch.look({"a": pulse(5, 1.0), "b": None}, 0.0, LIMIT_S).hanging
    assert not watch.look({"a": pulse(5, 1.0), "b": pulse(5)}, 20.0, LIMIT_S).hanging  # it was only busy
    assert not watch.look({"a": pulse(5, 1.0), "b": None}, 40.0, LIMIT_S).hanging
    assert set(watch.look({"a": pulse(5, 1.0), "b": None}, 71.0, LIMIT_S).hanging) == {"b"}


def test_whoever_hands_out_batches_is_alive_however_long_others_wait() -> None:
    watch = Watch()
    for now in range(0, 300, 10):
        found = watch.look({"a": pulse(0, float(now)), "b": pulse(now, kind=LoopKind.OTHER)}, float(now), LIMIT_S)
        assert not found.hanging
        assert not found.deadlocked


def test_code_between_loops_may_take_as_long_as_it_likes() -> None:
    watch = Watch()
    for now in (0.0, 1000.0):
        pulses = {"a": pulse(3, kind=LoopKind.BETWEEN), "b": pulse(3, now, LoopKind.BETWEEN)}
        assert not watch.look(pulses, now, LIMIT_S).hanging


def test_if_all_wait_for_each_other_the_group_is_at_fault() -> None:
    found = Watch().look({"a": pulse(3, 40.0), "b": pulse(3, 35.0)}, 0.0, LIMIT_S)
    assert found.deadlocked
    assert not found.hanging


def test_who_says_that_it_waits_in_a_group_that_was_abandoned_hangs() -> None:
    """It is stuck elsewhere: whatever waits for others has failed when the group was abandoned."""
    watch = Watch()
    assert not watch.look({"a": pulse(3, 0.0), "b": pulse(3, 0.0)}, 0.0, LIMIT_S).deadlocked
    assert watch.look({"a": pulse(3, 36.0), "b": pulse(3, 36.0)}, 36.0, LIMIT_S).deadlocked
    assert not watch.look({"a": pulse(3, 60.0)}, 60.0, LIMIT_S, abandoned_at=36.0).hanging
    assert set(watch.look({"a": pulse(3, 67.0)}, 67.0, LIMIT_S, abandoned_at=36.0).hanging) == {"a"}


def test_who_goes_on_in_a_group_that_was_abandoned_has_not_come_to_its_end_yet() -> None:
    watch = Watch()
    for now in range(0, 300, 10):
        pulses = {"a": pulse(now, kind=LoopKind.OTHER), "b": pulse(3, kind=LoopKind.BETWEEN)}
        assert not watch.look(pulses, float(now), LIMIT_S, abandoned_at=0.0).hanging


def test_the_limit_follows_the_step_time() -> None:
    assert progress_limit_s(30.0, 0.1, 120.0) == 30.0
    assert progress_limit_s(30.0, 10.0, 120.0) == 200.0
    assert progress_limit_s(30.0, None, 120.0) == 120.0
