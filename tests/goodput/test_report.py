from __future__ import annotations

import pickle

import numpy as np
import pytest

from adaptdl.goodput import BatchSizeBounds, GradParams, JobReport, PerfParams

PERF = PerfParams(alpha_c=0.1, beta_c=0.01, alpha_n=0.3, beta_n=0.02, alpha_r=0.1, beta_r=0.01, gamma=2.0)
GRAD = GradParams(grad_sqr=1.0, grad_var=20.0)
BOUNDS = BatchSizeBounds(init_batch_size=64, max_batch_size=1024)


def report(**changes: object) -> JobReport:
    values = {"bounds": BOUNDS, "perf_params": PERF, "grad_params": GRAD, "max_profiled_replicas": 8, "batch_size": 64}
    return JobReport(**(values | changes))  # type: ignore[arg-type]


def test_speedups_are_relative_to_one_replica() -> None:
    table = report().speedup_table(4, 16)
    assert table.shape == (5, 17)
    assert table[1, 1] == 1
    assert (np.diff(table[1, 1:17]) > 0).all()
    assert (table[2, 2:] < table[1, 2:]).all()


def test_only_possible_shapes_have_a_speedup() -> None:
    table = report().speedup_table(6, 8)
    nodes, replicas = np.indices(table.shape)
    assert ((table > 0) == ((nodes >= 1) & (nodes <= replicas))).all()


@pytest.mark.parametrize(("profiled", "credit"), [(0, 1), (1, 4), (3, 12), (100, 16)])
@pytest.mark.parametrize("perf", [PERF, None])
def test_a_job_is_credited_with_four_times_what_it_was_profiled_on(
    profiled: int, credit: int, perf: PerfParams | None
) -> None:
    table = report(max_profiled_replicas=profiled, perf_params=perf).speedup_table(2, 16)
    assert (table[1, 1 : credit + 1] > 0).all()
    assert (table[:, credit + 1 :] == 0).all()


@pytest.mark.parametrize("bounds", [BOUNDS, None, BatchSizeBounds(init_batch_size=64, max_batch_size=64)])
def test_a_job_that_has_measured_nothing_scales_perfectly(bounds: BatchSizeBounds | None) -> None:
    table = JobReport(bounds=bounds, max_profiled_replicas=4).speedup_table(2, 8)
    assert table[1].tolist() == list(range(9))
    assert table[2].tolist() == [0, 0, *range(2, 9)]


def test_bounds_hold_even_before_anything_is_measured() -> None:
    bounds = BatchSizeBounds(init_batch_size=4, max_batch_size=4)
    assert JobReport(bounds=bounds, max_profiled_replicas=8).speedup_table(1, 8)[1].tolist() == [
        0,
        1,
        2,
        3,
        4,
        *[0] * 4,
    ]


def test_speedups_are_relative_to_the_smallest_possible_number_of_replicas() -> None:
    table = report(max_profiled_replicas=0).goodput_table(1, 4)
    assert np.count_nonzero(table) == 1
    assert report(bounds=None).speedup_table(0, 0).tolist() == [[0]]


def test_without_gradient_statistics_a_larger_batch_is_not_credited() -> None:
    known, unknown = report().speedup_table(1, 8), report(grad_params=None).speedup_table(1, 8)
    assert (unknown[1, 2:] < known[1, 2:]).all()


def test_a_report_travels() -> None:
    assert pickle.loads(pickle.dumps(report())) == report()
