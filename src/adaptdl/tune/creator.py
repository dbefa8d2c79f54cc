"""From a training function to the trainable that Tune runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray import cloudpickle
from ray.tune import PlacementGroupFactory
from ray.tune.trainable import FunctionTrainable, wrap_function

from adaptdl.errors import UsageError
from adaptdl.runtime.config import ElasticConfig
from adaptdl.tune.trainable import AdaptDLTrainable

__all__ = [
    "DistributedTrainableCreator",
    "check_resource_request",
    "elastic_config",
    "elastic_from_function_trainable",
    "report",
]


def DistributedTrainableCreator(
    func: Callable[[dict[str, Any]], Any],
    *,
    resources_per_replica: Mapping[str, float] | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    elastic: ElasticConfig | None = None,
) -> type[AdaptDLTrainable]:
    """Makes a trainable of a training function, for ``tune.run`` or ``Tuner`` with ``scheduler=AdaptDLScheduler()``.

    Args:
        func: the training function; takes the config.
        resources_per_replica: what one replica holds, e.g. ``{"GPU": 1, "CPU": 4}``. None: what the scheduler says,
            else one GPU if the cluster has GPUs, else one CPU.
        min_replicas: a trial runs on at least so many replicas, or waits. None: what the scheduler says, else 1.
        max_replicas: and on at most so many. None: what the scheduler says, else as many as are useful.
        elastic: time limits and the like; of the arguments above, those that are not None are put into it.

    Raises:
        UsageError: an argument is out of its bounds, or `func` is no function of one argument.
    """
    if not callable(func) or isinstance(func, type):
        raise UsageError(f"a training function is needed, such as `def train(config): ...`, but got {func!r}")
    try:
        wrapped = wrap_function(func)
    except ValueError as error:
        raise UsageError(f"the training function must take one argument, the config: {error}") from error
    return _trainable(
        wrapped,
        elastic_config(
            elastic,
            resources_per_replica=resources_per_replica,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
        ),
        stated=frozenset() if min_replicas is None else frozenset({"min_replicas"}),
    )


def elastic_config(elastic: ElasticConfig | None, **stated: Any) -> ElasticConfig:
    """`elastic`, with those of the other arguments put into it that are not None.

    Raises:
        UsageError: a value is out of its bounds, or `elastic` is something else.
    """
    if elastic is not None and not isinstance(elastic, ElasticConfig):
        raise UsageError(f"`elastic` must be an ElasticConfig, but got {elastic!r}")
    return replace(elastic or ElasticConfig(), **{name: value for name, value in stated.items() if value is not None})


def elastic_from_function_trainable(
    wrapped: type[FunctionTrainable], own_resources: PlacementGroupFactory | None, config: dict[str, Any]
) -> type[AdaptDLTrainable]:
    """The elastic trainable for a plain function that was handed to Tune, as Tune has wrapped it.

    Args:
        wrapped: Tune's class around the function.
        own_resources: what the user has asked for per trial, if anything: taken as what a replica holds.
        config: the trial's.
    """
    requested = own_resources or wrapped.default_resource_request(config)
    resources = None
    if isinstance(requested, PlacementGroupFactory):
        if len(requested.bundles) > 1:
            raise UsageError(
                f"what is asked for with a training function is taken as what one replica holds, but got several bundles, "
                f"{requested.bundles}; use DistributedTrainableCreator(function, resources_per_replica=..., "
                "max_replicas=...)"
            )
        resources = {name: amount for name, amount in requested.bundles[0].items() if amount > 0}
    elif isinstance(requested, dict):
        resources = requested
    return _trainable(wrapped, ElasticConfig(resources_per_replica=resources or None))


def check_resource_request(trainable: type[AdaptDLTrainable]) -> None:
    """Sees to it that Tune asks for the coordinator's place only.

    Raises:
        UsageError: it was told to ask for something else.
    """
    for base in trainable.__mro__:
        if base is AdaptDLTrainable:
            return
        if "default_resource_request" in vars(base):
            raise UsageError(
                f"Tune must ask for nothing but a coordinator's place for {trainable.__name__}, but its "
                "`default_resource_request` was replaced, as tune.with_resources does; use "
                "DistributedTrainableCreator(function, resources_per_replica=...)"
            )


class _Unpickled:
    """A function in the process of the user, of which all other processes get bytes.

    It is pickled when its trainable is, and not before: what ``tune.with_parameters`` holds is put into Ray's object store
    by ``ray.init``, which may come after the trainable was made.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Any]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (cloudpickle.dumps(self._function),)


def _trainable(
    wrapped: type[FunctionTrainable], elastic: ElasticConfig, stated: frozenset[str] = frozenset()
) -> type[AdaptDLTrainable]:
    # The name is what tables show in front of the numbers of replicas and restarts.
    return type(
        "AdaptDLTrainable",
        (AdaptDLTrainable,),
        {
            "__module__": __name__,
            "function": _Unpickled(_function_of(wrapped)),
            "elastic": elastic,
            "stated": stated,
        },
    )


def _function_of(wrapped: type[FunctionTrainable]) -> Callable[[dict[str, Any]], Any]:
    """What Tune's class runs: the user's function, with what it returns or yields reported."""
    run = wrapped._trainable_func

    def train(config: dict[str, Any]) -> Any:
        return run(None, config)  # type: ignore[arg-type]

    return train


def report(metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """``tune.report`` that also takes keywords: ``report(mean_accuracy=acc)``."""
    from ray import tune

    tune.report({**(metrics or {}), **more})
