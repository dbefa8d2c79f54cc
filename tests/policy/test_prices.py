from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.policy.prices import Choices, Form, resource_prices
from adaptdl.policy.wishes import Options


def options(*values: float, stay: float = 0.0) -> Options:
    """One replica, two, and so on, on one node."""
    single = [(k, value) for k, value in enumerate(values, start=1)]
    return Options(kind=0, stay=stay, standing={0: 1} if stay else None, single=single)


def test_at_the_right_price_what_is_wanted_is_what_is_there() -> None:
    choices = Choices.of([options(1.0, 1.8, 2.4), options(1.0, 1.3)])
    prices = resource_prices(choices, np.ones((2, 1)), np.array([3.0]))
    assert prices.of_replicas[0] == pytest.approx(prices.of_replicas[1])
    assert 0.6 - 1e-3 <= prices.of_replicas[0] <= 0.8 + 1e-3
    assert prices.bound == pytest.approx(1.8 + 1.0, abs=1e-3)


def test_what_is_not_scarce_costs_nothing() -> None:
    choices = Choices.of([options(1.0, 1.8)])
    prices = resource_prices(choices, np.array([[1.0, 4.0]]), np.array([10.0, 4.0]))
    assert prices.of_replicas[0] == pytest.approx(4 * 0.2, rel=0.3)
    assert prices.bound == pytest.approx(1.0, abs=1e-3)


@settings(deadline=None)
@given(
    tables=st.lists(st.lists(st.floats(0.01, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    supply=st.integers(0, 9),
)
def test_nothing_that_fits_is_worth_more_than_the_bound(tables: list[list[float]], supply: int) -> None:
    prices = resource_prices(
        Choices.of([options(*table) for table in tables]), np.ones((len(tables), 1)), np.array([float(supply)])
    )
    best = np.zeros(supply + 1)  # by number of replicas given away
    for table in tables:
        best = np.array(
            [max([best[n], *(best[n - k] + v for k, v in enumerate(table, 1) if k <= n)]) for n in range(supply + 1)]
        )
    assert best[-1] <= prices.bound + 1e-9


def test_choices_can_be_left_out_but_for_staying() -> None:
    given_options = [options(1.0, 2.0, stay=1.5), options(3.0)]
    choices = Choices.of(given_options)
    assert choices.form.tolist() == [Form.STAY, Form.SINGLE, Form.SINGLE, Form.SINGLE]
    first, second = choices.only(given_options, choices.value == 2.0)
    assert (first.stay, first.single) == (1.5, [(2, 2.0)])
    assert second.single == []
