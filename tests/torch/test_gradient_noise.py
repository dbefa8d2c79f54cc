"""Running estimates from samples whose mean and spread are known."""

from __future__ import annotations

import random
import statistics

import pytest

from adaptdl.torch.gradient_noise import GradientNoise

TRACE, BATCH_SIZE, INIT_BATCH_SIZE = 640.0, 64, 32


def measured(values: list[float]) -> GradientNoise:
    """Of samples of |g|², one in each step, beside a constant tr Σ."""
    noise = GradientNoise()
    for value in values:
        large = value + TRACE / BATCH_SIZE
        small = value + 2 * TRACE / BATCH_SIZE
        noise.add_norms(small, large, inverse_small=2 / BATCH_SIZE, inverse_large=1 / BATCH_SIZE, weight=1.0)
    return noise


def samples(mean: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, 1.0) for _ in range(400)]  # the last 100 count most, and as many as 200 alike ones


def test_what_stands_out_of_the_noise_is_its_mean() -> None:
    found = measured(samples(2.0, seed=0)).grad_params(INIT_BATCH_SIZE)
    assert found is not None
    assert found.grad_sqr == pytest.approx(2.0, abs=4 / 200**0.5)
    assert found.grad_var == pytest.approx(TRACE / INIT_BATCH_SIZE)


def test_what_is_lost_in_the_noise_is_no_less_than_its_standard_error() -> None:
    """Otherwise every other estimate would say that batches of any size are as good as small ones."""
    found = [measured(samples(0.0, seed)).grad_params(INIT_BATCH_SIZE) for seed in range(20)]
    values = [params.grad_sqr for params in found if params is not None]
    assert min(values) > 0.7 / 200**0.5
    assert statistics.median(values) < 2 / 200**0.5


def test_the_estimate_goes_on_from_a_snapshot() -> None:
    noise, other = measured(samples(0.0, seed=1)), GradientNoise()
    other.load_state_dict(noise.state_dict())
    assert other.grad_params(INIT_BATCH_SIZE) == noise.grad_params(INIT_BATCH_SIZE)


def test_a_snapshot_of_a_version_that_knew_no_spread_is_taken() -> None:
    noise, other = measured(samples(2.0, seed=1)), GradientNoise()
    other.load_state_dict({k: v for k, v in noise.state_dict().items() if k not in ("spread", "total_sqr")})
    assert other.grad_params(INIT_BATCH_SIZE) == noise.grad_params(INIT_BATCH_SIZE)


def test_samples_that_are_not_finite_are_left_out() -> None:
    noise = measured([2.0] * 30 + [float("inf"), float("nan"), 1e200] + [2.0] * 5)
    assert (noise.num_samples, noise.num_skipped) == (35, 3)
    found = noise.grad_params(INIT_BATCH_SIZE)
    assert found is not None
    assert found.grad_sqr == pytest.approx(2.0)
