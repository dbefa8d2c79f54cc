"""The allocation thread on a real Ray, without Tune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from adaptdl.policy import Allocation, Decision, Job, Node, OptimalPolicy
from adaptdl.runtime import ElasticConfig, JobStatus, Phase
from adaptdl.runtime.allocator import Allocator
from adaptdl.runtime.placement import prefix_of, sweep
from adaptdl.tune.allocation_loop import AllocationLoop, Arrived, Departed, Seen
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ELASTIC = ElasticConfig(resources_per_replica={"CPU": 1})


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


class Raises:
    """A policy."""

    def __init__(self) -> None:
        self.num_calls = 0

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        self.num_calls += 1
        raise ZeroDivisionError("no such share")


class Coordinator:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.fail = self.status = self.set_allocation = self
        status = JobStatus(
            phase=Phase.WAITING,
            allocation={},
            held={},
            wish={},
            num_restarts=0,
            pause_s=0.0,
            boot_s=None,
            report=None,
            metrics={},
        )
        self._answer = ray.put(status)

    def remote(self, *told: Any) -> Any:
        self.errors += told
        return self._answer


def reserve(trial_id: str) -> PlacementGroup:
    group = placement_group([{"CPU": 1}], name=prefix_of("experiment", trial_id) + "x")
    ray.get(group.ready(), timeout=30)
    return group


def living() -> set[str]:
    return {group["name"].split("/")[2] for group in placement_group_table().values() if group["state"] != "REMOVED"}


def test_another_experiment_of_the_same_name_keeps_its_reservations_and_they_count_as_used() -> None:
    loop = AllocationLoop(experiment="experiment", allocator=Allocator(OptimalPolicy(), interval_s=1.0))
    groups = [reserve("mine"), reserve("another")]
    try:
        loop.tell(Arrived(trial_id="mine", elastic=ELASTIC, kind="k"))
        loop.start()
        wait_until(lambda: [node.resources["CPU"] for node in loop.nodes] == [1.0], "the other's CPU to count as used")
        loop.stop()
        assert living() == {"another"}
    finally:
        loop.stop()
        sweep(*(prefix_of("experiment", trial_id) for trial_id in ("mine", "another")))
    assert len(groups) == 2


def test_a_policy_that_keeps_failing_fails_the_trials_that_wait_for_it() -> None:
    policy, coordinator = Raises(), Coordinator()
    loop = AllocationLoop(experiment="experiment", allocator=Allocator(policy, interval_s=1000.0))  # type: ignore[arg-type]
    try:
        loop.tell(Arrived(trial_id="mine", elastic=ELASTIC, kind="k"))
        loop.tell(Seen(trial_id="mine", coordinator=coordinator))  # type: ignore[arg-type]
        loop.start()
        wait_until(lambda: coordinator.errors, "the trial to be told")
    finally:
        loop.stop()
    assert policy.num_calls >= 5
    assert "the policy must answer, but it failed 5 times in a row" in coordinator.errors[0]
    assert "ZeroDivisionError: no such share" in coordinator.errors[0]


def test_a_cluster_that_scales_itself_is_asked_for_what_is_missing_as_long_as_it_is() -> None:
    loop = AllocationLoop(
        experiment="experiment", allocator=Allocator(OptimalPolicy(), interval_s=1.0), wait_for_nodes_s=60.0
    )

    def asked() -> list[list[dict[str, float]]]:
        entries = placement_group_table().values()
        living = [entry for entry in entries if entry["state"] != "REMOVED"]
        return [
            list(entry["bundles"].values()) for entry in living if entry["name"].startswith("adaptdl-nodes/experiment/")
        ]

    wide = ElasticConfig(resources_per_replica={"CPU": 1}, min_replicas=4)
    loop.tell(Arrived(trial_id="narrow", elastic=ELASTIC, kind="k"), Arrived(trial_id="wide", elastic=wide, kind="k"))
    loop.start()
    try:
        wait_until(asked, "the cluster to be asked")
        assert asked() == [[{"CPU": 1.0}] * 3], "two CPUs are there, and one of them is another trial's"
        loop.tell(Departed(trial_id="narrow"))
        wait_until(lambda: asked() == [[{"CPU": 1.0}] * 2], "it to be asked for less")
        loop.tell(Departed(trial_id="wide"))
        wait_until(lambda: not asked(), "it to be asked for nothing")
        loop.tell(Arrived(trial_id="wide", elastic=wide, kind="k"))
        wait_until(asked, "the cluster to be asked")
    finally:
        loop.stop()
    assert not asked()
