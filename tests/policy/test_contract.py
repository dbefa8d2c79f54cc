"""What every policy promises, over all policies.

Three laws are not everybody's: policies of fixed sizes and those that place anew whatever changes its size do not grow
a job where it stands, and those that follow their paper to the letter let jobs that span nodes share them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.policy import (
    Allocation,
    Decision,
    FairSharePolicy,
    Job,
    Node,
    OptimalPolicy,
    OptimusPolicy,
    StaticPolicy,
    TiresiasPolicy,
    num_replicas,
    violations,
)
from tests.policy.instances import Problem, cluster, job, linear, random_problem

quick = settings(max_examples=60, deadline=None)

THRESHOLD_S = 100.0


def with_history(seed: int) -> Problem:
    """A random problem whose jobs have asked for something, have had something, and have something to go."""
    problem, rng = random_problem(seed), np.random.default_rng(seed + 1)
    jobs = [
        dataclasses.replace(
            job,
            requested_replicas=int(rng.integers(job.min_replicas, job.max_replicas + 1))
            if rng.random() < 0.8
            else None,
            service_s=float(rng.choice([0.0, THRESHOLD_S - 1, THRESHOLD_S, 2 * THRESHOLD_S])),
            remaining_s=float(rng.choice([10.0, 100.0, 1000.0])) if rng.random() < 0.8 else None,
        )
        for job in problem.jobs
    ]
    return dataclasses.replace(problem, jobs=jobs)


problems = st.integers(0, 2**32 - 2).map(with_history)


class Comparable(Protocol):
    """A policy that can tell what it thinks of any allocations."""

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision: ...

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float: ...


GROWING: dict[str, Comparable] = {
    "optimal": OptimalPolicy(),
    "optimal-total": OptimalPolicy(fairness=0),
    "optimal-maxmin": OptimalPolicy(fairness=1),
    "fair-share": FairSharePolicy(),
}
"""They let a job grow where it is."""

PLACING_ANEW: dict[str, Comparable] = {
    "static": StaticPolicy(),
    "tiresias": TiresiasPolicy(THRESHOLD_S),
    "optimus": OptimusPolicy(),
}
"""They never change who runs (static), or place whatever changes its size anew (as the papers have it)."""

AS_PUBLISHED: dict[str, Comparable] = {
    "tiresias-published": TiresiasPolicy(THRESHOLD_S, exclusive=False),
    "optimus-published": OptimusPolicy(exclusive=False),
}
"""They know nothing of a limit on jobs that span nodes."""

ALL = GROWING | PLACING_ANEW | AS_PUBLISHED


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL)
def policy(request: pytest.FixtureRequest) -> Comparable:
    return request.param  # type: ignore[no-any-return]


def wrong(policy: Comparable, problem: Problem, allocations: Mapping[str, Allocation]) -> list[str]:
    """The violations that are this policy's fault."""
    found = violations(problem.nodes, problem.jobs, allocations, problem.current)
    sharing = policy in AS_PUBLISHED.values()
    return [violation for violation in found if not (sharing and violation.endswith("jobs that span nodes"))]


@quick
@given(problem=problems)
def test_every_job_has_an_answer_that_fits(policy: Comparable, problem: Problem) -> None:
    decision = policy.allocate(problem.nodes, problem.jobs, problem.current)
    assert set(decision.allocations) == {job.job_id for job in problem.jobs}
    assert wrong(policy, problem, decision.allocations) == []


@quick
@given(problem=problems)
def test_inputs_are_left_alone_and_answers_repeat(policy: Comparable, problem: Problem) -> None:
    untouched = copy.deepcopy(problem)
    first = policy.allocate(problem.nodes, problem.jobs, problem.current)
    assert problem.nodes == untouched.nodes
    assert problem.current == untouched.current
    for before, after in zip(untouched.jobs, problem.jobs, strict=True):
        assert before.speedup.tolist() == after.speedup.tolist()
    assert policy.allocate(problem.nodes, problem.jobs, problem.current) == first


@quick
@given(problem=problems)
def test_the_order_of_nodes_and_jobs_does_not_matter(policy: Comparable, problem: Problem) -> None:
    first = policy.allocate(problem.nodes, problem.jobs, problem.current)
    assert policy.allocate(problem.nodes[::-1], problem.jobs[::-1], problem.current).allocations == first.allocations


@quick
@given(problem=problems)
def test_an_answer_is_kept_when_nothing_changes(policy: Comparable, problem: Problem) -> None:
    first = policy.allocate(problem.nodes, problem.jobs, problem.current)
    assert policy.allocate(problem.nodes, problem.jobs, first.allocations).allocations == first.allocations


@quick
@given(problem=problems)
def test_an_answer_is_never_worse_than_staying_put(policy: Comparable, problem: Problem) -> None:
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    decision = policy.allocate(nodes, jobs, current)
    assert decision.objective == pytest.approx(policy.objective(nodes, jobs, current, decision.allocations))
    if not wrong(policy, problem, current):
        assert decision.objective >= policy.objective(nodes, jobs, current, current) - 1e-9


def test_all_devices_are_used_from_an_empty_start(policy: Comparable) -> None:
    decision = policy.allocate(cluster(4, 4), [job(f"j{i}", 16, requested_replicas=4) for i in range(4)], {})
    assert sum(map(num_replicas, decision.allocations.values())) == 16


def test_all_devices_are_used_when_there_are_more_jobs_than_devices(policy: Comparable) -> None:
    # Names that no test above has used: Tiresias remembers whom it has moved to the back.
    jobs = [job(f"new{i}", 1, arrival=i) for i in range(10)]
    decision = policy.allocate(cluster(2, 3), jobs, {})
    assert [num_replicas(decision.allocations[f"new{i}"]) for i in range(10)] == [1] * 6 + [0] * 4


@pytest.mark.parametrize("policy", GROWING.values(), ids=GROWING)
def test_a_job_that_grows_stays_where_it_is(policy: Comparable) -> None:
    jobs = [job("a", 3, arrival=1), job("b", 3, arrival=2)]
    decision = policy.allocate(cluster(3, 3), jobs, {"a": {"n1": 1}, "b": {"n2": 1}})
    assert decision.allocations == {"a": {"n1": 3}, "b": {"n2": 3}}


def test_a_draining_node_is_left_at_once(policy: Comparable) -> None:
    nodes = [Node(node_id="n0", resources={"GPU": 2}, draining=True), Node(node_id="n1", resources={"GPU": 2})]
    decision = policy.allocate(nodes, [job("a", 2, move_cost=0.9, requested_replicas=2)], {"a": {"n0": 2}})
    assert decision.allocations == {"a": {"n1": 2}}


def test_what_is_gone_is_forgotten(policy: Comparable) -> None:
    decision = policy.allocate(
        cluster(1, 2), [job("a", 2, requested_replicas=2)], {"a": {"lost": 2}, "ended": {"n0": 2}}
    )
    assert decision.allocations == {"a": {"n0": 2}}


def test_a_pinned_job_stays_even_where_it_does_not_fit(policy: Comparable) -> None:
    pinned, other = job("a", 4, pinned=True), job("b", 4, requested_replicas=2)
    decision = policy.allocate(cluster(2, 2), [pinned, other], {"a": {"n0": 3}})
    assert decision.allocations == {"a": {"n0": 3}, "b": {"n1": 2}}


def test_replicas_that_bring_nothing_are_not_given(policy: Comparable) -> None:
    decision = policy.allocate(cluster(2, 4), [job("a", 8, speedup=linear(2), requested_replicas=2)], {})
    assert num_replicas(decision.allocations["a"]) == 2


@pytest.mark.parametrize(
    ("nodes", "jobs"), [([], []), ([], [job("a")]), (cluster(2, 2), []), (cluster(2, 0), [job("a")])]
)
def test_with_nothing_to_give_or_nobody_to_give_it_to_nobody_has_anything(
    policy: Comparable, nodes: list[Node], jobs: list[Job]
) -> None:
    decision = policy.allocate(nodes, jobs, {})
    assert decision.allocations == {job.job_id: {} for job in jobs}
    assert decision.objective == 0


def test_names_must_be_unique(policy: Comparable) -> None:
    with pytest.raises(UsageError, match="each job must be given once, but got 'a' several times"):
        policy.allocate(cluster(1, 1), [job("a"), job("a")], {})
    with pytest.raises(UsageError, match="each node must be given once"):
        policy.allocate(cluster(1, 1) * 2, [job("a")], {})
