"""Trials on a cluster that has no nodes yet, and whose autoscaler starts those that are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tune.scaling_cluster import DRIVER_ENVIRONMENT, scaling_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

DRIVER = """
import json, sys
import ray
from ray import tune
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from tests.tune.functions import together
from tests.waiting import wait_until

address, directory = sys.argv[1:]
ray.init(address=address, log_to_driver=False)


def num_nodes():
    return sum(node["Alive"] for node in ray.nodes())


def groups():
    return [group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def run(num_trials, wait_for_nodes_s, **elastic):
    return tune.run(
        DistributedTrainableCreator(together(), resources_per_replica={"CPU": 1}, **elastic),
        config={"directory": directory, "num_trials": num_trials},
        num_samples=num_trials,
        scheduler=AdaptDLScheduler(interval_s=1.0, wait_for_nodes_s=wait_for_nodes_s),
        storage_path=directory + "-results",
        verbose=1,
        raise_on_failed_trial=False,
    ).trials


found = {"before": num_nodes()}
found["epochs"] = [trial.last_result.get("epoch") for trial in run(3, 120.0, max_replicas=1)]
found["after"] = num_nodes()
wait_until(lambda: not groups(), "all reservations to be gone")
(trial,) = run(1, 3.0, min_replicas=5)
found["error"] = open(trial.error_file).read()
wait_until(lambda: not groups(), "all reservations to be gone")
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def two_nodes_at_most() -> Iterator[str]:
    with scaling_cluster({"CPU": 2}, max_nodes=2) as address:
        yield address


def test_trials_get_the_nodes_they_need_and_those_that_cannot_fail(two_nodes_at_most: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, two_nodes_at_most, str(tmp_path / "here")],
        env={**os.environ, **DRIVER_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [line for line in driver.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, driver.stdout + driver.stderr
    found = json.loads(lines[0].removeprefix("FOUND "))
    assert found["epochs"] == [1, 1, 1], f"not all ran at once: {driver.stdout}{driver.stderr}"
    assert (found["before"], found["after"]) == (1, 3)
    assert "`min_replicas` must not exceed what the cluster holds" in found["error"]
