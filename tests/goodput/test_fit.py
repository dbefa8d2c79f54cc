from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.goodput import Observation, PerfParams, Profile, ProfileKey, fit_perf_params, grad_time_s, step_time_s
from adaptdl.goodput.fit import ACROSS_RATIO

quick = settings(max_examples=40, deadline=None)
TRUE = PerfParams(alpha_c=0.05, beta_c=0.002, alpha_n=0.12, beta_n=0.004, alpha_r=0.03, beta_r=0.001, gamma=2.5)
SHAPES = [(1, 1), (1, 2), (1, 4), (2, 4), (2, 8), (4, 16)]
SIZES = [16, 32, 64, 128, 256]


def profile(
    perf: PerfParams,
    shapes: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    passes: Sequence[int] = (0,),
    noise: float = 0,
) -> dict[ProfileKey, Observation]:
    rng = np.random.default_rng(0)
    result = {}
    for nodes, replicas in shapes:
        for m in sizes:
            for s in passes:
                step = float(step_time_s(perf, nodes, replicas, m, s)) * math.exp(noise * rng.standard_normal())
                sync = max(step - (s + 1) * float(grad_time_s(perf, m)), 0.0) if replicas > 1 else 0.0
                key = ProfileKey(num_nodes=nodes, num_replicas=replicas, atomic_batch_size=m, accum_steps=s)
                result[key] = Observation(step_time_s=step, sync_time_s=sync, count=20)
    return result


@pytest.mark.parametrize("gamma", [1.0, 1.3, 2.5, 6.0])
def test_fit_recovers_the_parameters_of_a_noiseless_profile(gamma: float) -> None:
    true = PerfParams(alpha_c=0.05, beta_c=0.002, alpha_n=0.12, beta_n=0.004, alpha_r=0.03, beta_r=0.001, gamma=gamma)
    fit = fit_perf_params(profile(true, SHAPES, SIZES, passes=(0, 2)))
    assert not fit.is_prior
    assert fit.message == ""
    assert fit.rmsle < 1e-3
    assert astuple(fit.perf_params) == pytest.approx(astuple(true), rel=0.05, abs=1e-5)


def test_fit_predicts_what_it_has_not_seen_from_a_noisy_profile() -> None:
    fit = fit_perf_params(profile(TRUE, SHAPES, SIZES, noise=0.05))
    assert fit.rmsle < 0.1
    for shape in ((1, 3), (2, 6), (3, 12)):
        predicted, true = step_time_s(fit.perf_params, *shape, 96, 1), step_time_s(TRUE, *shape, 96, 1)
        assert predicted == pytest.approx(true, rel=0.15)


@quick
@given(
    st.lists(st.sampled_from(SHAPES), min_size=1, unique=True),
    st.lists(st.sampled_from(SIZES), min_size=1, unique=True),
    st.floats(0, 0.2),
)
def test_across_nodes_is_never_thought_faster_than_within(
    shapes: list[tuple[int, int]], sizes: list[int], noise: float
) -> None:
    fitted = fit_perf_params(profile(TRUE, shapes, sizes, noise=noise)).perf_params
    assert fitted.alpha_n >= fitted.alpha_r
    assert fitted.beta_n >= fitted.beta_r


def test_one_replica_only_means_perfect_scaling() -> None:
    fit = fit_perf_params(profile(TRUE, [(1, 1)], SIZES))
    fitted = fit.perf_params
    assert (fitted.alpha_r, fitted.beta_r, fitted.alpha_n, fitted.beta_n) == (0, 0, 0, 0)
    assert (fitted.alpha_c, fitted.beta_c) == pytest.approx((TRUE.alpha_c, TRUE.beta_c), rel=1e-3)
    assert "perfect scaling" in fit.message


def test_never_across_nodes_means_several_times_slower_than_on_one_node() -> None:
    fitted = fit_perf_params(profile(TRUE, [(1, 1), (1, 2), (1, 4)], SIZES)).perf_params
    assert fitted.alpha_r == pytest.approx(TRUE.alpha_r, rel=0.05)
    assert (fitted.alpha_n, fitted.beta_n) == (pytest.approx(ACROSS_RATIO * fitted.alpha_r), fitted.beta_r)


def test_two_replicas_only_mean_no_retrogression() -> None:
    fitted = fit_perf_params(profile(TRUE, [(1, 1), (1, 2), (2, 2)], SIZES)).perf_params
    assert (fitted.beta_r, fitted.beta_n) == (0, 0)
    assert fitted.alpha_n > fitted.alpha_r > 0


def test_across_nodes_only_means_several_times_faster_on_one_node() -> None:
    fitted = fit_perf_params(profile(TRUE, [(2, 2), (2, 4)], SIZES)).perf_params
    assert fitted.alpha_n == pytest.approx(TRUE.alpha_n, rel=0.1)
    assert (fitted.alpha_r, fitted.beta_r) == (pytest.approx(fitted.alpha_n / ACROSS_RATIO), 0)


def test_one_batch_size_only_is_half_fixed_and_half_proportional() -> None:
    fitted = fit_perf_params(profile(TRUE, [(1, 1)], [64])).perf_params
    assert fitted.alpha_c == pytest.approx(fitted.beta_c * 64)
    assert grad_time_s(fitted, 64) == pytest.approx(grad_time_s(TRUE, 64))


def test_one_point_is_explained_exactly() -> None:
    seen = profile(TRUE, [(2, 4)], [64], passes=(1,))
    fit = fit_perf_params(seen)
    assert not fit.is_prior
    assert fit.rmsle < 1e-6
    assert step_time_s(fit.perf_params, 2, 4, 64, 1) == pytest.approx(step_time_s(TRUE, 2, 4, 64, 1))


def test_an_empty_profile_gives_the_prior_and_says_so() -> None:
    fit = fit_perf_params({})
    assert fit.is_prior
    assert fit.message == "no observations; perfect scaling"
    assert math.isnan(fit.rmsle)
    assert step_time_s(fit.perf_params, 4, 8, 1) == step_time_s(fit.perf_params, 1, 1, 1)


@pytest.mark.parametrize(
    "bad",
    [
        Observation(step_time_s=math.nan, sync_time_s=0.0, count=3),
        Observation(step_time_s=math.inf, sync_time_s=0.0, count=3),
        Observation(step_time_s=-1.0, sync_time_s=0.0, count=3),
        Observation(step_time_s=0.0, sync_time_s=0.0, count=3),
        Observation(step_time_s=1.0, sync_time_s=2.0, count=3),
        Observation(step_time_s=1.0, sync_time_s=math.nan, count=3),
        Observation(step_time_s=1.0, sync_time_s=-0.1, count=3),
        Observation(step_time_s=1.0, sync_time_s=0.5, count=0),
    ],
)
def test_observations_that_make_no_sense_are_ignored(bad: Observation) -> None:
    key = ProfileKey(num_nodes=1, num_replicas=2, atomic_batch_size=999, accum_steps=0)
    assert fit_perf_params({key: bad}).is_prior
    good = profile(TRUE, SHAPES, SIZES)
    fit = fit_perf_params(good | {key: bad})
    assert fit.perf_params == fit_perf_params(good).perf_params
    assert "1 of 31 observations" in fit.message


strange_times = st.one_of(st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-300, 1e300, 1.0]), st.floats(1e-12, 1e12))
strange_profiles = st.dictionaries(
    st.builds(
        ProfileKey,
        num_nodes=st.integers(-1, 5),
        num_replicas=st.integers(-1, 9),
        atomic_batch_size=st.integers(-1, 10**9),
        accum_steps=st.integers(-1, 9),
    ),
    st.builds(Observation, step_time_s=strange_times, sync_time_s=strange_times, count=st.integers(-1, 10**9)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(strange_profiles)
def test_a_strange_profile_never_raises(strange: Profile) -> None:
    fit = fit_perf_params(strange)
    assert fit.is_prior == math.isnan(fit.rmsle)
    assert fit.message or not fit.is_prior


@pytest.mark.parametrize("sync", [0.0, 0.3])
def test_equal_points_are_explained(sync: float) -> None:
    keys = [
        ProfileKey(num_nodes=1, num_replicas=k, atomic_batch_size=m, accum_steps=0) for k in (1, 2, 4) for m in (8, 16)
    ]
    fit = fit_perf_params({key: Observation(step_time_s=0.5, sync_time_s=sync, count=9) for key in keys})
    assert not fit.is_prior
    assert fit.rmsle < 0.5


def test_the_order_of_the_profile_does_not_matter() -> None:
    seen = profile(TRUE, SHAPES, SIZES, noise=0.1)
    assert fit_perf_params(seen) == fit_perf_params(dict(reversed(seen.items())))


def test_a_fit_is_quick() -> None:
    seen = profile(TRUE, SHAPES, SIZES, noise=0.05)
    fit_perf_params(seen)
    start = time.process_time()
    fit_perf_params(seen)
    assert time.process_time() - start < 0.2  # 0.05 s are meant; test machines are slow
