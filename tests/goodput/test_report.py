from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptdl.goodput import BatchSizeBounds, GoodputModel, GradParams, JobReport, PerfParams

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


def test_what_is_not_credited_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of 10,000 devices it took a second for each job."""
    widths = []

    def noted(model: GoodputModel, max_nodes: int, max_replicas: int) -> NDArray[np.float64]:
        widths.append(max_replicas)
        return model.best_batch_size(np.arange(max_nodes + 1)[:, None], np.arange(max_replicas + 1)[None, :]).goodput

    monkeypatch.setattr("adaptdl.goodput.report._goodput_table", noted)
    table = report(max_profiled_replicas=2).goodput_table(2, 10_000)
    assert (widths, table.shape) == ([8], (3, 10_001))
    narrow = report(max_profiled_replicas=2).goodput_table(2, 8)
    assert np.array_equal(table[:, :9], narrow)
    assert not table[:, 9:].any()


def test_without_gradient_statistics_a_larger_batch_is_not_credited() -> None:
    known, unknown = report().speedup_table(1, 8), report(grad_params=None).speedup_table(1, 8)
    assert (unknown[1, 2:] < known[1, 2:]).all()


def test_a_report_travels() -> None:
    assert pickle.loads(pickle.dumps(report())) == report()
