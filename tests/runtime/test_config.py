"""Bad input gets one clear error before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from adaptdl.errors import UsageError
from adaptdl.runtime import ElasticConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_replicas": 0}, r"`min_replicas` must be a whole number ≥ 1, but got 0"),
        ({"min_replicas": 1.5}, r"`min_replicas` must be a whole number"),
        ({"max_replicas": 0}, r"`max_replicas` must be a whole number"),
        ({"min_replicas": 3, "max_replicas": 2}, r"`min_replicas <= max_replicas` must hold.*3.*2"),
        ({"resources_per_replica": {}}, r"must ask for something"),
        ({"resources_per_replica": {"CPU": -1}}, r"must be a number ≥ 0, but got -1"),
        ({"resources_per_replica": {"GPU": 1.5}}, r"above 1 must be whole"),
        ({"resources_per_replica": ["GPU"]}, r"must be a mapping"),
        ({"boot_timeout_s": 0}, r"`boot_timeout_s > 0` must hold"),
        ({"join_timeout_s": float("nan")}, r"`join_timeout_s` must be a time in seconds"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ElasticConfig(**arguments)


def test_resources_are_spelled_as_ray_does() -> None:
    assert ElasticConfig(resources_per_replica={"cpu": 2, "gpu": 0, "tpu": 1}).resources_per_replica == {
        "CPU": 2.0,
        "tpu": 1.0,
    }


def test_what_is_not_said_comes_from_the_defaults() -> None:
    own = ElasticConfig(max_replicas=4)
    defaults = ElasticConfig(resources_per_replica={"CPU": 2}, max_replicas=8, gather_s=1.0)
    merged = own.with_defaults(defaults)
    assert (merged.max_replicas, merged.gather_s, merged.resources_per_replica) == (4, 1.0, {"CPU": 2.0})
