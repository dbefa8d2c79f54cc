"""What a policy is told of a job, from what the job says of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adaptdl.goodput import BatchSizeBounds, GradParams, JobReport, PerfParams
from adaptdl.policy import Allocation, Job
from adaptdl.policy.demand import LARGEST_MOVE_COST, LONGEST_STAY_S, SMALLEST_MOVE_COST, elastic_job, move_cost


def report(max_profiled_replicas: int = 4, *, low: int = 16, remaining_progress: float | None = None) -> JobReport:
    """One replica makes a step of 64 samples in 0.65 s."""
    return JobReport(
        bounds=BatchSizeBounds(init_batch_size=64, max_batch_size=64, local_bsz_bounds=(low, 64)),
        perf_params=PerfParams(alpha_c=0.01, beta_c=0.01, alpha_n=0.01, beta_n=0, alpha_r=0.001, beta_r=0, gamma=1.5),
        grad_params=GradParams(grad_sqr=1.0, grad_var=100.0),
        max_profiled_replicas=max_profiled_replicas,
        remaining_progress=remaining_progress,
    )


def demand(
    report: JobReport | None,
    *,
    min_replicas: int = 1,
    max_replicas: int = 4,
    allocation: Allocation | None = None,
    pause_s: float | None = None,
) -> Job:
    return elastic_job(
        "one",
        report,
        resources={"GPU": 1.0},
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        num_nodes=2,
        allocation=allocation or {},
        pause_s=pause_s,
        arrival=0.0,
    )


@pytest.mark.parametrize("min_replicas", [1, 2])
def test_a_job_of_which_nothing_is_known_gets_its_minimum(min_replicas: int) -> None:
    job = demand(None, min_replicas=min_replicas)
    assert job.max_replicas == job.most_replicas == min_replicas
    assert job.speedup_at(1, min_replicas) == min_replicas
    assert job.remaining_s is None


def test_a_job_that_reports_gets_what_more_replicas_are_worth() -> None:
    job = demand(report())
    assert job.max_replicas == 4
    assert job.speedup.shape == (3, 5)
    assert job.speedup_at(1, 1) == 1.0
    assert 1.0 < job.speedup_at(2, 2) < job.speedup_at(1, 2) < 2.0


def test_a_job_is_credited_with_four_times_what_it_was_profiled_on() -> None:
    several = report(low=4)
    credited = [demand(replace(several, max_profiled_replicas=k), max_replicas=16).most_replicas for k in (0, 1, 2)]
    assert credited == [1, 4, 8]


def test_a_job_can_run_on_its_minimum_whatever_its_report_says() -> None:
    """Three replicas at least, but the batch can only be divided in two."""
    job = demand(report(low=32), min_replicas=3)
    assert np.flatnonzero(job.speedup.any(axis=0)).tolist() == [1, 2, 3]
    assert job.most_replicas == 3


def test_the_time_to_go_is_that_of_a_speedup_of_one() -> None:
    assert demand(report(remaining_progress=100.0)).remaining_s == pytest.approx(65.0)
    assert demand(report(remaining_progress=0.0)).remaining_s is None
    assert demand(report()).remaining_s is None


def test_a_move_costs_the_share_of_the_time_for_which_it_will_last() -> None:
    assert move_cost(30.0, left_s=100.0) == pytest.approx(0.3)
    assert move_cost(30.0, left_s=1e6) == move_cost(30.0, left_s=None) == pytest.approx(30.0 / LONGEST_STAY_S)


def test_a_move_is_never_free_and_never_impossible() -> None:
    assert move_cost(0.0, left_s=100.0) == move_cost(None, left_s=None) == SMALLEST_MOVE_COST
    assert move_cost(30.0, left_s=0.0) == LARGEST_MOVE_COST


def test_a_start_costs_nothing_extra() -> None:
    assert demand(report(), pause_s=30.0).move_cost == 0


def test_a_job_about_to_end_is_dear_to_move() -> None:
    """100 steps of 0.65 s are left on one replica."""
    ending = demand(report(remaining_progress=100.0), allocation={"a": 1}, pause_s=13.0)
    assert ending.move_cost == pytest.approx(13 / 65)
    sooner = demand(report(remaining_progress=100.0), allocation={"a": 2}, pause_s=13.0)
    assert sooner.move_cost > ending.move_cost
