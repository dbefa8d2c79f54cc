"""What was learnt of one job is used for others of its kind, and not for those that only seem so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptdl.goodput import BatchSizeBounds, GradParams, JobReport, PerfParams
from adaptdl.policy.kin import Kin

PERF = PerfParams(alpha_c=0.01, beta_c=0.001, alpha_n=0.05, beta_n=0.001, alpha_r=0.02, beta_r=0.001, gamma=2.0)
BOUNDS = BatchSizeBounds(init_batch_size=32, max_batch_size=1024)
NOISE = GradParams(grad_sqr=1.0, grad_var=2.0)


def report(**more: Any) -> JobReport:
    return replace(
        JobReport(
            bounds=BOUNDS,
            perf_params=PERF,
            grad_params=NOISE,
            max_profiled_replicas=1,
            progress=10.0,
            remaining_progress=90.0,
            batch_size=32,
            num_replicas=1,
        ),
        **more,
    )


def kin_of(*reports: JobReport) -> Kin:
    kin = Kin()
    for known in reports:
        kin.learn("a", known)
    return kin


def test_a_job_of_which_nothing_is_known_is_taken_to_be_like_the_furthest_of_its_kind() -> None:
    kin = kin_of(report(max_profiled_replicas=8), report(max_profiled_replicas=2))
    found = kin.informed("a", None)
    assert found == JobReport(bounds=BOUNDS, perf_params=PERF, max_profiled_replicas=8)
    assert kin.informed("b", None) is None


def test_a_job_that_was_profiled_less_keeps_what_is_its_own() -> None:
    fitted = replace(PERF, alpha_r=0.03)
    own = report(bounds=BatchSizeBounds(init_batch_size=64, max_batch_size=64))
    found = kin_of(report(perf_params=fitted, max_profiled_replicas=8)).informed("a", own)
    assert found == replace(own, perf_params=fitted, max_profiled_replicas=8)


def test_a_job_that_was_profiled_as_far_is_what_it_says() -> None:
    own = report(perf_params=replace(PERF, alpha_r=0.03), max_profiled_replicas=8)
    assert kin_of(report(max_profiled_replicas=8)).informed("a", own) is own


def test_a_job_that_computes_at_another_speed_trains_another_model() -> None:
    kin = kin_of(report(max_profiled_replicas=8))
    for beta_c in (0.0005, 0.002):
        own = report(perf_params=replace(PERF, beta_c=beta_c))
        assert kin.informed("a", own) is own
    near = report(perf_params=replace(PERF, beta_c=0.0011))
    assert kin.informed("a", near) == replace(near, perf_params=PERF, max_profiled_replicas=8)


def test_what_has_no_fit_teaches_nothing_and_the_newest_of_the_furthest_counts() -> None:
    newer = replace(PERF, alpha_r=0.03)
    kin = kin_of(
        report(max_profiled_replicas=4),
        report(perf_params=newer, max_profiled_replicas=4),
        report(perf_params=None, max_profiled_replicas=8),
    )
    kin.learn("a", None)
    found = kin.informed("a", report(perf_params=None, max_profiled_replicas=0))
    assert found is not None
    assert (found.perf_params, found.max_profiled_replicas) == (newer, 4)
