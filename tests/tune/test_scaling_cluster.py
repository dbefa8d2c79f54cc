"""Trials on a cluster that has no nodes yet, and whose autoscaler starts those that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from tests.tune.functions import together
from tests.tune.scaling_cluster import scaling_cluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def two_nodes_at_most() -> Iterator[None]:
    with scaling_cluster({"CPU": 2}, max_nodes=2) as address:
        ray.init(address=address, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


def run(tmp_path: Path, scheduler: AdaptDLScheduler, num_trials: int, **elastic: Any) -> Any:
    return tune.run(
        DistributedTrainableCreator(together(), resources_per_replica={"CPU": 1}, **elastic),
        config={"directory": str(tmp_path / "here"), "num_trials": num_trials},
        num_samples=num_trials,
        scheduler=scheduler,
        storage_path=str(tmp_path),
        verbose=1,
        raise_on_failed_trial=False,
    )


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def groups() -> list[str]:
    return [group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_trials_get_the_nodes_they_need_and_those_that_cannot_fail(two_nodes_at_most: None, tmp_path: Path) -> None:
    assert num_nodes() == 1
    (tmp_path / "here").mkdir()
    analysis = run(tmp_path, AdaptDLScheduler(interval_s=1.0, wait_for_nodes_s=120.0), 3, max_replicas=1)
    assert [trial.last_result["epoch"] for trial in analysis.trials] == [1, 1, 1]
    assert num_nodes() == 3
    wait_until(lambda: not groups(), "all reservations to be gone")

    analysis = run(tmp_path, AdaptDLScheduler(interval_s=1.0, wait_for_nodes_s=3.0), 1, min_replicas=5)
    (trial,) = analysis.trials
    assert "`min_replicas` must not exceed what the cluster holds" in Path(trial.error_file).read_text()
    wait_until(lambda: not groups(), "all reservations to be gone")
