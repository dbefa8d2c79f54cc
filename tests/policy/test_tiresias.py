from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.policy import Allocation, Job, Node, StaticPolicy, TiresiasPolicy
from tests.policy.instances import cluster, job, on_the_emptiest


def sized(name: str, count: int, arrival: float = 0.0, service_s: float = 0.0) -> Job:
    return job(name, 16, requested_replicas=count, arrival=arrival, service_s=service_s)


def who_runs(policy: TiresiasPolicy, nodes: list[Node], jobs: list[Job]) -> set[str]:
    return {name for name, allocation in policy.allocate(nodes, jobs, {}).allocations.items() if allocation}


def test_who_has_had_much_makes_way_for_who_came_later() -> None:
    jobs = [sized("old", 4, 0, service_s=1000.0), sized("new", 4, 1)]
    policy = TiresiasPolicy(1000.0)
    assert policy.allocate(cluster(1, 4), jobs, {"old": {"n0": 4}}).allocations == {"old": {}, "new": {"n0": 4}}
    assert who_runs(TiresiasPolicy(1001.0), cluster(1, 4), jobs) == {"old"}


def test_a_smaller_job_runs_where_an_earlier_one_does_not_fit() -> None:
    jobs = [sized("a", 2, 0), sized("b", 4, 1), sized("c", 2, 2)]
    assert who_runs(TiresiasPolicy(), cluster(1, 4), jobs) == {"a", "c"}


def test_queue_1_is_in_the_order_of_coming_there() -> None:
    policy = TiresiasPolicy(100.0)
    early, late = sized("early", 1, 0, service_s=99.0), sized("late", 1, 1, service_s=100.0)
    assert who_runs(policy, cluster(1, 1), [early, late]) == {"early"}
    early = sized("early", 1, 0, service_s=100.0)
    assert who_runs(policy, cluster(1, 1), [early, late]) == {"late"}
    assert who_runs(TiresiasPolicy(100.0), cluster(1, 1), [early, late]) == {"early"}


def test_nobody_comes_back_from_queue_1_until_gone() -> None:
    policy = TiresiasPolicy(100.0)
    other = sized("other", 1, 1)
    policy.allocate(cluster(1, 1), [sized("a", 1, 0, service_s=100.0), other], {})
    assert who_runs(policy, cluster(1, 1), [sized("a", 1, 0), other]) == {"other"}
    policy.allocate(cluster(1, 1), [other], {})
    assert who_runs(policy, cluster(1, 1), [sized("a", 1, 0), other]) == {"a"}


def test_asking_what_allocations_are_worth_moves_nobody() -> None:
    policy = TiresiasPolicy(100.0)
    jobs = [sized("a", 1, 0, service_s=100.0), sized("b", 1, 1)]
    assert policy.objective(cluster(1, 2), jobs, {}, {"a": {"n0": 1}, "b": {}}) == 0.25
    assert who_runs(policy, cluster(1, 1), [sized("a", 1, 0), sized("b", 1, 1)]) == {"a"}


def test_who_goes_on_running_keeps_its_nodes() -> None:
    current = {"b": {"n1": 1, "n2": 2}}
    jobs = [sized("a", 2, 0), sized("b", 3, 1)]
    assert TiresiasPolicy().allocate(cluster(3, 3), jobs, current).allocations == {**current, "a": {"n0": 2}}


def test_a_job_that_runs_with_another_number_is_placed_anew() -> None:
    decision = TiresiasPolicy().allocate(cluster(2, 4), [sized("a", 3)], {"a": {"n1": 2}})
    assert decision.allocations == {"a": {"n0": 3}}


def test_who_is_behind_makes_way_where_jobs_that_span_nodes_block_each_other() -> None:
    jobs = [sized("first", 6, 0), sized("last", 5, 1)]
    current = {"last": {"n0": 3, "n1": 2}}
    decision = TiresiasPolicy().allocate(cluster(3, 4), jobs, current)
    assert decision.allocations == {"first": {"n0": 4, "n1": 2}, "last": {}}
    # Once `first` cannot run at all, nobody makes way for it.
    assert TiresiasPolicy().allocate(cluster(2, 4), [sized("first", 9, 0), jobs[1]], current).allocations["last"]


def test_as_published_jobs_that_span_nodes_share_them() -> None:
    jobs = [sized("a", 3, 0), sized("b", 3, 1)]
    decision = TiresiasPolicy(exclusive=False).allocate(cluster(3, 2), jobs, {})
    assert decision.allocations == {"a": {"n0": 2, "n1": 1}, "b": {"n2": 2, "n1": 1}}
    again = TiresiasPolicy(exclusive=False).allocate(cluster(3, 2), jobs, decision.allocations)
    assert again.allocations == decision.allocations


def as_published(
    nodes: int, gpus: int, jobs: Sequence[Job], current: Mapping[str, Allocation], threshold_s: float
) -> dict[str, list[tuple[str, int]]]:
    """The rules of the paper, said again as plainly as possible, for nodes of one size."""
    order = sorted(jobs, key=lambda job: (job.service_s >= threshold_s, job.arrival))
    left, chosen = nodes * gpus, []
    for asked in order:
        if (asked.requested_replicas or 0) <= left:
            left -= asked.requested_replicas or 0
            chosen.append(asked)
    kept = {asked.job_id: current.get(asked.job_id, {}) for asked in chosen}
    wanted = [(asked.job_id, asked.requested_replicas or 0) for asked in chosen if not kept[asked.job_id]]
    answer = on_the_emptiest(nodes, gpus, kept, wanted)
    return {asked.job_id: answer.get(asked.job_id, []) for asked in jobs}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_as_published_means_to_the_letter_over_a_history(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_nodes, gpus = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    policy, current, jobs = TiresiasPolicy(100.0, exclusive=False), dict[str, Allocation](), list[Job]()
    for now in range(6):
        jobs = [job for job in jobs if rng.random() < 0.8]
        jobs += [
            sized(f"j{now}.{i}", int(rng.integers(1, 9)), now + i / 10, service_s=float(rng.choice([0.0, 200.0])))
            for i in range(rng.integers(0, 4))
        ]
        expected = as_published(num_nodes, gpus, jobs, current, 100.0)
        answer = policy.allocate(cluster(num_nodes, gpus), jobs, current).allocations
        assert {name: list(allocation.items()) for name, allocation in answer.items()} == expected
        current = dict(answer)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 9), max_size=12), num_nodes=st.integers(1, 6))
def test_whoever_waits_fits_nowhere(counts: list[int], num_nodes: int) -> None:
    nodes, jobs = cluster(num_nodes, 4), [sized(f"j{i}", count, i) for i, count in enumerate(counts)]
    answer = TiresiasPolicy().allocate(nodes, jobs, {}).allocations
    assert StaticPolicy().allocate(nodes, jobs, answer).allocations == answer


def test_a_threshold_must_be_positive() -> None:
    with pytest.raises(UsageError, match="`threshold_s > 0` must hold"):
        TiresiasPolicy(0.0)
