"""What the allocator makes of jobs, reports and nodes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import pytest

from adaptdl.goodput import BatchSizeBounds, GradParams, JobReport, PerfParams
from adaptdl.policy import Decision, FairSharePolicy, Job, Node, OptimalPolicy, Policy
from adaptdl.runtime import ElasticConfig, JobStatus, Phase
from adaptdl.runtime.allocator import Allocator, Change
from adaptdl.runtime.nodes import holds

CPU = ElasticConfig(resources_per_replica={"CPU": 1})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def nodes(**cpus: float) -> list[Node]:
    return [Node(node_id=name, resources={"CPU": amount}) for name, amount in cpus.items()]


def scaling_report(max_profiled_replicas: int) -> JobReport:
    """Of a job that uses as many replicas as it gets."""
    return JobReport(
        bounds=BatchSizeBounds(init_batch_size=64, max_batch_size=4096, local_bsz_bounds=(16, 1024)),
        perf_params=PerfParams(
            alpha_c=0.01, beta_c=0.01, alpha_n=0.01, beta_n=0.0, alpha_r=0.001, beta_r=0.0, gamma=1.5
        ),
        grad_params=GradParams(grad_sqr=1.0, grad_var=100.0),
        max_profiled_replicas=max_profiled_replicas,
        pause_s=0.1,
    )


def status(allocation: Mapping[str, int], report: JobReport | None, **more: object) -> JobStatus:
    plain = JobStatus(
        phase=Phase.RUNNING if allocation else Phase.WAITING,
        allocation=allocation,
        held=allocation,
        wish=allocation,
        num_restarts=0,
        pause_s=0.0,
        boot_s=None,
        report=report,
        metrics={},
    )
    return dataclasses.replace(plain, **more)  # type: ignore[arg-type]


def make(policy: Policy | None = None) -> tuple[Allocator, Clock]:
    clock = Clock()
    return Allocator(policy or OptimalPolicy(), interval_s=5.0, clock=clock), clock


def by_job(changes: list[Change]) -> dict[str, dict[str, int]]:
    return {change.job_id: dict(change.after) for change in changes}


def test_a_new_job_gets_its_minimum_until_it_reports() -> None:
    allocator, _ = make()
    allocator.add_job("one", CPU)
    (change,) = allocator.step(nodes(a=4))
    assert (change.job_id, dict(change.after), change.reason) == ("one", {"a": 1}, "start")
    allocator.update("one", status({"a": 1}, None))
    assert allocator.step(nodes(a=4)) == []


@pytest.mark.parametrize("policy", [OptimalPolicy(), FairSharePolicy()])
def test_a_job_that_scales_grows_as_it_is_profiled(policy: Policy) -> None:
    allocator, _ = make(policy)
    allocator.add_job("one", CPU)
    allocator.step(nodes(a=8))
    seen = []
    for profiled in (1, 4, 8):
        now = seen[-1] if seen else 1
        allocator.update("one", status({"a": now}, scaling_report(profiled)))
        changes = allocator.step(nodes(a=8))
        seen.append(sum(changes[0].after.values()) if changes else now)
    assert seen == [4, 8, 8]


@pytest.mark.parametrize(("kind", "first"), [("model", 4), ("another", 1), (None, 1)])
def test_what_was_learnt_of_a_job_that_has_ended_is_used_for_the_next_of_its_kind(kind: str | None, first: int) -> None:
    allocator, _ = make()
    allocator.add_job("one", CPU, kind="model")
    allocator.step(nodes(a=8))
    allocator.update("one", status({"a": 1}, scaling_report(8)))
    allocator.remove_job("one")
    allocator.add_job("two", CPU, kind=kind)
    (change,) = allocator.step(nodes(a=4))
    assert (change.job_id, dict(change.after), change.reason) == ("two", {"a": first}, "start")


def test_an_arrival_gets_a_place_from_those_who_have_more_and_they_give_first() -> None:
    allocator, _ = make()
    allocator.add_job("one", CPU)
    allocator.step(nodes(a=2))
    allocator.update("one", status({"a": 1}, scaling_report(2)))
    assert by_job(allocator.step(nodes(a=2))) == {"one": {"a": 2}}
    allocator.add_job("two", CPU)
    assert allocator.is_due(nodes(a=2))
    changes = allocator.step(nodes(a=2))
    assert [change.job_id for change in changes] == ["one", "two"]
    assert by_job(changes) == {"one": {"a": 1}, "two": {"a": 1}}
    assert "room for other trials" in changes[0].reason


def test_the_place_of_a_job_that_ended_goes_to_the_others() -> None:
    allocator, _ = make()
    for name in ("one", "two"):
        allocator.add_job(name, CPU)
    allocator.step(nodes(a=2))
    allocator.update("one", status({"a": 1}, scaling_report(2)))
    allocator.remove_job("two")
    (change,) = allocator.step(nodes(a=2))
    assert dict(change.after) == {"a": 2}
    assert change.reason.startswith("goodput ×")


def test_a_job_without_a_report_stays_where_it_is() -> None:
    """A function without a data loop cannot be reallocated."""
    allocator, _ = make()
    allocator.add_job("plain", CPU)
    (change,) = allocator.step(nodes(a=1, b=1))
    place = dict(change.after)
    allocator.update("plain", status(place, None))
    allocator.add_job("other", CPU)
    assert "plain" not in by_job(allocator.step(nodes(a=1, b=1)))


def test_a_job_leaves_a_draining_node() -> None:
    allocator, _ = make()
    allocator.add_job("one", CPU)
    allocator.step(nodes(a=1))
    allocator.update("one", status({"a": 1}, scaling_report(1)))
    draining = [Node(node_id="a", resources={"CPU": 1.0}, draining=True), *nodes(b=1)]
    assert allocator.is_due(draining)
    (change,) = allocator.step(draining)
    assert dict(change.after) == {"b": 1}
    assert "draining" in change.reason


class Moody(FairSharePolicy):
    """Fails when it is told to."""

    fails = False

    def allocate(
        self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Mapping[str, int]]
    ) -> Decision:
        if self.fails:
            raise ArithmeticError("I cannot divide")
        return super().allocate(nodes, jobs, current)


def test_what_was_to_change_when_the_policy_failed_is_decided_again() -> None:
    """A job has no place any more, another one could get it, and the policy fails in between."""
    policy = Moody()
    allocator, _ = make(policy)
    allocator.add_job("wide", dataclasses.replace(CPU, min_replicas=3))
    allocator.step(nodes(a=3))
    allocator.update("wide", status({"a": 3}, scaling_report(3)))
    allocator.add_job("narrow", CPU)
    policy.fails = True
    with pytest.raises(ArithmeticError):
        allocator.step(nodes(b=2))
    policy.fails = False
    assert by_job(allocator.step(nodes(b=2))) == {"wide": {}, "narrow": {"b": 1}}


def test_nothing_is_due_until_something_happens_or_the_interval_has_passed() -> None:
    allocator, clock = make()
    allocator.add_job("one", CPU)
    allocator.step(nodes(a=2))
    assert not allocator.is_due(nodes(a=2))
    assert allocator.is_due(nodes(a=3))
    clock.now += 5.0
    assert allocator.is_due(nodes(a=2))


def test_resources_are_chosen_by_the_cluster_if_nobody_says_them() -> None:
    allocator, _ = make()
    allocator.add_job("one", ElasticConfig())
    with_gpus = [Node(node_id="a", resources={"CPU": 8.0, "GPU": 2.0})]
    (change,) = allocator.step(with_gpus)
    assert change.elastic.resources_per_replica == {"GPU": 1.0, "CPU": 1.0}


@pytest.mark.parametrize(
    ("elastic", "message"),
    [
        (ElasticConfig(resources_per_replica={"GPU": 1}), r"no node .* can hold a replica with \{GPU: 1\}.*GPU: 0"),
        (
            ElasticConfig(resources_per_replica={"CPU": 1}, min_replicas=5),
            r"`min_replicas` must not exceed .*min_replicas=5.*holds 4.*Lower `min_replicas`",
        ),
    ],
)
def test_a_job_that_cannot_run_is_named_with_what_to_change(elastic: ElasticConfig, message: str) -> None:
    allocator, _ = make()
    allocator.add_job("good", CPU)
    allocator.add_job("bad", elastic)
    found = allocator.infeasible(nodes(a=2, b=2))
    assert list(found) == ["bad"]
    assert re.search(message, found["bad"])
    assert list(by_job(allocator.step(nodes(a=2, b=2)))) == ["good"]


def test_min_and_max_replicas_are_respected() -> None:
    allocator, _ = make()
    allocator.add_job("one", dataclasses.replace(CPU, min_replicas=2, max_replicas=3))
    assert sum(allocator.step(nodes(a=8))[0].after.values()) == 2
    allocator.update("one", status({"a": 2}, scaling_report(2)))
    assert sum(allocator.step(nodes(a=8))[0].after.values()) == 3


def test_a_thousand_nodes_are_looked_at_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver asks several times a second what cannot run, and shares its interpreter with Tune."""
    looked_at = []

    def counted(node: Node, resources: Mapping[str, float]) -> int:
        looked_at.append(node.node_id)
        return holds(node, resources)

    monkeypatch.setattr("adaptdl.runtime.nodes.holds", counted)
    allocator, _ = make(FairSharePolicy())
    for number in range(50):
        allocator.add_job(str(number), CPU)
    many = nodes(**{f"n{number}": 1 for number in range(1000)})
    assert allocator.infeasible(many) == {}
    assert len(looked_at) == 1000
    allocator.step(many)
    assert len(looked_at) == 2000
