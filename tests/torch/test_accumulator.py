from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import adaptdl.torch as adl
from adaptdl.errors import UsageError


@pytest.fixture(autouse=True)
def session() -> Iterator[adl.ElasticSession]:
    with adl.open_session() as session:
        yield session


def test_sums_are_those_of_all_changes() -> None:
    sums = adl.Accumulator()
    sums["a"] += 2
    sums["a"] -= 0.5
    sums.update({"b": 1}, c=torch.ones(2))
    sums.subtract(c=torch.tensor([1.0, 0.0]))
    with sums.synchronized():
        assert sums["a"] == 1.5
        assert sums["b"] == 1
        assert sums["c"].tolist() == [0, 1]
        assert sorted(sums) == ["a", "b", "c"]
        assert "d" not in sums
        assert sums.get("d", 7) == 7
    sums["a"] += 1
    with sums.synchronized() as total:
        assert dict(total.items())["a"] == 2.5


def test_values_cannot_be_read_outside_of_synchronized() -> None:
    sums = adl.Accumulator()
    sums["a"] += 2
    for read in (lambda: list(sums), lambda: "a" in sums, lambda: len(sums), lambda: sums["a"].real):
        with pytest.raises(UsageError, match=r"inside `with accumulator.synchronized\(\):`"):
            read()


def test_values_cannot_be_assigned_or_changed_inside() -> None:
    sums = adl.Accumulator()
    with pytest.raises(UsageError, match=r"\+= and -= only"):
        sums["a"] = 3
    with sums.synchronized(), pytest.raises(UsageError, match="cannot be changed inside"):
        sums.update(a=1)


def test_clear_forgets() -> None:
    sums = adl.Accumulator()
    sums["a"] += 2
    with sums.synchronized():
        sums.clear()
    with sums.synchronized():
        assert len(sums) == 0
