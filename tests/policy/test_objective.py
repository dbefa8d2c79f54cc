from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.policy import Objective
from tests.policy.instances import job


@given(st.floats(0, 1))
def test_nothing_is_worth_nothing_and_one_replica_one(fairness: float) -> None:
    objective = Objective(fairness=fairness)
    assert objective.utility(0.0) == 0
    assert objective.utility(1.0) == pytest.approx(1)


@given(st.floats(0, 1), st.floats(0, 20), st.floats(0.01, 5))
def test_utility_grows_and_grows_less_and_less(fairness: float, speedup: float, more: float) -> None:
    first, second, third = Objective(fairness=fairness).utility(speedup + more * np.arange(3))
    assert first < second < third
    assert third - second <= (second - first) * (1 + 1e-6)


@pytest.mark.parametrize(("fairness", "exponent"), [(0, 1), (0.5, 0), (2 / 3, -1), (1, -8)])
def test_fairness_is_the_exponent_of_a_power_mean(fairness: float, exponent: float) -> None:
    assert Objective(fairness=fairness).exponent == pytest.approx(exponent)


def test_utility_is_continuous_where_the_mean_is_geometric() -> None:
    near, at = Objective(fairness=0.5 + 1e-7), Objective(fairness=0.5)
    assert near.utility(7.0) == pytest.approx(at.utility(7.0), rel=1e-5)
    assert at.utility(7.0) == pytest.approx(3)


def test_without_fairness_it_is_the_weighted_speedup_less_what_moves_cost() -> None:
    jobs = [job("a", weight=2.0, move_cost=0.1), job("b", move_cost=0.25)]
    allocations = {"a": {"n0": 2}, "b": {"n0": 1, "n1": 1}}
    objective = Objective(fairness=0)
    assert objective.total(jobs, allocations, allocations) == pytest.approx(2 * 2 + 2)
    assert objective.total(jobs, {"a": {"n1": 2}}, allocations) == pytest.approx(2 * 2 * 0.9 + 2 * 0.75)
    assert objective.total(jobs, allocations, {}) == 0
