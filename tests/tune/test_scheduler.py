"""The scheduler without a cluster: what it refuses, and what it passes on."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from adaptdl.errors import UsageError
from adaptdl.tune import AdaptDLScheduler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_scheduler": "asha"}, "must be one of Tune's schedulers"),
        ({"base_scheduler": AdaptDLScheduler()}, "must not be an AdaptDLScheduler itself"),
        ({"interval_s": 0}, "`interval_s > 0` must hold"),
        ({"min_replicas": 4, "max_replicas": 2}, "`min_replicas <= max_replicas` must hold"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaptDLScheduler(**arguments)


def test_it_pickles_before_the_experiment_begins() -> None:
    copy = pickle.loads(pickle.dumps(AdaptDLScheduler(AsyncHyperBandScheduler(max_t=7), max_replicas=3)))
    assert isinstance(copy.base_scheduler, AsyncHyperBandScheduler)


def test_metric_and_mode_go_to_the_base_scheduler() -> None:
    base = AsyncHyperBandScheduler()
    scheduler = AdaptDLScheduler(base)
    assert scheduler.set_search_properties("loss", "min")
    assert scheduler.metric == base.metric == "loss"
    assert not scheduler.set_search_properties("other", "max")


def test_results_are_never_buffered() -> None:
    assert AdaptDLScheduler(FIFOScheduler()).supports_buffered_results is False


def test_decisions_are_the_base_schedulers() -> None:
    class Base(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            return TrialScheduler.STOP

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            return "the one"

        def debug_string(self) -> str:
            return "the base"

    scheduler = AdaptDLScheduler(Base())
    assert scheduler.on_trial_result(None, None, {}) == TrialScheduler.STOP  # type: ignore[arg-type]
    assert scheduler.choose_trial_to_run(None) == "the one"
    assert "the base" in scheduler.debug_string()
