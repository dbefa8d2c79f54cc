from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from adaptdl.runtime import ElasticConfig
from adaptdl.runtime.placement import sweep
from tests.clusters import connected_cluster
from tests.faults.experiments import living_actors, living_groups, local_ray, wait_until_empty
from tests.faults.scripted import training_function
from tests.faults.survivors import SurvivingTrial, run
from tests.runtime.jobs import RunningJob

ELASTIC = ElasticConfig(resources_per_replica={"CPU": 1}, gather_s=10.0, reservation_timeout_s=3.0, join_timeout_s=10.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray whose head has no CPUs: it keeps the coordinators when other nodes, which tests add, are lost."""
    with connected_cluster(num_cpus=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> list[str]:
    """Two nodes of two CPUs; their ids."""
    return [add_node(cluster), add_node(cluster)]


def add_node(cluster: Cluster) -> str:
    before = {node["NodeID"] for node in ray.nodes()}
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    (added,) = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before
    return str(added)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray of its own for a module, on one node."""
    with local_ray() as address:
        yield address


@pytest.fixture
def nothing_is_left(ray_address: str) -> Iterator[None]:
    yield
    wait_until_empty(living_actors, "actors")
    wait_until_empty(living_groups, "reservations")


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., RunningJob]]:
    """Starts jobs that run the scripted function; when the test ends, nothing of them may be left."""
    jobs: list[RunningJob] = []

    def start(**config: Any) -> RunningJob:
        from ray import tune

        function = training_function()
        config = {"epochs": 3, "flags": str(tmp_path), **config}

        def train(config: dict[str, Any]) -> None:
            function({**config, "report": tune.report})

        jobs.append(RunningJob(f"job{len(jobs)}", train, config))
        return jobs[-1]

    yield start
    for job in jobs:
        job.stop()
    assert sweep("adaptdl/") == 0
    for job in jobs:
        ray.kill(job.actor)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SurvivingTrial:
    """One replica throughout."""
    return run(1, tmp_path_factory.mktemp("flags"), [])


@pytest.fixture(scope="session")
def undisturbed_wide(tmp_path_factory: pytest.TempPathFactory) -> SurvivingTrial:
    """The same of the wide network."""
    return run(1, tmp_path_factory.mktemp("flags"), [], is_wide=True)
