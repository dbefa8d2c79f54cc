"""What it means that a replica's function or process has ended."""

from __future__ import annotations

import pytest

from adaptdl.runtime.endings import Circumstances, Recoveries, Verdict, judge_death, judge_outcome
from adaptdl.runtime.messages import Ending, Outcome, TrainingFunctionError

RETURNED = Outcome(ending=Ending.RETURNED)
LED = Outcome(ending=Ending.RETURNED, led=True)
LEFT = Outcome(ending=Ending.LEFT)
RAISED = Outcome(ending=Ending.RAISED, error=TrainingFunctionError("it raised"))
PEER_GONE = Outcome(ending=Ending.RAISED, error=TrainingFunctionError("gloo"), about_communication=True)


@pytest.mark.parametrize(
    ("outcome", "who", "verdict"),
    [
        (LED, Circumstances(is_member=True, job_has_state=True), Verdict.FINISH),
        (RETURNED, Circumstances(is_member=True, job_has_state=True), Verdict.NOTHING),
        (LED, Circumstances(is_newcomer=True, job_has_state=True, joins=True), Verdict.FINISH),
        (LED, Circumstances(), Verdict.NOTHING),
        (LEFT, Circumstances(is_member=True, job_has_state=True, leaves=True), Verdict.NOTHING),
        (LEFT, Circumstances(is_member=True, job_has_state=True), Verdict.LOST),
        (LEFT, Circumstances(is_newcomer=True, job_has_state=True), Verdict.FORGET),
        (LEFT, Circumstances(is_newcomer=True), Verdict.FINISH),
        (LEFT, Circumstances(), Verdict.NOTHING),
        (LEFT, Circumstances(is_parked=True, job_has_state=True), Verdict.FORGET),
        (RAISED, Circumstances(is_member=True, job_has_state=True), Verdict.FAIL),
        (RAISED, Circumstances(is_newcomer=True), Verdict.FAIL),
        (RAISED, Circumstances(is_newcomer=True, job_has_state=True), Verdict.TRY_AGAIN),
        (RAISED, Circumstances(is_newcomer=True, job_has_state=True, joins=True), Verdict.FAIL),
        (PEER_GONE, Circumstances(is_member=True, job_has_state=True), Verdict.BLAME),
        (RAISED, Circumstances(), Verdict.NOTHING),
    ],
)
def test_the_end_of_the_function(outcome: Outcome, who: Circumstances, verdict: Verdict) -> None:
    assert judge_outcome(outcome, who) is verdict


@pytest.mark.parametrize(
    ("who", "verdict"),
    [
        (Circumstances(is_member=True), Verdict.LOST),
        (Circumstances(is_member=True, launched=False), Verdict.TRY_AGAIN),
        (Circumstances(is_newcomer=True), Verdict.TRY_AGAIN),
        (Circumstances(is_parked=True), Verdict.FORGET),
        (Circumstances(), Verdict.FORGET),
    ],
)
def test_the_end_of_the_process(who: Circumstances, verdict: Verdict) -> None:
    assert judge_death(who) is verdict


def test_recoveries_count_from_one_again_after_a_step() -> None:
    recoveries = Recoveries()
    assert [recoveries.count(steps) for steps in (10, 10, 10, 11, 11)] == [1, 2, 3, 1, 2]
