"""Replicas lost on a real Ray of several nodes: the job ends as an undisturbed one, its results are continuous."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from adaptdl.runtime import Phase
from tests.faults.conftest import ELASTIC
from tests.faults.survivors import EPOCHS, SurvivingTrial
from tests.runtime.jobs import RunningJob

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECOVERED_S = 5.0


def check(results: list[dict[str, Any]], undisturbed: SurvivingTrial) -> None:
    """Every result once and in order; every sample of each pass used once."""
    assert [result["epoch"] for result in results] == list(range(EPOCHS))
    for result, expected in zip(results, undisturbed.results, strict=True):
        assert result["weights"] == pytest.approx(expected["weights"], rel=1e-10)
        assert (result["validated"], result["total"]) == (expected["validated"], expected["total"])


@pytest.mark.parametrize(("rank", "where", "step"), [(1, "all-reduce", 11), (0, "after report", 16)])
def test_survivors_go_on_when_a_replica_is_killed(
    rank: int,
    where: str,
    step: int,
    nodes: list[str],
    start: Callable[..., RunningJob],
    undisturbed: SurvivingTrial,
) -> None:
    a, b = nodes
    job = start(fail_at=[(rank, step, where)])
    job.allocate({a: 1, b: 1}, ELASTIC)
    results = job.finish()
    check(results, undisturbed)
    lost = [change for change in job.status().reallocations if "lost" in change.reason or "broke" in change.reason]
    assert [(change.before, change.after) for change in lost] == [(2, 1)]
    assert lost[0].steps in (step, step + 1)  # the other one has made the step, or not
    assert lost[0].pause_s < RECOVERED_S


def test_failures_while_the_survivors_form_their_group_and_in_its_first_step_are_recoveries_of_their_own(
    nodes: list[str], start: Callable[..., RunningJob], undisturbed: SurvivingTrial, tmp_path: Path
) -> None:
    """Four are left with three, which learn of the next loss one after the other; two make a step, and one finishes it."""
    a, b = nodes
    job = start(fail_at=[(3, 11, "backward"), (1, 11, "regrouping"), (0, 11, "optimizer.step")], sleep_s=0.01)
    job.allocate({a: 2, b: 2}, dataclasses.replace(ELASTIC, max_recoveries=3))
    check(job.finish(), undisturbed)
    assert (tmp_path / "struck-regrouping").exists()
    changes = [change.after for change in job.status().reallocations if change.reason.startswith(("lost", "a group"))]
    assert changes == [2, 1]


def test_all_replicas_killed_at_once_go_on_from_the_newest_snapshot(
    nodes: list[str], start: Callable[..., RunningJob], undisturbed: SurvivingTrial
) -> None:
    a, b = nodes
    job = start(fail_at=[(0, 19, "forward"), (1, 19, "forward")])
    job.allocate({a: 1, b: 1}, dataclasses.replace(ELASTIC, snapshot_interval_s=0.05))
    check(job.finish(), undisturbed)
    assert "lost" in " ".join(change.reason for change in job.status().reallocations)


def test_replicas_that_hang_are_taken_as_lost(
    nodes: list[str], start: Callable[..., RunningJob], undisturbed: SurvivingTrial
) -> None:
    """One after the other: a process that does not answer any more, and one that does, but waits for its data."""
    a, b = nodes
    elastic = dataclasses.replace(ELASTIC, progress_timeout_s=2.0)
    job = start(fail_at=[(0, 19, "backward"), (1, 21, "data loader")], signal=signal.SIGSTOP, sleep_s=0.2)
    job.allocate({a: 2, b: 1}, elastic)
    check(job.finish(), undisturbed)
    lost = [change for change in job.status().reallocations if "lost replica" in change.reason]
    assert [(change.before, change.after) for change in lost] == [(3, 2), (2, 1)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_newcomer_that_is_lost_as_it_joins_costs_the_others_seconds_and_is_replaced(
    how: signal.Signals, nodes: list[str], start: Callable[..., RunningJob], undisturbed: SurvivingTrial
) -> None:
    a, b = nodes
    elastic = dataclasses.replace(ELASTIC, progress_timeout_s=5.0)
    job = start(fail_at=[(1, 0, "joining")], signal=how, epochs=1000, sleep_s=0.01)
    job.allocate({a: 1}, elastic)
    job.wait_for({a: 1})
    job.allocate({a: 1, b: 1}, elastic)
    job.wait_until(lambda status: bool(status.trouble), "the newcomer's end")
    status = job.wait_until(lambda status: status.num_replicas == 2, "another newcomer")
    assert max(change.pause_s for change in status.reallocations) < 10
    job.wait_until(lambda _: len(job.results) > 3, "some results")
    assert [result["epoch"] for result in job.results] == list(range(len(job.results)))
    for result, expected in zip(job.results, undisturbed.results, strict=False):
        assert result["weights"] == pytest.approx(expected["weights"], rel=1e-10)
    if how is signal.SIGKILL:  # so is a member
        os.kill(job.pids()[1], how)
        job.wait_until(
            lambda status: [change.after for change in status.reallocations][-3:] == [2, 1, 2],
            "the successor of the member that was killed",
        )


def test_the_users_error_on_one_replica_ends_the_job_once(
    nodes: list[str], start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    a, b = nodes
    job = start(fail_at=[(1, 11, "forward")], raises=True)
    job.allocate({a: 1, b: 1}, ELASTIC)
    began = time.monotonic()
    with pytest.raises(RayTaskError) as raised:
        job.finish()
    assert time.monotonic() - began < 30
    message = str(raised.value)
    assert message.count("ValueError: no such luck in forward") >= 1
    assert "gloo" not in message.lower()
    assert job.status().phase is Phase.ENDED
