from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptdl.policy import Allocation, Job, OptimusPolicy, num_replicas
from tests.policy.instances import cluster, job, linear, on_the_emptiest


def replicas(jobs: list[Job], num_nodes: int = 1, gpus: int = 8, **options: bool) -> list[int]:
    decision = OptimusPolicy(**options).allocate(cluster(num_nodes, gpus), jobs, {})
    return [num_replicas(decision.allocations[job.job_id]) for job in jobs]


def table(*speedup: float) -> NDArray[np.float64]:
    """The same on any number of nodes; shape (2, K + 1)."""
    return np.array([np.zeros(1 + len(speedup)), (0.0, *speedup)])


def test_everybody_has_the_minimum_before_anybody_has_more() -> None:
    assert replicas([job(f"j{i}", 9, arrival=i) for i in range(7)]) == [2, 1, 1, 1, 1, 1, 1]
    assert replicas([job(f"j{i}", 9, arrival=i, min_replicas=3) for i in range(3)]) == [4, 4, 0]


def test_more_goes_where_it_saves_most_time() -> None:
    assert replicas([job("a", 8, remaining_s=900.0), job("b", 8, remaining_s=100.0)]) == [6, 2]


def test_time_to_go_that_nobody_knows_counts_as_one_second() -> None:
    assert replicas([job("a", 8), job("b", 8, remaining_s=1.0)]) == [4, 4]
    assert replicas([job("a", 8), job("b", 8, remaining_s=9.0)]) == [2, 6]


def test_replicas_that_save_no_time_are_not_given() -> None:
    assert replicas([job("a", 4, speedup=table(1, 2, 2, 3))]) == [2]
    assert replicas([job("a", 4, speedup=table(1, 2, 1.5, 3))]) == [2]


def test_numbers_without_a_speedup_are_stepped_over() -> None:
    alone = job("a", 4, speedup=table(0, 1, 0, 2))
    assert [replicas([alone], gpus=gpus)[0] for gpus in range(1, 6)] == [0, 2, 2, 4, 4]
    # 1 s over 2 replicas against 0.5 s and 0.17 s for one
    assert replicas([alone, job("b", 4)], gpus=6) == [4, 2]
    assert replicas([job("a", 4, speedup=table(0, 0, 0, 0))]) == [0]


def test_time_is_reckoned_as_if_packed_on_the_fewest_nodes() -> None:
    assert replicas([job("a", 9, speedup=linear(9, across=0.5))], num_nodes=3, gpus=3) == [3]
    assert replicas([job("a", 9, speedup=linear(9, across=0.9))], num_nodes=3, gpus=3) == [9]


def test_who_has_few_is_placed_first_on_the_emptiest_node() -> None:
    jobs = [job("large", 5, arrival=0), job("small", 1, arrival=1)]
    decision = OptimusPolicy().allocate(cluster(2, 3), jobs, {})
    assert [list(decision.allocations[name].items()) for name in ("small", "large")] == [
        [("n0", 1)],
        [("n1", 3), ("n0", 2)],
    ]


def test_an_unchanged_number_keeps_its_nodes_and_another_is_placed_anew() -> None:
    current = {"a": {"n1": 1, "n2": 1}, "b": {"n1": 1}}
    decision = OptimusPolicy().allocate(cluster(3, 4), [job("a", 2), job("b", 4)], current)
    assert decision.allocations == {"a": current["a"], "b": {"n0": 4}}


def test_of_jobs_that_span_nodes_the_second_gets_what_is_left_for_it() -> None:
    jobs = [job("a", 3, arrival=0), job("b", 3, arrival=1)]
    decision = OptimusPolicy().allocate(cluster(3, 2), jobs, {})
    assert decision.allocations == {"a": {"n0": 2, "n1": 1}, "b": {"n2": 2}}
    assert OptimusPolicy().allocate(cluster(3, 2), jobs, decision.allocations).allocations == decision.allocations
    shared = OptimusPolicy(exclusive=False).allocate(cluster(3, 2), jobs, {})
    assert shared.allocations == {"a": {"n0": 2, "n1": 1}, "b": {"n2": 2, "n1": 1}}


def random_job(rng: np.random.Generator, name: str, arrival: float) -> Job:
    speedup = np.vstack([np.zeros(17), np.cumsum(rng.random((5, 17)) * 0.9 ** np.arange(17), axis=1)])
    speedup[:, 0] = 0.0
    return job(
        name, int(rng.integers(1, 17)), speedup=speedup, arrival=arrival, remaining_s=float(rng.uniform(1, 1000))
    )


def as_published(
    nodes: int, gpus: int, jobs: list[Job], current: dict[str, Allocation]
) -> dict[str, list[tuple[str, int]]]:
    """The rules of the paper, said again as plainly as possible, for nodes of one size and `min_replicas` of 1."""
    count = {asked.job_id: int(i < nodes * gpus) for i, asked in enumerate(jobs)}

    def gain(asked: Job) -> float:
        n = count[asked.job_id]
        if not 0 < n < asked.max_replicas:
            return 0.0
        now, then = (asked.speedup_at(-(-k // gpus), k) for k in (n, n + 1))
        return (asked.remaining_s or 1.0) * (1 / now - 1 / then)

    while sum(count.values()) < nodes * gpus and jobs and gain(best := max(jobs, key=gain)) > 0:
        count[best.job_id] += 1
    kept = {
        asked.job_id: current.get(asked.job_id, {})
        for asked in jobs
        if num_replicas(current.get(asked.job_id, {})) == count[asked.job_id]
    }
    fewest_first = sorted(jobs, key=lambda asked: count[asked.job_id])
    wanted = [(asked.job_id, count[asked.job_id]) for asked in fewest_first if not kept.get(asked.job_id)]
    return on_the_emptiest(nodes, gpus, kept, wanted)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_as_published_means_to_the_letter_over_a_history(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_nodes, gpus = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    policy, current, jobs = OptimusPolicy(exclusive=False), dict[str, Allocation](), list[Job]()
    for now in range(5):
        jobs = [job for job in jobs if rng.random() < 0.8]
        jobs += [random_job(rng, f"j{now}.{i}", now + i / 10) for i in range(rng.integers(0, 4))]
        answer = policy.allocate(cluster(num_nodes, gpus), jobs, current).allocations
        expected = as_published(num_nodes, gpus, jobs, current)
        assert {name: list(allocation.items()) for name, allocation in answer.items()} == expected
        current = dict(answer)
