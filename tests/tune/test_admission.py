"""No more trials live at once than there is room for, unless the user has set a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    PopulationBasedTraining,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher, SearchGenerator

from adaptdl.tune.admission import Admission, wants_all_trials


class Numbers(Searcher):
    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self._number = 0

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self._number += 1
        return {"number": self._number}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None: ...


def test_the_default_generator_is_limited_and_follows_the_cluster() -> None:
    generator = BasicVariantGenerator()
    admission = Admission(generator)
    admission.allow(3)
    assert generator.max_concurrent == 3
    admission.allow(5)
    assert generator.max_concurrent == 5
    admission.allow(0)
    assert generator.max_concurrent == 1


def test_a_searcher_is_limited_and_trials_drawn_before_are_counted() -> None:
    search = SearchGenerator(Numbers())
    admission = Admission(search)
    admission.allow(2)
    admission.count_living(["first"])
    assert search.searcher.suggest("second") == {"number": 1}
    assert search.searcher.suggest("third") is None
    search.searcher.on_trial_complete("first")
    assert search.searcher.suggest("third") == {"number": 2}


def test_the_users_own_limits_are_left_alone() -> None:
    generator = BasicVariantGenerator(max_concurrent=7)
    Admission(generator).allow(1)
    assert generator.max_concurrent == 7
    limiter = ConcurrencyLimiter(Numbers(), max_concurrent=7)
    search = SearchGenerator(limiter)
    Admission(search).allow(1)
    assert search.searcher is limiter
    assert limiter.max_concurrent == 7


def test_a_limit_of_ours_is_not_taken_for_the_users_after_a_restart(tmp_path: Path) -> None:
    before = BasicVariantGenerator()
    Admission(before).allow(2)
    before.save_to_dir(str(tmp_path), "session")
    again = BasicVariantGenerator()
    again.restore_from_dir(str(tmp_path))
    assert again.max_concurrent == 2
    Admission(again).allow(4)
    assert again.max_concurrent == 4


def test_paused_trials_do_not_count() -> None:
    generator = BasicVariantGenerator()
    Admission(generator).allow(2, num_paused=3)
    assert generator.max_concurrent == 5


def test_schedulers_that_compare_a_population_want_all_of_it() -> None:
    pbt = PopulationBasedTraining(hyperparam_mutations={"lr": [0.1, 0.2]})
    assert wants_all_trials(pbt)
    assert wants_all_trials(HyperBandScheduler())
    assert not wants_all_trials(HyperBandForBOHB())
    assert not wants_all_trials(AsyncHyperBandScheduler())
    assert not wants_all_trials(FIFOScheduler())
