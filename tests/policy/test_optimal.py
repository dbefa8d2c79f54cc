from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.policy import Allocation, Job, Node, OptimalPolicy, num_nodes, num_replicas, violations
from tests.policy.instances import Problem, all_allocations, cluster, job, linear, problems, random_problem

fairness = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


@settings(max_examples=80, deadline=None)
@given(problem=problems, fairness=fairness)
def test_no_possible_allocations_are_better(problem: Problem, fairness: float) -> None:
    policy = OptimalPolicy(fairness=fairness)
    best = max(
        policy.objective(problem.nodes, problem.jobs, problem.current, allocations)
        for allocations in all_allocations(problem)
    )
    decision = policy.allocate(problem.nodes, problem.jobs, problem.current)
    assert decision.objective == pytest.approx(best, rel=2e-5)
    assert decision.gap == pytest.approx(0, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fairness=fairness)
def test_larger_problems_are_proven_and_beat_every_random_change(seed: int, fairness: float) -> None:
    problem = random_problem(seed, max_nodes=6, max_jobs=10)
    policy = OptimalPolicy(fairness=fairness)
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    decision = policy.allocate(nodes, jobs, current)
    assert violations(nodes, jobs, decision.allocations, current) == []
    assert decision.gap == pytest.approx(0, abs=1e-4)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        changed = {name: dict(allocation) for name, allocation in decision.allocations.items()}
        for chosen in rng.choice(len(jobs), 2):
            node = nodes[rng.integers(len(nodes))].node_id
            allocation = changed[jobs[chosen].job_id]
            allocation[node] = max(allocation.get(node, 0) + int(rng.integers(-1, 2)), 0)
            if not allocation[node]:
                del allocation[node]
        if not violations(nodes, jobs, changed, current):
            assert policy.objective(nodes, jobs, current, changed) <= decision.objective * (1 + 2e-5) + 1e-9


@settings(max_examples=60, deadline=None)
@given(problem=problems, fairness=fairness, limit=st.integers(1, 12))
def test_cut_at_any_time_the_bound_holds_and_nobody_is_worse_off(problem: Problem, fairness: float, limit: int) -> None:
    ticks = itertools.count()  # a second passes whenever the clock is looked at
    policy = OptimalPolicy(fairness=fairness, time_limit_s=limit, clock=lambda: float(next(ticks)))
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    decision = policy.allocate(nodes, jobs, current)
    assert violations(nodes, jobs, decision.allocations, current) == []
    assert decision.gap is not None
    best = max(policy.objective(nodes, jobs, current, allocations) for allocations in all_allocations(problem))
    assert best <= decision.objective * (1 + decision.gap) + 1e-9
    assert decision.objective >= policy.objective(nodes, jobs, current, standing(problem)) - 1e-9


def standing(problem: Problem) -> dict[str, Allocation]:
    """What the jobs have, less what cannot stay."""
    kept: dict[str, Allocation] = {}
    for asked in sorted(problem.jobs, key=lambda job: (not job.pinned, job.arrival, job.job_id)):
        tried = {**kept, asked.job_id: problem.current.get(asked.job_id, {})}
        if asked.pinned or not violations(problem.nodes, problem.jobs, tried):
            kept = tried
    return kept


@settings(max_examples=60, deadline=None)
@given(problem=problems, fairness=fairness)
def test_nobody_moves_who_could_stay_and_gains_nothing(problem: Problem, fairness: float) -> None:
    policy = OptimalPolicy(fairness=fairness)
    nodes, jobs, current = problem.nodes, problem.jobs, problem.current
    decision = policy.allocate(nodes, jobs, current)
    for job_id, before in current.items():
        put_back = {**decision.allocations, job_id: before}
        if decision.allocations[job_id] != before and not violations(nodes, jobs, put_back, current):
            assert policy.objective(nodes, jobs, current, put_back) < decision.objective


@pytest.mark.parametrize("seed", range(3))
def test_nodes_of_many_kinds_partly_taken_or_draining_are_divided_well_and_then_left_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [
        Node(
            node_id=f"n{i:02d}",
            resources={"GPU": float(rng.integers(1, gpus + 1)), "CPU": float(rng.integers(16, 65)), "memory": 256.0},
            draining=bool(rng.random() < 0.1),
        )
        for i, gpus in enumerate([8, 8, 4, 4, 2] * 6)
    ]
    jobs = [
        job(f"j{j:02d}", 12, resources={"GPU": 1.0, "CPU": float(rng.choice([2, 6, 10])), "memory": 16.0},
            speedup=linear(12, across=0.8, loss=0.06 * rng.random()), move_cost=0.1)
        for j in range(30)
    ]  # fmt: skip
    policy = OptimalPolicy()
    first = policy.allocate(nodes, jobs, {})
    assert violations(nodes, jobs, first.allocations) == []
    assert first.gap == pytest.approx(0, abs=5e-3)
    assert policy.allocate(nodes, jobs, first.allocations).allocations == first.allocations
    fewer = [node for node in nodes if node.node_id != "n00"]
    second = policy.allocate(fewer, jobs, first.allocations)
    assert violations(fewer, jobs, second.allocations, first.allocations) == []
    assert second.gap == pytest.approx(0, abs=5e-3)


def test_everybody_has_something_before_anybody_has_two() -> None:
    jobs = [job(f"j{i}", 4) for i in range(4)]
    decision = OptimalPolicy().allocate(cluster(1, 4), jobs, {})
    assert all(num_replicas(allocation) == 1 for allocation in decision.allocations.values())


def test_fairness_goes_from_total_speedup_to_the_worst_off() -> None:
    jobs = [job("scales", 6, speedup=linear(6, loss=0.01)), job("hardly", 6, speedup=linear(6, loss=0.12))]
    total, fair = (OptimalPolicy(fairness=f).allocate(cluster(1, 6), jobs, {}).allocations for f in (0.0, 1.0))
    assert (num_replicas(total["scales"]), num_replicas(total["hardly"])) == (5, 1)
    assert (num_replicas(fair["scales"]), num_replicas(fair["hardly"])) == (3, 3)


def test_weights_count() -> None:
    jobs = [job("light", 5), job("heavy", 5, weight=10.0)]
    decision = OptimalPolicy().allocate(cluster(1, 6), jobs, {})
    assert num_replicas(decision.allocations["heavy"]) == 5


def test_a_move_is_made_only_if_it_is_worth_its_cost() -> None:
    current = {"a": {"n0": 1}}
    for cost, expected in ((0.1, 2), (0.6, 1)):
        decision = OptimalPolicy().allocate(cluster(1, 2), [job("a", 2, move_cost=cost)], current)
        assert num_replicas(decision.allocations["a"]) == expected


def test_ties_are_broken_for_staying_put() -> None:
    jobs = [job(f"j{i}", 1, arrival=i) for i in range(4)]
    current = {"j3": {"n0": 1}, "j2": {"n0": 1}}
    decision = OptimalPolicy().allocate(cluster(1, 2), jobs, current)
    assert decision.allocations == {"j0": {}, "j1": {}, **current}
    assert decision.message == "staying put"


def test_an_arrival_disturbs_nobody_if_there_is_room() -> None:
    current = {f"j{i}": {f"n{i}": 2} for i in range(4)}
    jobs = [job(f"j{i}", 2) for i in range(4)]
    decision = OptimalPolicy().allocate(cluster(5, 2), [*jobs, job("new", 2)], current)
    assert decision.allocations == {**current, "new": {"n4": 2}}


def test_jobs_move_together_where_a_larger_one_needs_the_room() -> None:
    jobs = [job("a", 1), job("b", 1), job("new", 3, min_replicas=3, speedup=linear(3, across=0.0))]
    decision = OptimalPolicy().allocate(cluster(2, 3), jobs, {"a": {"n0": 1}, "b": {"n1": 1}})
    assert num_nodes(decision.allocations["new"]) == 1
    assert len({*decision.allocations["a"], *decision.allocations["b"]}) == 1
    assert decision.gap == pytest.approx(0, abs=1e-4)


def test_a_job_may_span_nodes_that_differ() -> None:
    nodes = [Node(node_id="n0", resources={"GPU": 4}), Node(node_id="n1", resources={"GPU": 3})]
    decision = OptimalPolicy().allocate(nodes, [job("a", 9)], {})
    assert decision.allocations == {"a": {"n0": 4, "n1": 3}}


def test_two_jobs_that_span_nodes_share_none() -> None:
    jobs = [job("a", 3, min_replicas=3), job("b", 3, min_replicas=3)]
    decision = OptimalPolicy().allocate(cluster(3, 2), jobs, {})
    assert sorted(map(num_replicas, decision.allocations.values())) == [0, 3]


def test_jobs_with_different_resources_share_nodes() -> None:
    nodes = [Node(node_id="n0", resources={"GPU": 2, "CPU": 8})]
    jobs = [job("gpu", 8, resources={"GPU": 1, "CPU": 1}), job("cpu", 8, resources={"CPU": 2})]
    decision = OptimalPolicy().allocate(nodes, jobs, {})
    assert decision.allocations == {"gpu": {"n0": 2}, "cpu": {"n0": 3}}


def test_many_kinds_of_replicas_on_large_nodes_are_still_answered() -> None:
    rng = np.random.default_rng(0)
    nodes = [Node(node_id=f"n{i}", resources={"CPU": 64.0, "memory": 256.0}) for i in range(3)]
    jobs = [
        job(f"j{i}", 16, resources={"CPU": float(1 + i % 3), "memory": float(rng.integers(1, 40)) / 4})
        for i in range(6)
    ]
    decision = OptimalPolicy(time_limit_s=1).allocate(nodes, jobs, {})
    assert violations(nodes, jobs, decision.allocations) == []
    assert all(decision.allocations.values())


def test_large_nodes_of_one_kind_are_solved_exactly() -> None:
    jobs = [job(f"j{i}", 64, arrival=i) for i in range(5)]
    decision = OptimalPolicy().allocate(cluster(2, 64), jobs, {})
    assert sum(map(num_replicas, decision.allocations.values())) == 128
    assert decision.gap == pytest.approx(0, abs=1e-4)


def test_without_time_there_is_still_an_answer() -> None:
    jobs = [job(f"j{i}", 9, speedup=linear(9, loss=0.01 * i)) for i in range(30)]
    decision = OptimalPolicy(time_limit_s=1e-9).allocate(cluster(10, 4), jobs, {})
    assert violations(cluster(10, 4), jobs, decision.allocations) == []
    assert sum(map(num_replicas, decision.allocations.values())) == 40


def test_more_nodes_than_a_table_has_rows_count_as_its_last_row() -> None:
    decision = OptimalPolicy().allocate(cluster(4, 1), [job("a", 4)], {})
    assert num_nodes(decision.allocations["a"]) == 4


@pytest.mark.parametrize(
    ("options", "message"), [({"fairness": 1.5}, "0 <= fairness <= 1"), ({"time_limit_s": 0.0}, "time_limit_s > 0")]
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OptimalPolicy(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_replicas": 5}, "1 <= min_replicas <= max_replicas"),
        ({"min_replicas": 0}, "1 <= min_replicas <= max_replicas"),
        ({"weight": 0.0}, "`weight` must be finite and > 0"),
        ({"move_cost": 1.0}, "0 <= move_cost < 1"),
        ({"resources": {}}, "must need some resource"),
        ({"resources": {"GPU": -1.0}}, "must be finite and >= 0"),
        ({"speedup": np.zeros(3)}, "`speedup` must be a table"),
        ({"speedup": np.full((2, 2), np.nan)}, "`speedup` must be a table"),
    ],
)
def test_impossible_jobs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        job("a", **changes)


def test_a_job_keeps_its_own_table() -> None:
    table = linear(2)
    asked = job("a", 2, speedup=table)
    table[:] = 9
    assert isinstance(asked, Job)
    assert asked.speedup_at(1, 2) == 2
    with pytest.raises(ValueError, match="read-only"):
        asked.speedup[0, 0] = 1
