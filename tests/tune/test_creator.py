"""From a training function to a trainable."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.trainable import wrap_function

from adaptdl.errors import UsageError
from adaptdl.runtime import ElasticConfig
from adaptdl.tune import AdaptDLTrainable, DistributedTrainableCreator
from adaptdl.tune.creator import check_resource_request, elastic_from_function_trainable


def train(config: dict[str, Any]) -> None: ...


def test_the_trainable_has_the_name_the_tables_show_and_takes_no_device() -> None:
    made = DistributedTrainableCreator(train, resources_per_replica={"gpu": 2}, max_replicas=8)
    assert made.__name__ == "AdaptDLTrainable"
    assert issubclass(made, AdaptDLTrainable)
    assert made.elastic.resources_per_replica == {"GPU": 2.0}
    assert made.elastic.max_replicas == 8
    assert set(made.default_resource_request({}).required_resources) == {"memory", "node:__internal_head__"}


def test_the_trainable_crosses_processes_without_the_function_being_unpickled() -> None:
    class Unpickled(Exception):
        pass

    class Trap:
        def __reduce__(self) -> Any:
            return _spring, ()

    def _spring() -> None:
        raise Unpickled

    trap = Trap()

    def uses_trap(config: dict[str, Any]) -> None:
        print(trap)

    copy = cloudpickle.loads(cloudpickle.dumps(DistributedTrainableCreator(uses_trap)))
    assert copy.__name__ == "AdaptDLTrainable"
    with pytest.raises(Unpickled):
        pickle.loads(copy.function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"func": 3}, "a training function is needed"),
        ({"func": type("SomeClass", (), {})}, "a training function is needed"),
        ({"func": lambda: None}, "must take one argument, the config"),
        ({"func": train, "min_replicas": 0}, "`min_replicas` must be a whole number ≥ 1, but got 0"),
        ({"func": train, "min_replicas": 2, "max_replicas": 1}, "`min_replicas <= max_replicas` must hold"),
        ({"func": train, "resources_per_replica": {"CPU": 0}}, "must ask for something"),
        ({"func": train, "elastic": {"min_replicas": 2}}, "`elastic` must be an ElasticConfig"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DistributedTrainableCreator(**arguments)


def test_resources_asked_for_with_a_plain_function_are_those_of_a_replica() -> None:
    def asks_itself(config: dict[str, Any]) -> None: ...

    wrapped = wrap_function(tune.with_resources(asks_itself, {"CPU": 2, "GPU": 0}))
    assert elastic_from_function_trainable(wrapped, None, {}).elastic.resources_per_replica == {"CPU": 2.0}
    per_trial = tune.PlacementGroupFactory([{"GPU": 1}])
    assert elastic_from_function_trainable(wrap_function(train), per_trial, {}).elastic.resources_per_replica == {
        "GPU": 1.0
    }
    assert elastic_from_function_trainable(wrap_function(train), None, {}).elastic.resources_per_replica is None


def test_several_bundles_are_refused() -> None:
    several = tune.PlacementGroupFactory([{"CPU": 1}] + [{"CPU": 2, "GPU": 1}] * 4)
    with pytest.raises(UsageError, match=r"resources_per_replica=\.\.\., max_replicas=\.\.\."):
        elastic_from_function_trainable(wrap_function(train), several, {})


def test_resources_for_the_coordinator_are_refused() -> None:
    made = DistributedTrainableCreator(train)
    check_resource_request(made)
    with pytest.raises(UsageError, match=r"resources_per_replica=\.\.\."):
        check_resource_request(tune.with_resources(made, {"GPU": 1}))


def test_what_is_stated_beside_an_elastic_config_goes_into_it_and_nothing_else() -> None:
    elastic = ElasticConfig(min_replicas=2, max_replicas=4, resources_per_replica={"CPU": 2}, gather_s=1.0)
    assert DistributedTrainableCreator(train, elastic=elastic).elastic == elastic
    assert DistributedTrainableCreator(train, elastic=elastic, max_replicas=3).elastic == replace(
        elastic, max_replicas=3
    )


def test_a_trainable_that_states_the_default_keeps_it() -> None:
    of_the_scheduler = ElasticConfig(min_replicas=2)
    silent, states = DistributedTrainableCreator(train), DistributedTrainableCreator(train, min_replicas=1)
    merged = [made.elastic.with_defaults(of_the_scheduler, stated=made.stated) for made in (silent, states)]
    assert [elastic.min_replicas for elastic in merged] == [2, 1]


AUTO_INIT = """
import sys
from ray import tune
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator

def train(config, data):
    from ray import tune
    tune.report({"total": float(sum(data))})

trainable = DistributedTrainableCreator(tune.with_parameters(train, data=[1, 2, 3]))
scheduler = AdaptDLScheduler()
config = tune.TuneConfig(scheduler=scheduler)
(result,) = tune.Tuner(
    trainable, tune_config=config, run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0)
).fit()
print("total", result.metrics["total"])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_parameters_reach_the_function_where_tune_starts_ray(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AUTO_INIT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "RAY_ADDRESS": "local"},  # not one that others run on this computer
    )
    assert "total 6.0" in done.stdout, done.stdout + done.stderr
