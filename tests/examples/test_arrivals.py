from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from arrivals import Arrivals


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Numbers(Searcher):
    """Suggests 0, 1, …, then that it is finished, and keeps what it is told."""

    def __init__(self, limit: int = 100) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.given = 0
        self.limit = limit
        self.told: list[Any] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.given == self.limit:
            return Searcher.FINISHED
        self.given += 1
        return {"number": self.given - 1}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.told.append(("result", trial_id, result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.told.append(("complete", trial_id, result, error))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(str(self.given))

    def restore(self, checkpoint_path: str) -> None:
        self.given = int(Path(checkpoint_path).read_text())


def test_the_first_trial_comes_at_once() -> None:
    assert Arrivals(Numbers(), 10, Clock()).suggest("a") == {"number": 0}


@pytest.mark.parametrize("told", ["result", "complete"])
def test_the_next_trial_comes_an_interval_after_the_newest_one_has_reported_or_ended(told: str) -> None:
    clock = Clock()
    arrivals = Arrivals(Numbers(), 10, clock)
    arrivals.suggest("a")
    clock.now_s += 100
    assert arrivals.suggest("b") is None
    getattr(arrivals, f"on_trial_{told}")("a", {"accuracy": 0.5})
    clock.now_s += 9.9
    assert arrivals.suggest("b") is None
    clock.now_s += 0.2
    assert arrivals.suggest("b") == {"number": 1}


def test_only_the_first_result_of_the_newest_trial_counts() -> None:
    clock = Clock()
    arrivals = Arrivals(Numbers(), 10, clock)
    for trial_id in "ab":
        assert arrivals.suggest(trial_id) is not None
        arrivals.on_trial_result(trial_id, {})
        clock.now_s += 6
        arrivals.on_trial_result(trial_id, {})
        clock.now_s += 5
    assert arrivals.suggest("c") == {"number": 2}
    arrivals.on_trial_result("a", {})
    clock.now_s += 11
    assert arrivals.suggest("d") is None


def test_nothing_is_asked_of_the_searcher_before_the_time() -> None:
    numbers = Numbers()
    arrivals = Arrivals(numbers, 10, Clock())
    for trial_id in "abc":
        arrivals.suggest(trial_id)
    assert numbers.given == 1


def test_without_an_interval_all_come_at_once() -> None:
    arrivals = Arrivals(Numbers(), 0, Clock())
    assert [arrivals.suggest(trial_id) for trial_id in "abc"] == [{"number": n} for n in range(3)]


def test_the_end_of_the_search_needs_no_waiting_for() -> None:
    arrivals = Arrivals(Numbers(limit=0), 10, Clock())
    assert arrivals.suggest("a") == Searcher.FINISHED
    assert arrivals.suggest("a") == Searcher.FINISHED


def test_results_and_properties_are_the_searchers(tmp_path: Path) -> None:
    numbers = Numbers()
    arrivals = Arrivals(numbers, 10, Clock())
    assert (arrivals.metric, arrivals.mode) == ("accuracy", "max")
    arrivals.on_trial_result("a", {"accuracy": 0.5})
    arrivals.on_trial_complete("a", {"accuracy": 0.6}, error=True)
    assert numbers.told == [("result", "a", {"accuracy": 0.5}), ("complete", "a", {"accuracy": 0.6}, True)]
    numbers.given = 7
    arrivals.save(str(tmp_path / "saved"))
    numbers.given = 0
    arrivals.restore(str(tmp_path / "saved"))
    assert numbers.given == 7


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval_s=-1"):
        Arrivals(Numbers(), -1)
