"""Machines that go, with notice and without, under a trial of a real Tune on a real Ray of several nodes.

All nodes are on this computer: a node that is lost takes its Ray and its processes with it, but the connections of the
others to it are closed, not silent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from adaptdl.policy import Policy
from adaptdl.runtime import ElasticConfig, Phase
from adaptdl.tune import AdaptDLTrainable
from tests.faults.experiments import living_actors, living_groups, wait_until_empty
from tests.faults.tuned import DEADLINE_S, Experiment, Machines, Spread, Step, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS, STEPS = 40, 8 * 40
NOTICE_S = 40.0
"""Moving takes as long as replicas take to start: 5 s, or 15 s if much else goes on."""
RECOVERED_S = 5.0
GIVEN_UP_S = 6.0
"""After the loss of a node, nothing more is asked of it: calls to it fail after 2 s, and the rest is messages. Ray takes it
for alive for about 15 s."""
SNAPSHOT_S = 0.5

ELASTIC = ElasticConfig(
    # A node has room for 16: it never looks full, however many replicas are asked of it in vain.
    resources_per_replica={"CPU": 0.125},
    max_replicas=2,
    snapshot_interval_s=SNAPSHOT_S,
)
PACKED = ElasticConfig(
    resources_per_replica={"CPU": 0.125}, min_replicas=2, max_replicas=2, snapshot_interval_s=SNAPSHOT_S
)


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """What an undisturbed run reports."""
    return undisturbed(EPOCHS)


@pytest.fixture(scope="module")
def machines(cluster: Cluster) -> Machines:
    return Machines(cluster)


@pytest.fixture
def start(tmp_path: Path, cluster: Cluster) -> Iterator[Callable[..., Experiment]]:
    """Makes an experiment. When the test ends, nothing of it may be left."""
    experiments: list[Experiment] = []

    def start(elastic: ElasticConfig, policy: Policy | None = None) -> Experiment:
        experiments.append(Experiment(tmp_path, epochs=EPOCHS, policy=policy, elastic=elastic))
        return experiments[-1]

    yield start
    wait_until_empty(living_groups, "placement groups", DEADLINE_S)
    wait_until_empty(living_actors, "actors", DEADLINE_S)
    for experiment in experiments:
        wait_until_empty(experiment.living_replicas, "processes of replicas", DEADLINE_S)


def check_end(experiment: Experiment, expected: list[dict[str, Any]], *, num_with_missing_sums: int = 0) -> None:
    """Lets the trial finish: Tune has seen every result once, in order, no failure, and what an undisturbed run gives.

    Args:
        num_with_missing_sums: results that may lack what a replica that was lost had added up in its training loop.
    """
    trial = experiment.finish()
    assert (trial.status, trial.num_failures, experiment.num_errors) == ("TERMINATED", 0, 0)
    results = experiment.results
    assert [result["training_iteration"] for result in results] == list(range(1, EPOCHS + 1))
    assert [result["epoch"] for result in results] == list(range(EPOCHS))
    for result, other in zip(results, expected, strict=True):
        assert result["weights"] == pytest.approx(other["weights"], rel=1e-10)
        assert (result["validated"], result["total"]) == (other["validated"], other["total"])
    trained = [result["trained"] for result in results]
    assert len([number for number in trained if number != 96]) <= num_with_missing_sums, trained
    assert max(trained) == 96, trained


def numbers(steps: list[Step]) -> list[int]:
    return [step.number for step in steps]


def redone(steps: list[Step]) -> list[Step]:
    """Those whose work was lost: their numbers come again later."""
    last = {step.number: step for step in steps}
    return [step for step in steps if last[step.number] is not step]


def longest_pause_s(steps: list[Step], since: float) -> float:
    """Between two steps, of which the second was made after `since`."""
    times = [step.made_at for step in steps]
    return max(after - before for before, after in itertools.pairwise(times) if after > since)


def is_loss(reason: str) -> bool:
    """Not, if the allocator saw it coming."""
    return reason.startswith(("lost ", "a group of "))


@pytest.mark.parametrize(("policy", "elastic"), [(Spread(2), ELASTIC)], ids=["some"])
def test_a_trial_leaves_a_draining_node_in_time_and_loses_nothing(
    policy: Policy | None,
    elastic: ElasticConfig,
    machines: Machines,
    start: Callable[..., Experiment],
    expected: list[dict[str, Any]],
) -> None:
    machines.provide(3)
    with start(elastic, policy) as experiment:
        status = experiment.wait_for_training(2)
        assert sorted(status.allocation.values()) == ([1, 1] if policy else [2])
        draining = experiment.leading_steps[-1].node_id

        machines.drain(draining, NOTICE_S)
        experiment.wait_until(
            lambda status: draining not in {*status.allocation, *status.held},
            "the replicas to have left the draining node",
            NOTICE_S,
        )
        machines.lose(draining)
        status = experiment.wait_for_training(2, without=draining)

        assert not any(is_loss(reason) for reason in experiment.reasons), experiment.reasons
        check_end(experiment, expected)
    assert numbers(experiment.leading_steps) == list(range(1, STEPS + 1))
    assert not any(is_loss(reason) for reason in experiment.reasons), experiment.reasons


def test_a_trial_all_of_whose_nodes_drain_pauses_and_goes_on_when_there_is_another(
    machines: Machines, start: Callable[..., Experiment], expected: list[dict[str, Any]]
) -> None:
    nodes = machines.provide(2)
    with start(ELASTIC, Spread(2)) as experiment:
        experiment.wait_for_training(2)
        for node_id in nodes:
            machines.drain(node_id, NOTICE_S)
        experiment.wait_until(lambda status: status.phase is Phase.PAUSED, "the trial to have left its nodes", NOTICE_S)
        for node_id in nodes:
            machines.lose(node_id)
        machines.add()
        experiment.wait_for_training(1)

        check_end(experiment, expected)
        assert not any(is_loss(reason) for reason in experiment.reasons), experiment.reasons
    assert numbers(experiment.leading_steps) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("rank", [0])
def test_survivors_go_on_when_a_node_is_lost(
    rank: int, machines: Machines, start: Callable[..., Experiment], expected: list[dict[str, Any]]
) -> None:
    machines.provide(3)
    with start(ELASTIC, Spread(2)) as experiment:
        experiment.wait_for_training(2)
        lost = next(step.node_id for step in reversed(experiment.steps) if step.rank == rank)

        lost_at = time.monotonic()
        machines.lose(lost)
        experiment.wait_until(lambda status: lost not in status.wish, "the lost node's place to be given up")
        given_up_s = time.monotonic() - lost_at
        experiment.wait_for_training(2, without=lost)

        assert [is_loss(reason) for reason in experiment.reasons].count(True) == 1, experiment.reasons
        assert longest_pause_s(experiment.leading_steps, lost_at) < RECOVERED_S
        check_end(experiment, expected, num_with_missing_sums=1)
    assert sorted({*numbers(experiment.leading_steps)}) == list(range(1, STEPS + 1))
    assert len(redone(experiment.leading_steps)) <= 1  # the one in flight
    assert given_up_s < GIVEN_UP_S


@pytest.mark.parametrize(("policy", "elastic"), [(None, PACKED)], ids=["two replicas"])
def test_a_trial_all_of_whose_replicas_were_on_a_lost_node_goes_on_elsewhere(
    policy: Policy | None,
    elastic: ElasticConfig,
    machines: Machines,
    start: Callable[..., Experiment],
    expected: list[dict[str, Any]],
) -> None:
    num_replicas = 1 if policy else 2
    machines.provide(2)
    with start(elastic, policy) as experiment:
        status = experiment.wait_for_training(num_replicas, num_steps=12)
        (lost,) = status.allocation

        lost_at = time.monotonic()
        machines.lose(lost)
        experiment.wait_until(lambda status: lost not in status.wish, "the lost node's place to be given up")
        given_up_s = time.monotonic() - lost_at
        experiment.wait_for_training(num_replicas, without=lost)
        check_end(experiment, expected)
    assert sorted({*numbers(experiment.leading_steps)}) == list(range(1, STEPS + 1))
    in_vain = redone(experiment.leading_steps)
    assert all(step.made_at > lost_at - SNAPSHOT_S - 1.0 for step in in_vain), in_vain
    assert given_up_s < GIVEN_UP_S


def test_coordinators_stand_on_the_head_node(machines: Machines, cluster: Cluster) -> None:
    """A trial must outlive the nodes that its replicas stand on."""
    machines.provide(2)
    bundles = AdaptDLTrainable.default_resource_request({}).bundles
    places = [ray.util.placement_group(bundles) for _ in range(50)]
    try:
        ray.get([place.ready() for place in places], timeout=DEADLINE_S)
        table = ray.util.placement_group_table()
        nodes = {node_id for place in places for node_id in table[place.id.hex()]["bundles_to_node_id"].values()}
        assert nodes == {cluster.head_node.node_id}
    finally:
        for place in places:
            ray.util.remove_placement_group(place)
