"""The ways that large problems go, on problems so small that all answers can be tried."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.policy import OptimalPolicy, search, violations
from adaptdl.policy.sifting import _several
from tests.policy.instances import Problem, all_allocations, cluster, job, linear, problems

fairness = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


@pytest.fixture(scope="module")
def always_sift() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "LARGE_PROGRAM", 0)
        yield patch


@settings(max_examples=80, deadline=None)
@given(problem=problems, fairness=fairness)
def test_few_choices_at_a_time_are_as_good_as_all_at_once(
    always_sift: pytest.MonkeyPatch, problem: Problem, fairness: float
) -> None:
    policy = OptimalPolicy(fairness=fairness)
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    decision = policy.allocate(nodes, jobs, current)
    best = max(policy.objective(nodes, jobs, current, allocations) for allocations in all_allocations(problem))
    assert decision.objective == pytest.approx(best, rel=2e-5)
    assert decision.gap == pytest.approx(0, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(problem=problems, fairness=fairness)
def test_neighbourhoods_have_allocations_that_fit_and_a_bound_that_holds(
    always_sift: pytest.MonkeyPatch, problem: Problem, fairness: float
) -> None:
    policy = OptimalPolicy(fairness=fairness)
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_SPLIT_ARCS", 10)
        decision = policy.allocate(nodes, jobs, current)
    assert violations(nodes, jobs, decision.allocations, current) == []
    best = max(policy.objective(nodes, jobs, current, allocations) for allocations in all_allocations(problem))
    assert decision.gap is not None
    assert best <= decision.objective * (1 + decision.gap) + 1e-9


def test_hundreds_of_jobs_come_and_go_and_hardly_any_other_moves() -> None:
    nodes = cluster(60, 8)
    jobs = [
        job(f"j{j:03d}", 24, speedup=linear(24, across=0.85, loss=0.002 * (j % 20)), move_cost=0.1, arrival=j)
        for j in range(190)
    ]
    policy = OptimalPolicy()
    first = policy.allocate(nodes, jobs[:180], {})
    assert first.gap == pytest.approx(0, abs=1e-3)
    second = policy.allocate(nodes, jobs[10:], first.allocations)
    assert violations(nodes, jobs[10:], second.allocations, first.allocations) == []
    assert second.gap == pytest.approx(0, abs=1e-3)
    stayed = sum(second.allocations[asked.job_id] == first.allocations[asked.job_id] for asked in jobs[10:180])
    assert stayed >= 160
    third = policy.allocate(nodes, jobs[10:], second.allocations)
    assert third.allocations == second.allocations


def test_a_full_cluster_has_nothing_for_hundreds_that_wait() -> None:
    running = [job(f"j{j:02d}", 8, min_replicas=8, move_cost=0.5) for j in range(30)]
    waiting = [job(f"w{j:03d}", 16, speedup=linear(16) / 20, arrival=1) for j in range(200)]
    current = {asked.job_id: {f"n{j}": 8} for j, asked in enumerate(running)}
    decision = OptimalPolicy(fairness=0).allocate(cluster(30, 8), [*running, *waiting], current)
    assert {job_id: taken for job_id, taken in decision.allocations.items() if taken} == current
    assert decision.gap == pytest.approx(0, abs=1e-3)


def test_replicas_are_priced_in_the_cheapest_pieces_but_in_two_at_least() -> None:
    price = np.array([np.inf, 3.0, 4.0, 4.5, np.inf, np.inf, np.inf])  # by size of the piece
    assert _several(price)[1:].tolist() == [np.inf, 6.0, 7.0, 7.5, 8.5, 9.0]
