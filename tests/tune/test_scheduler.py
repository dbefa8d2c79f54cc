"""The scheduler without a cluster: what it refuses, and what it passes on."""

from __future__ import annotations

import functools
import pickle
import statistics
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from adaptdl.errors import UsageError
from adaptdl.policy import OptimalPolicy
from adaptdl.runtime import ElasticConfig
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from adaptdl.tune.admission import Admission
from adaptdl.tune.allocation_loop import Seen
from adaptdl.tune.scheduler import _AtTheEnd, _Experiment, _Tracked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_scheduler": "asha"}, "must be one of Tune's schedulers"),
        ({"base_scheduler": AdaptDLScheduler()}, "must not be an AdaptDLScheduler itself"),
        ({"interval_s": 0}, "`interval_s > 0` must hold"),
        ({"interval_s": "5"}, "`interval_s > 0` must hold, in seconds"),
        ({"min_replicas": 4, "max_replicas": 2}, "`min_replicas <= max_replicas` must hold"),
        ({"elastic": {"min_replicas": 2}}, "`elastic` must be an ElasticConfig"),
        ({"policy": "optimal"}, "`policy` must be a policy, such as"),
        ({"policy": OptimalPolicy}, "`policy` must be a policy, such as"),
        ({"wait_for_nodes_s": 0}, "`wait_for_nodes_s > 0` must hold, in seconds"),
        ({"kind_of": 3}, "`kind_of` must be a function that takes a trial"),
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


class SilentLoop:
    """An allocation loop from which nothing comes."""

    nodes: tuple[()] = ()

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, *news: Any) -> None:
        self.told += news

    def statuses(self) -> list[Any]:
        return []

    def stop(self) -> None:
        self.told.append("stop")


def trial(number: int) -> Any:
    return SimpleNamespace(trial_id=f"{number:05d}", status="PENDING", temporary_state=SimpleNamespace(ray_actor=None))


CONTROLLER = SimpleNamespace(get_trials=list)


def scheduler_with(trials: list[Any]) -> tuple[AdaptDLScheduler, SilentLoop]:
    scheduler, loop = AdaptDLScheduler(), SilentLoop()
    scheduler._experiment = _Experiment(
        controller_id=id(CONTROLLER),
        name="experiment",
        loop=loop,  # type: ignore[arg-type]
        admission=Admission(None),
        elastic=ElasticConfig(),
        resources_per_replica={"CPU": 1.0},
        tracked={trial.trial_id: _Tracked(trial=trial) for trial in trials},
    )
    return scheduler, loop


def test_it_costs_less_than_a_millisecond_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, _ = scheduler_with([trial(number) for number in range(200)])
    monkeypatch.setattr("adaptdl.tune.scheduler._LOOK_INTERVAL_S", 0.0)
    times_s = []
    for _ in range(50):
        began = time.perf_counter()
        scheduler.choose_trial_to_run(CONTROLLER)
        times_s.append(time.perf_counter() - began)
    assert statistics.median(times_s) < 1e-3


def test_the_allocation_loop_hears_of_coordinators_that_come_and_go() -> None:
    one = trial(1)
    scheduler, loop = scheduler_with([one])
    experiment = scheduler._experiment
    assert experiment is not None
    scheduler._look(experiment)
    assert loop.told == []
    one.temporary_state.ray_actor, one.status = "the actor", "RUNNING"
    experiment.looked_at = 0.0
    scheduler._look(experiment)
    experiment.num_replicas["00001"] = 2
    one.temporary_state.ray_actor, one.status = None, "PAUSED"
    experiment.looked_at = 0.0
    scheduler._look(experiment)
    assert experiment.num_replicas == {}
    assert loop.told == [
        Seen(trial_id="00001", coordinator="the actor", waits=False),  # type: ignore[arg-type]
        Seen(trial_id="00001", coordinator=None, waits=False),
    ]


@pytest.mark.parametrize("paused_by", ["decision", "PBT"])
def test_a_paused_trial_that_runs_again_at_once_comes_after_those_that_wait(paused_by: str) -> None:
    class Base(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            if paused_by == "decision":
                return TrialScheduler.PAUSE
            trial.status = "PAUSED"
            return TrialScheduler.NOOP

    one = trial(1)
    scheduler, loop = scheduler_with([one])
    scheduler._base = Base()
    experiment = scheduler._experiment
    assert experiment is not None
    told = []
    for actor in ["first", "second", "third"]:
        one.temporary_state.ray_actor, one.status = actor, "RUNNING"
        experiment.looked_at = 0.0
        scheduler._look(experiment)
        told.append([seen.coordinator for seen in loop.told])
        loop.told.clear()
        if actor == "first":
            scheduler.on_trial_result(CONTROLLER, one, {})  # type: ignore[arg-type]
    assert told == [["first"], [None, "second"], ["third"]]  # the third came after a failure, and keeps its place


def test_a_trial_that_says_nothing_of_resources_gets_the_default_whatever_others_have() -> None:
    def train(config: dict[str, Any]) -> None:
        pass

    scheduler, loop = scheduler_with([])
    wide = DistributedTrainableCreator(train, resources_per_replica={"CPU": 3})
    for number, trainable in enumerate([wide, DistributedTrainableCreator(train)]):
        added = trial(number)
        added.get_trainable_cls = lambda trainable=trainable: trainable
        added.is_finished, added.trainable_name = (lambda: False), "train"
        scheduler.on_trial_add(CONTROLLER, added)
    assert [arrived.elastic.resources_per_replica for arrived in loop.told] == [{"CPU": 3}, {"CPU": 1.0}]


def test_an_experiment_that_is_over_is_forgotten() -> None:
    scheduler, loop = scheduler_with([])
    experiment = scheduler._experiment
    assert experiment is not None
    _AtTheEnd(functools.partial(scheduler._end, experiment)).on_experiment_end([])
    assert loop.told == ["stop"]
    assert scheduler._experiment is None
