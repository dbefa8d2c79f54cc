"""Jobs on a real Ray with two nodes: growing, shrinking, moving, pausing, and ending in every way."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from adaptdl.runtime import Phase
from adaptdl.runtime.placement import sweep
from adaptdl.runtime.reporting import installed
from tests.runtime.functions import TrainingFunction, held_at_its_end, linear_regression, without_data_loop
from tests.runtime.jobs import ELASTIC, RunningJob, wait_until_free
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[str, str]]:
    """A Ray of two nodes with two CPUs each, and for Ray the first one has two GPUs; their ids."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        nodes = sorted(ray.nodes(), key=lambda node: "GPU" not in node["Resources"])
        yield nodes[0]["NodeID"], nodes[1]["NodeID"]
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def start(two_nodes: tuple[str, str]) -> Iterator[Callable[..., RunningJob]]:
    """Starts jobs; when the test ends, nothing of them may be left."""
    jobs: list[RunningJob] = []

    def start(function: TrainingFunction, config: dict[str, Any], **more: Any) -> RunningJob:
        jobs.append(RunningJob(f"job{len(jobs)}", function, config, **more))
        return jobs[-1]

    yield start
    for job in jobs:
        job.stop()
    assert sweep("adaptdl/") == 0
    wait_until_free(CPU=4.0, GPU=2.0)
    for job in jobs:
        ray.kill(job.actor)


def replica_processes() -> set[str]:
    """All there have been so far."""
    return {key for key, actor in ray._private.state.actors().items() if actor["ActorClassName"] == "Replica"}


def undisturbed(function: TrainingFunction, config: dict[str, Any]) -> list[dict[str, Any]]:
    """What `function` reports when it runs by itself, in this process."""
    results: list[dict[str, Any]] = []

    class Collector:
        world_rank = None

        def report(self, metrics: dict[str, Any], checkpoint: Any = None) -> None:
            results.append(metrics)

        def close(self) -> None:
            pass

    with installed(Collector()):  # type: ignore[arg-type]
        function(config)
    return results


def test_a_history_of_reallocations_ends_like_an_undisturbed_run(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    a, b = two_nodes
    before = replica_processes()
    job = start(linear_regression(), {"epochs": 100_000})
    job.allocate({a: 1})
    job.wait_for({a: 1})
    job.allocate({a: 1, b: 1})
    grown = job.wait_for({a: 1, b: 1})
    job.allocate({b: 1})  # rank 0 goes
    job.wait_for({b: 1})
    job.wait_for_idle_processes(1)
    job.allocate({})
    paused = job.wait_for({})
    assert (paused.phase, dict(paused.held)) == (Phase.PAUSED, {})
    job.allocate({b: 1})  # the parked replica comes back
    resumed = job.wait_for({b: 1})
    job.allocate({a: 1})  # nobody stays
    job.wait_for({a: 1})
    job.wait_for_idle_processes(1)
    job.allocate({})
    job.wait_for({})
    job.allocate({b: 1})  # parked on one node, wanted on the other
    job.wait_for({b: 1})
    assert len(replica_processes() - before) == 2  # those that left were used again
    so_far = len(job.results)
    job.wait_until(lambda _: len(job.results) > so_far + 3, "more results")
    results = job.results
    assert [change.after for change in job.status().reallocations] == [1, 2, 1, 0, 1, 1, 0, 1]
    assert grown.reallocations[-1].num_nodes == 2
    assert resumed.reallocations[-1].pause_s < 2.0
    assert [result["epoch"] for result in results] == list(range(len(results)))
    assert results[-1]["adaptdl/num_restarts"] == 7
    expected = undisturbed(linear_regression(), {"epochs": len(results), "sleep_s": 0})
    for result, undisturbed_result in zip(results, expected, strict=True):
        assert result["weights"] == pytest.approx(undisturbed_result["weights"], rel=1e-10)


def test_replicas_with_devices_give_them_back_in_a_pause_and_go_on_from_their_state(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    """The devices are only Ray's: no GPU is needed."""
    a, _ = two_nodes
    on_gpu = dataclasses.replace(ELASTIC, resources_per_replica={"GPU": 1, "CPU": 0.5})
    job = start(linear_regression(), {"epochs": 100_000})
    job.allocate({a: 2}, on_gpu)
    job.wait_for({a: 2})
    job.allocate({}, on_gpu)
    steps = job.wait_for({}).reallocations[-1].steps
    wait_until_free(CPU=4.0, GPU=2.0)
    job.allocate({a: 1}, on_gpu)
    assert job.wait_for({a: 1}).reallocations[-1].steps == steps
    so_far = len(job.results)
    job.wait_until(lambda _: len(job.results) > so_far + 1, "more results")
    assert [result["epoch"] for result in job.results] == list(range(len(job.results)))


def stored_bytes() -> float:
    """In Ray's object stores, of all nodes."""
    name = "object_store_memory"
    return float(ray.cluster_resources()[name] - ray.available_resources()[name])


def test_what_replicas_need_to_start_is_not_stored_while_they_train(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    a, b = two_nodes
    before = stored_bytes()
    job = start(linear_regression(), {"epochs": 2000, "large": bytes(3 * 10**6)})
    job.allocate({a: 1, b: 1})
    job.wait_for({a: 1, b: 1})
    wait_until(lambda: stored_bytes() <= before, "the object stores to be as they were")


@pytest.mark.parametrize(
    ("more", "runtime_env", "are_forked"),
    [
        ({}, {"env_vars": {"MINE": "1"}}, True),
        ({"resources_per_replica": {"GPU": 1, "CPU": 1}}, {}, True),
        ({"fork_processes": False}, {}, False),
        ({}, {"py_executable": sys.executable}, False),
    ],
    ids=["on CPUs", "with devices", "not wanted", "an interpreter of the user's"],
)
def test_replicas_are_forked_where_ray_may_start_what_we_say(
    more: dict[str, Any],
    runtime_env: dict[str, Any],
    are_forked: bool,
    two_nodes: tuple[str, str],
    start: Callable[..., RunningJob],
) -> None:
    a, _ = two_nodes
    job = start(linear_regression(), {"epochs": 100_000}, runtime_env=runtime_env)
    job.allocate({a: 2}, dataclasses.replace(ELASTIC, **more))
    job.wait_for({a: 2})
    (parent,) = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in job.pids()}
    command = Path(f"/proc/{parent}/cmdline").read_text()
    assert ("forking.py" in command, "raylet_socket_name" in command) == (are_forked, not are_forked)


def test_the_newest_wish_wins(two_nodes: tuple[str, str], start: Callable[..., RunningJob]) -> None:
    a, b = two_nodes
    job = start(linear_regression(), {"epochs": 2000})
    for allocation in ({a: 2}, {a: 1, b: 1}, {b: 2}, {a: 1}, {a: 2, b: 1}, {b: 1}):
        job.allocate(allocation)
        job.wait_until(lambda status, wish=allocation: dict(status.held) == wish, f"replicas to start for {allocation}")
    status = job.wait_for({b: 1})
    wait_until_free(CPU=3.0)
    assert dict(job.status().held) == {b: 1}
    assert len(status.reallocations) <= 2


@pytest.mark.parametrize("exits", [False, True])
def test_the_last_result_counts_though_another_replica_returns_before_rank_0(
    exits: bool, two_nodes: tuple[str, str], start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    a, b = two_nodes
    job = start(held_at_its_end(), {"directory": str(tmp_path), "exits": exits})
    job.allocate({a: 1, b: 1}, dataclasses.replace(ELASTIC, gather_s=60.0))
    wait_until(lambda: len([*tmp_path.glob("there-*")]) == 2, "two replicas at their end")
    of_job: Any = job.actor.__ray_call__
    first, second = ray.get(of_job.remote(lambda job: [one.node_id for one in job._group._roster.members]))
    job.allocate({second: 1})  # it would be rank 0 then, but there is no loop any more in which it could be
    wait_until(lambda: ray.get(of_job.remote(lambda job: job._group._switcher.plan is not None)), "a plan")
    (tmp_path / "end-1").touch()
    wait_until(
        lambda: ray.get(
            of_job.remote(lambda job: job._group._ended or job._group._roster.members[1].outcome is not None)
        ),
        "the second replica to return",
    )
    (tmp_path / "end-0").touch()
    assert [result["epoch"] for result in job.finish()] == [0, 1]
    assert first != second


def test_the_last_result_counts_though_rank_0_is_lost_and_another_replica_returns(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    a, b = two_nodes
    job = start(held_at_its_end(), {"directory": str(tmp_path)})
    job.allocate({a: 1, b: 1}, dataclasses.replace(ELASTIC, gather_s=60.0))
    wait_until(lambda: len([*tmp_path.glob("there-*")]) == 2, "two replicas at their end")
    of_job: Any = job.actor.__ray_call__
    os.kill(job.pids()[0], signal.SIGKILL)
    wait_until(
        lambda: ray.get(of_job.remote(lambda job: job._group._recovery.is_open or len(job._group._roster.members) < 2)),
        "the coordinator to know",
    )
    for rank in (1, 0):
        (tmp_path / f"end-{rank}").touch()
    assert [result["epoch"] for result in job.finish()] == [0, 1]


def test_a_function_without_data_loop_runs_on_one_replica(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    job = start(without_data_loop(), {"steps": 3})
    job.allocate({two_nodes[0]: 1})
    assert [result["score"] for result in job.finish()] == [0, 1, 2]


def test_a_function_without_data_loop_can_have_more_to_no_avail(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    a, b = two_nodes
    job = start(without_data_loop(), {"steps": 3})
    job.allocate({a: 1, b: 1}, dataclasses.replace(ELASTIC, gather_s=60.0))
    assert [result["score"] for result in job.finish()] == [0, 1, 2]
    assert [change.after for change in job.status().reallocations] == [2]


def test_what_the_function_raises_is_what_is_told(two_nodes: tuple[str, str], start: Callable[..., RunningJob]) -> None:
    a, b = two_nodes
    job = start(linear_regression(), {"epochs": 5, "fail_at": 2})
    job.allocate({a: 1, b: 1}, dataclasses.replace(ELASTIC, gather_s=60.0))
    with pytest.raises(RayTaskError, match=r"(?s)raised ValueError: no such luck.*in train\n.*no such luck") as caught:
        job.finish()
    assert [result["epoch"] for result in job.results] == [0, 1]
    assert {result["adaptdl/num_replicas"] for result in job.results} == {2}  # the first generation had both
    assert job.results[-1]["adaptdl/num_restarts"] == 0
    assert cloudpickle.loads(caught.value.cause.cause_pickle).args == ("no such luck",)
    assert job.status().phase is Phase.ENDED


def test_those_that_are_left_go_on_when_a_member_is_lost(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    a, b = two_nodes
    job = start(linear_regression(), {"epochs": 30, "exit_at": 10, "exit_flag": str(tmp_path / "exited")})
    job.allocate({a: 1, b: 1})
    results = job.finish()
    assert [result["epoch"] for result in results] == list(range(30))
    assert any(change.reason.startswith(("lost replica", "a group of 2")) for change in job.status().reallocations)


def test_a_newcomer_that_cannot_be_placed_leaves_the_others_alone(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob]
) -> None:
    a, _ = two_nodes
    job = start(linear_regression(), {"epochs": 2000})
    job.allocate({a: 1})
    job.wait_for({a: 1})
    job.allocate({a: 3})
    status = job.wait_until(lambda status: bool(status.trouble), "the reservation to be given up")
    assert "waited 1.5 s for {'CPU': 1.0} on node" in status.trouble
    job.wait_for({a: 2})  # the one that could be placed has joined
    job.allocate({a: 1})
    job.wait_for({a: 1})


@pytest.mark.parametrize("after_s", [0.0, 0.1, 1.5])
def test_a_job_that_is_stopped_while_it_starts_leaves_nothing(
    two_nodes: tuple[str, str], start: Callable[..., RunningJob], after_s: float
) -> None:
    a, b = two_nodes
    job = start(linear_regression(), {"epochs": 2000})
    job.allocate({a: 2, b: 2})
    time.sleep(after_s)
    job.stop()
    wait_until_free(CPU=4.0, GPU=2.0)


def test_nothing_is_left_when_the_coordinator_is_killed_in_the_middle_of_a_reallocation(
    two_nodes: tuple[str, str],
) -> None:
    a, b = two_nodes
    job = RunningJob("killed", linear_regression(), {"epochs": 2000})
    job.allocate({a: 1})
    job.wait_for({a: 1})
    job.allocate({a: 2, b: 1})
    job.wait_until(lambda status: dict(status.held) == {a: 2, b: 1}, "the newcomers to be on their way")
    ray.kill(job.actor)
    deadline = time.monotonic() + 10
    while any(actor["State"] == "ALIVE" for actor in ray._private.state.actors().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sweep("adaptdl/tests/killed/") > 0
    wait_until_free(CPU=4.0, GPU=2.0)
