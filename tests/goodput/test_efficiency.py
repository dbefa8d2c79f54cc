from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.goodput import GradParams, efficiency, gain, noise_scale

nonnegative = st.one_of(st.just(0.0), st.floats(1e-12, 1e12))
grads = st.builds(GradParams, grad_sqr=nonnegative, grad_var=nonnegative)
sizes = st.integers(1, 10**6)


@given(grads, sizes, sizes)
def test_gain_of_a_larger_batch_is_between_one_and_its_ratio(grad: GradParams, init: int, size: int) -> None:
    init, size = min(init, size), max(init, size)
    assert 1 <= gain(grad, init, size) <= size / init


@given(grads, sizes, sizes)
def test_efficiency_of_a_larger_batch_is_at_most_one(grad: GradParams, init: int, size: int) -> None:
    init, size = min(init, size), max(init, size)
    assert 0 < efficiency(grad, init, size) <= 1
    assert efficiency(grad, init, init) == 1


@given(grads, sizes, sizes, sizes)
def test_efficiency_falls_and_gain_rises_with_the_batch_size(grad: GradParams, init: int, a: int, b: int) -> None:
    small, large = min(a, b), max(a, b)
    assert efficiency(grad, init, small) >= efficiency(grad, init, large)
    assert gain(grad, init, small) <= gain(grad, init, large) * (1 + 1e-12)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), sizes, sizes)
def test_efficiency_is_the_papers_formula(sqr: float, var: float, init: int, size: int) -> None:
    grad = GradParams(grad_sqr=sqr, grad_var=var)
    phi = noise_scale(grad, init)
    assert phi == pytest.approx(init * var / sqr)
    assert efficiency(grad, init, size) == pytest.approx((phi + init) / (phi + size))
    assert gain(grad, init, size) == pytest.approx((var + sqr) / (var * init / size + sqr))


def test_pure_noise_makes_every_sample_count() -> None:
    grad = GradParams(grad_sqr=0.0, grad_var=2.0)
    assert noise_scale(grad, 32) == math.inf
    assert efficiency(grad, 32, 3200) == 1
    assert gain(grad, 32, 3200) == 100


@pytest.mark.parametrize("sqr", [0.0, 3.0])
def test_without_noise_a_larger_batch_is_worth_nothing_more(sqr: float) -> None:
    grad = GradParams(grad_sqr=sqr, grad_var=0.0)
    assert noise_scale(grad, 32) == 0
    assert efficiency(grad, 32, 3200) == pytest.approx(0.01)
    assert gain(grad, 32, 3200) == 1


def test_a_smaller_batch_follows_the_same_formula() -> None:
    grad = GradParams(grad_sqr=1.0, grad_var=1.0)
    assert efficiency(grad, 64, 32) == pytest.approx(128 / 96)
    assert gain(grad, 64, 32) == pytest.approx(64 / 96)


def test_extreme_statistics_neither_overflow_nor_underflow() -> None:
    assert efficiency(GradParams(grad_sqr=1e300, grad_var=1e308), 1, 10**6) == pytest.approx(1, abs=0.02)
    assert efficiency(GradParams(grad_sqr=5e-324, grad_var=5e-324), 10, 30) == pytest.approx(0.5)


def test_arrays_broadcast() -> None:
    grad = GradParams(grad_sqr=1.0, grad_var=1.0)
    assert gain(grad, np.array([[1], [2]]), np.array([4, 8, 16])).shape == (2, 3)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_statistics_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="grad_sqr"):
        GradParams(grad_sqr=bad, grad_var=1.0)
    with pytest.raises(ValueError, match="grad_var"):
        GradParams(grad_sqr=1.0, grad_var=bad)
