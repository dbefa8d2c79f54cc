from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.goodput import PerfParams, grad_time_s, step_time_s, sync_time_s, throughput

times = st.floats(1e-6, 10)
params = st.builds(
    PerfParams, alpha_c=times, beta_c=times, alpha_n=times, beta_n=times, alpha_r=times, beta_r=times,
    gamma=st.floats(1, 10),
)  # fmt: skip
EXAMPLE = PerfParams(alpha_c=1.0, beta_c=0.5, alpha_n=4.0, beta_n=0.3, alpha_r=2.0, beta_r=0.1, gamma=1.0)


@given(params, st.integers(2, 100), st.integers(1, 500), st.integers(0, 5), st.booleans())
def test_a_step_is_between_perfect_overlap_and_none(perf: PerfParams, k: int, m: int, s: int, across: bool) -> None:
    grad, sync = grad_time_s(perf, m), sync_time_s(perf, 1 + across, k)
    step = step_time_s(perf, 1 + across, k, m, s)
    assert s * grad + max(grad, sync) <= step * (1 + 1e-12)
    assert step <= ((s + 1) * grad + sync) * (1 + 1e-12)


@given(params, st.integers(1, 500), st.integers(0, 5))
def test_one_replica_does_nothing_but_compute(perf: PerfParams, m: int, s: int) -> None:
    assert sync_time_s(perf, 1, 1) == 0
    assert step_time_s(perf, 1, 1, m, s) == pytest.approx((s + 1) * grad_time_s(perf, m))


def test_times_are_the_papers_formulas() -> None:
    assert grad_time_s(EXAMPLE, 8) == 5.0
    assert sync_time_s(EXAMPLE, 1, 2) == 2.0
    assert sync_time_s(EXAMPLE, 1, 5) == pytest.approx(2.3)
    assert sync_time_s(EXAMPLE, 3, 5) == pytest.approx(4.9)
    assert step_time_s(EXAMPLE, 1, 2, 8, 3) == pytest.approx(3 * 5 + 5 + 2)
    assert step_time_s(replace(EXAMPLE, gamma=2.0), 1, 2, 8) == pytest.approx(math.hypot(5, 2))
    assert throughput(EXAMPLE, 1, 2, 8, 3) == pytest.approx(2 * 8 * 4 / 22)


def test_extreme_times_neither_overflow_nor_underflow() -> None:
    tiny = PerfParams(alpha_c=1e-200, beta_c=0.0, alpha_n=0.0, beta_n=0.0, alpha_r=1e-200, beta_r=0.0, gamma=10.0)
    assert step_time_s(tiny, 1, 2, 1) == pytest.approx(1e-200 * 2**0.1)


def test_arrays_broadcast() -> None:
    nodes, replicas = np.arange(1, 4)[:, None], np.arange(1, 6)
    assert step_time_s(EXAMPLE, nodes, replicas, 8).shape == (3, 5)
    assert throughput(EXAMPLE, nodes, replicas, 8, np.arange(2)[:, None, None]).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_c": -1.0}, "alpha_c"),
        ({"beta_n": math.nan}, "beta_n"),
        ({"gamma": 0.5}, "1 <= gamma <= 10"),
        ({"gamma": 11.0}, "1 <= gamma <= 10"),
        ({"alpha_c": 0.0, "beta_c": 0.0}, "alpha_c \\+ beta_c > 0"),
    ],
)
def test_impossible_parameters_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EXAMPLE, **change)
