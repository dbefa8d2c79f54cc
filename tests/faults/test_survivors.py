"""Replicas killed at scripted places: those that are left end with the state of an undisturbed run. Real gloo processes."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import adaptdl.torch as adl
from adaptdl.plan import Plan
from tests.faults.scripted import WHERE
from tests.faults.survivors import STEPS, SurvivingTrial, check, run, train
from tests.torch.functions import Numbers, network, stop_for_reallocations

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WAITS_S, FREED_S = 0.5, 3.0


def step_of(where: str) -> int:
    """A number of steps at which the function comes to `where`."""
    return {"forward": 11, "backward": 11, "all-reduce": 11, "optimizer.step": 11, "after step": 12}.get(
        where, 2 * STEPS
    )


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("num_replicas", "rank", "is_wide"), [(2, 0, True), (3, 1, False)])
def test_survivors_go_on_from_the_last_step(
    where: str,
    num_replicas: int,
    rank: int,
    is_wide: bool,
    tmp_path: Path,
    undisturbed: SurvivingTrial,
    undisturbed_wide: SurvivingTrial,
) -> None:
    trial = run(num_replicas, tmp_path, [(rank, step_of(where), where)], is_wide=is_wide)
    assert (tmp_path / "struck-0").exists()
    assert trial.num_recoveries >= 1
    check(trial, undisturbed_wide if is_wide else undisturbed)


@pytest.mark.parametrize("where", ["all-reduce", "validation"])
def test_the_first_of_three_is_lost(where: str, tmp_path: Path, undisturbed: SurvivingTrial) -> None:
    check(run(3, tmp_path, [(0, step_of(where), where)]), undisturbed)


@pytest.mark.parametrize(
    "second", [(0, 11, "forward"), (1, 11, "all-reduce"), (0, 12, "optimizer.step"), (0, 2 * STEPS, "before sums")]
)
def test_a_second_replica_is_lost_soon_after(
    second: tuple[int, int, str], tmp_path: Path, undisturbed: SurvivingTrial
) -> None:
    trial = run(3, tmp_path, [(2, 11, "backward"), second])
    assert (tmp_path / "struck-1").exists()
    check(trial, undisturbed)


def test_two_replicas_are_lost_at_once(tmp_path: Path, undisturbed: SurvivingTrial) -> None:
    check(run(3, tmp_path, [(0, 11, "backward"), (1, 11, "backward")]), undisturbed)


@pytest.mark.parametrize("where", ["forward", "all-reduce", "optimizer.step", "after step"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_reported_in_a_step_has_one_number_and_one_only(where: str, rank: int, tmp_path: Path) -> None:
    config = {"epochs": 2, "fail_at": [(rank, step_of(where), where)], "flags": str(tmp_path), "results_per_step": 2}
    with SurvivingTrial(train, config) as trial:
        trial.reallocate(3)
        trial.finish()
        numbered = zip(trial.messages("number"), trial.messages("report"), strict=True)
    assert trial.num_recoveries >= 1
    found: dict[int, set[tuple[int, int]]] = {}
    for number, (result, *_) in numbered:
        found.setdefault(number, set()).add((result.get("step", -1), result.get("index", result.get("epoch"))))
    steps = [[(step, index) for step in range(i * STEPS, (i + 1) * STEPS) for index in range(2)] for i in range(2)]
    assert [found[number] for number in sorted(found)] == [{one} for one in [*steps[0], (-1, 0), *steps[1], (-1, 1)]]


def train_with_a_slow_coordinator(config: dict[str, Any]) -> None:
    """Reports in each step; what the first replica sends from number `held` on is not taken."""
    session = adl.current_session()
    report = session.host.report

    def taken_or_held(metrics: Any, files: Any, snapshot: Any, number: int) -> None:
        if number >= config["held"] and session.replica.replica_id == "replica-0":
            threading.Event().wait()
        report(metrics, files, snapshot, number)

    session.host.report = taken_or_held
    loader = adl.AdaptiveDataLoader(Numbers(8 * STEPS), batch_size=8)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for _ in adl.remaining_epochs_until(2):
        for inputs, targets, _ in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            adl.report({"step": session.num_steps + 1})
            stop_for_reallocations(config)


def test_a_newcomer_knows_what_rank_0_has_not_handed_in() -> None:
    stop = 5
    with SurvivingTrial(train_with_a_slow_coordinator, {"held": stop - 1, "stops": [stop]}) as trial:
        trial.reallocate(1)
        trial.reach(stop)
        trial.reallocate(2)
        first, newcomer = trial.members
        trial.wait_for("the newcomer to wait", lambda: (newcomer.call("pulse").waited_s or 0.0) > WAITS_S)
        first.process.kill()
        trial.finish()
        found = dict(zip(trial.messages("number"), trial.messages("report"), strict=True))
    assert [found[number][0]["step"] for number in sorted(found)] == [*range(1, 2 * STEPS + 1)]


class _HearsLate(SurvivingTrial):
    """After each recovery the source gets a plan that was on its way to it when the group broke: all should leave."""

    def regroup(self) -> None:
        source = self.members[0].member.replica_id
        super().regroup()
        plan = Plan(generation=self.generation - 1, members=(), source=source, newcomers=frozenset(), reason="late")
        self.members[0].call("reallocate", plan)


def test_a_plan_that_comes_after_a_recovery_is_void(tmp_path: Path, undisturbed: SurvivingTrial) -> None:
    trial = run(3, tmp_path, [(1, 11, "backward")], trial=_HearsLate, sleep_s=0.02)
    check(trial, undisturbed)
    assert trial.num_recoveries == 1


class _StoppedOne(SurvivingTrial):
    """Of three, the second is stopped: its connections stay open, as those of a machine without power."""

    def finish(self) -> list[Any]:
        first, stopped, third = self.members
        self.wait_for("a replica to be stopped", (Path(self.config["flags"]) / "struck-0").exists)
        self.members = [first, third]
        for replica in self.members:
            self.wait_for("the others to wait", lambda r=replica: (r.call("pulse").waited_s or 0.0) > WAITS_S)
        began = time.monotonic()
        for replica in self.members:
            replica.call("abandon", self.generation)
        self.wait_for("the survivors to stand", lambda: first.has("broken") and third.has("broken"))
        assert time.monotonic() - began < FREED_S
        assert stopped.process.is_alive()
        return super().finish()


def test_who_waits_for_one_that_was_stopped_is_freed(tmp_path: Path, undisturbed: SurvivingTrial) -> None:
    check(run(3, tmp_path, [(1, 11, "backward")], trial=_StoppedOne, signal=signal.SIGSTOP), undisturbed)
