"""From a training function to a trainable."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.trainable import wrap_function

from adaptdl.errors import UsageError
from adaptdl.tune import AdaptDLTrainable, DistributedTrainableCreator
from adaptdl.tune.creator import elastic_from_function_trainable


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
