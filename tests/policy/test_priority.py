"""Jobs with less to do count more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.policy import Job, Node, OptimalPolicy
from adaptdl.policy.priority import LEAST, by_remaining_time

LINEAR = np.array([[0.0, 0, 0, 0, 0], [0, 1, 1.8, 2.4, 2.8]])


def job(name: str, remaining_s: float | None, *, weight: float = 1.0, move_cost: float = 0.0) -> Job:
    return Job(
        job_id=name,
        resources={"GPU": 1.0},
        max_replicas=4,
        speedup=LINEAR,
        remaining_s=remaining_s,
        weight=weight,
        move_cost=move_cost,
    )


def weights(jobs: list[Job], shortest_first: float = 1.0) -> list[float]:
    return [job.weight for job in by_remaining_time(jobs, shortest_first)]


times = st.none() | st.floats(1.0, 1e6)


@given(st.lists(times, max_size=20), st.floats(0, 1))
def test_less_to_do_never_counts_less_and_nobody_counts_less_than_the_least(
    remaining: list[float | None], shortest_first: float
) -> None:
    found = weights([job(str(i), time_s) for i, time_s in enumerate(remaining)], shortest_first)
    assert all(1 - shortest_first * (1 - LEAST) - 1e-9 <= weight <= 1 for weight in found)
    known = sorted((time_s, weight) for time_s, weight in zip(remaining, found, strict=True) if time_s is not None)
    assert all(former >= latter for (_, former), (_, latter) in itertools.pairwise(known))


def test_ranks_decide_not_times() -> None:
    assert weights([job("a", 1.0), job("b", 2.0), job("c", 1e6)]) == pytest.approx([1, 2 / 3, max(1 / 3, LEAST)])
    assert weights([job("a", 5.0, weight=3.0), job("b", 5.0)]) == [3, 1]


def test_the_longest_of_many_jobs_counts_something() -> None:
    found = weights([job(str(i), 10.0 + i) for i in range(100)])
    assert found[0] == 1
    assert found[90:] == [LEAST] * 10


def test_jobs_of_which_nothing_is_known_may_be_short() -> None:
    assert weights([job("a", None), job("b", 10.0), job("c", 20.0)]) == pytest.approx([1, 2 / 3, max(1 / 3, LEAST)])
    assert weights([job("a", None), job("b", None)]) == [1, 1]


def test_the_policy_gives_more_to_the_job_that_ends_first() -> None:
    nodes = [Node(node_id="n", resources={"GPU": 4.0})]
    jobs = [job("long", 1000.0), job("short", 10.0)]
    assert OptimalPolicy().allocate(nodes, jobs, {}).allocations == {"long": {"n": 1}, "short": {"n": 3}}
    equal = OptimalPolicy(shortest_first=0.0).allocate(nodes, jobs, {}).allocations
    assert equal == {"long": {"n": 2}, "short": {"n": 2}}


def test_it_must_be_a_share() -> None:
    with pytest.raises(UsageError, match="shortest_first"):
        OptimalPolicy(shortest_first=1.5)
