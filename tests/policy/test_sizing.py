from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.policy import (
    Advice,
    Allocation,
    Decision,
    FairSharePolicy,
    Job,
    Node,
    OptimalPolicy,
    Policy,
    StaticPolicy,
    advise,
    num_replicas,
)
from tests.policy.instances import cluster, job, linear

quick = settings(max_examples=25, deadline=None)
QUARTERS = {"GPU": 4.0}


def advice(jobs: Sequence[Job], current: Mapping[str, Allocation] | None = None, **changes: object) -> Advice:
    nodes = [Node(node_id=node, resources=QUARTERS) for node in {n for a in (current or {}).values() for n in a}]
    options = {"template": QUARTERS, "low": 0.5, "high": 0.8, "max_nodes": 16}
    return advise(nodes, jobs, current or {}, **(options | changes))  # type: ignore[arg-type]


def saturating(name: str, loss: float, most: int = 32, **changes: object) -> Job:
    """Speedup K / (1 + loss·(K − 1)) on any number of nodes."""
    replicas = np.arange(most + 1)
    speedup = np.vstack([np.zeros(most + 1), replicas / (1 + loss * np.maximum(replicas - 1, 0))])
    return job(name, most, speedup=speedup, **changes)


jobs_of_all_sorts = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6).map(
    lambda losses: [saturating(f"j{i}", loss, 4 + 5 * i) for i, loss in enumerate(losses)]
)


@quick
@given(most=st.integers(1, 40), gpus=st.integers(1, 8), low=st.floats(0.1, 0.5))
def test_a_job_that_scales_perfectly_gets_as_many_nodes_as_it_can_use(most: int, gpus: int, low: float) -> None:
    answer = advice([job("a", most)], template={"GPU": gpus}, low=low, max_nodes=40)
    assert answer.best == math.ceil(most / gpus)
    assert answer.smallest == 1
    assert answer.largest == max((n for n in range(1, 41) if most / (n * gpus) >= low), default=1)
    assert answer.utilisation == pytest.approx(most / gpus / answer.best)


def test_jobs_that_do_not_scale_get_no_more_nodes_than_they_stand_on() -> None:
    jobs = [saturating(f"j{i}", loss=1.0) for i in range(10)]
    answer = advice(jobs)
    assert (answer.smallest, answer.best, answer.largest) == (3, 3, 5)
    assert answer.utilisation == pytest.approx(10 / 12)
    assert advice(jobs, low=0.8).largest == 3


def test_the_better_jobs_scale_the_more_nodes_they_get() -> None:
    best = [advice([saturating(f"j{i}", loss) for i in range(4)]).best for loss in (0.0, 0.02, 0.1, 0.3, 1.0)]
    assert best == sorted(best, reverse=True)
    assert (best[0], best[-1]) == (16, 1)


@quick
@given(jobs=jobs_of_all_sorts, bounds=st.tuples(st.integers(0, 12), st.integers(0, 12)), low=st.floats(0.05, 0.8))
def test_the_bounds_are_respected(jobs: list[Job], bounds: tuple[int, int], low: float) -> None:
    least, most = sorted(bounds)
    answer = advice(jobs, min_nodes=least, max_nodes=most, low=low)
    assert least <= answer.smallest <= answer.best <= answer.largest <= most
    wider = advice(jobs, min_nodes=max(least - 1, 0), max_nodes=most, low=low)
    assert wider.smallest <= answer.smallest
    assert wider.largest <= answer.largest


@quick
@given(jobs=jobs_of_all_sorts, low=st.floats(0.05, 0.8))
def test_utilisation_is_within_its_bounds_where_nobody_has_nothing(jobs: list[Job], low: float) -> None:
    answer = advice(jobs, low=low)
    assert answer.utilisation is not None
    assert all(0 < utilisation <= 1 for utilisation in answer.by_nodes.values())
    if answer.largest > answer.smallest:
        assert answer.by_nodes[answer.largest] >= low
    assert all(utilisation < low for n, utilisation in answer.by_nodes.items() if n > answer.largest)


def test_utilisation_is_speedup_per_replica_that_the_cluster_holds() -> None:
    jobs = [saturating("a", 0.1), saturating("b", 0.3)]
    policy = OptimalPolicy()
    for n, utilisation in advice(jobs, policy=policy).by_nodes.items():
        allocations = policy.allocate(cluster(n, 4), jobs, {}).allocations
        speedup = sum(job.speedup_at(1, num_replicas(allocations[job.job_id])) for job in jobs)
        assert utilisation == pytest.approx(speedup / (4 * n))


def test_the_resource_that_is_used_most_decides() -> None:
    node = {"GPU": 2.0, "CPU": 16.0}
    gpu, cpu = job("gpu", 4, resources={"GPU": 1, "CPU": 1}), job("cpu", 48, resources={"CPU": 1}, speedup=linear(48))
    assert advice([gpu], template=node).best == 2
    assert advice([cpu], template=node).best == 3
    assert advice([gpu, cpu], template=node).best == 2 + 3  # both span nodes, so that they share none


def test_room_that_no_replica_can_use_does_not_count_as_idle() -> None:
    answer = advice([job("a", 4, resources={"GPU": 1.5})], low=0.9, high=0.9)
    assert (answer.best, answer.utilisation) == (2, 1)


def test_everybody_who_waits_gets_room_as_long_as_nodes_are_used_well() -> None:
    jobs = [saturating(f"j{i}", loss=1.0) for i in range(9)]
    assert advice(jobs, low=0.7, high=0.8).smallest == 3
    assert advice(jobs, low=0.8, high=0.8).smallest == 2  # a third one would leave a quarter idle
    with_a_large_one = advice([*jobs, job("large", 12, min_replicas=12)], low=0.5, high=0.8)
    assert with_a_large_one.smallest == 3  # the others leave room already
    assert with_a_large_one.best == 6


def test_a_job_that_needs_more_than_one_node_gets_them() -> None:
    large = job("large", 32, min_replicas=9)
    assert advice([large]).smallest == 3
    assert advice([large, saturating("small", 1.0)], {"small": {"n0": 1}}).smallest == 3


def test_somebody_is_served_however_badly_nodes_are_used() -> None:
    answer = advice([saturating("a", 1.0)], low=0.9, high=0.9)
    assert (answer.smallest, answer.best, answer.largest) == (1, 1, 1)
    assert advice([job("a", 5, min_replicas=5)], low=0.9, high=0.9).best == 2


def test_nobody_who_runs_is_evicted_for_the_sake_of_utilisation() -> None:
    bad = job("bad", 8, min_replicas=8, speedup=linear(8, loss=0.1))
    good = job("good", 4)
    running = {"bad": {"n0": 4, "n1": 4}, "good": {"n2": 4}}
    assert advice([bad, good], low=0.9, high=0.9).best == 1
    kept = advice([bad, good], running, low=0.9, high=0.9)
    assert kept.smallest == kept.best == 3
    assert advice([bad, good], running, low=0.9, high=0.9, max_nodes=1).best == 1


def test_nodes_with_pinned_jobs_are_needed() -> None:
    jobs = [job(f"j{i}", 1, pinned=True) for i in range(3)]
    spread = {f"j{i}": {f"n{i}": 1} for i in range(3)}
    assert advice(jobs, spread).smallest == 3
    assert advice(jobs, {"j0": {"n0": 1}}).smallest == 1


def test_without_jobs_that_such_nodes_hold_as_few_nodes_as_possible_are_best() -> None:
    for jobs in ([], [job("a", resources={"TPU": 1})], [job("a", 8, min_replicas=8, speedup=np.zeros((2, 9)))]):
        answer = advice(jobs)
        assert (answer.smallest, answer.best, answer.largest, answer.utilisation) == (0, 0, 0, 0)
        assert advice(jobs, min_nodes=2).best == 2
    out_of_reach = advice([job("a", 8, min_replicas=8)], max_nodes=1)
    assert (out_of_reach.best, out_of_reach.utilisation) == (0, 0)


class Rippling:
    """Makes nothing of every third size, and of the others what equal shares make."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        self.asked.append(len(nodes))
        kept = nodes[: len(nodes) - (len(nodes) % 3 == 0)]
        return FairSharePolicy().allocate(kept, jobs, current)


@quick
@given(
    jobs=jobs_of_all_sorts,
    policy=st.sampled_from([Rippling(), FairSharePolicy(), OptimalPolicy()]),
    asked=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1)),
)
def test_asking_for_more_utilisation_never_gives_more_nodes(
    jobs: list[Job], policy: Policy, asked: tuple[float, float, float]
) -> None:
    low, middle, high = sorted(asked)
    first = advice(jobs, low=low, high=middle, max_nodes=12, policy=policy)
    second = advice(jobs, low=low, high=high, max_nodes=12, policy=policy)
    third = advice(jobs, low=middle, high=high, max_nodes=12, policy=policy)
    for more, less in itertools.pairwise((first, second, third)):
        assert more.smallest >= less.smallest
        assert more.best >= less.best
        assert more.largest >= less.largest


def test_few_sizes_are_looked_at_and_each_once() -> None:
    policy = Rippling()
    jobs = [saturating(f"j{i}", loss=0.01, most=200) for i in range(20)]
    answer = advice(jobs, policy=policy, max_nodes=1000)
    assert len(policy.asked) == len(set(policy.asked))
    assert len(policy.asked) <= 3 * math.log2(1000)
    assert 1 < answer.best < 1000


def test_the_policy_can_be_any() -> None:
    fixed = [job(f"j{i}", 32, requested_replicas=2) for i in range(6)]
    assert advice(fixed, policy=StaticPolicy()).best == 3
    assert advice(fixed).best == 16


def test_jobs_and_current_allocations_are_left_alone_and_answers_repeat() -> None:
    jobs, current = [saturating("a", 0.1, move_cost=0.5), job("b", pinned=True)], {"b": {"n0": 2}}
    assert advice(jobs, current) == advice(jobs, current)
    assert current == {"b": {"n0": 2}}
    assert (jobs[0].move_cost, jobs[1].pinned) == (0.5, True)


def test_without_time_the_advice_is_to_leave_things_as_they_are() -> None:
    ticks = itertools.count(step=10.0)
    current = {"a": {"n0": 4, "n1": 4}}
    answer = advice([job("a", 64)], current, time_limit_s=25.0, clock=lambda: next(ticks), policy=FairSharePolicy())
    assert not answer.in_time
    assert (answer.smallest, answer.best, answer.largest, answer.utilisation) == (2, 2, 2, None)
    assert set(answer.by_nodes) == {8, 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.0}, "0 < low <= high <= 1"),
        ({"low": 0.9, "high": 0.8}, "0 < low <= high <= 1"),
        ({"high": 1.1}, "0 < low <= high <= 1"),
        ({"low": math.nan}, "0 < low <= high <= 1"),
        ({"min_nodes": -1}, "0 <= min_nodes <= max_nodes"),
        ({"min_nodes": 17}, "0 <= min_nodes <= max_nodes"),
        ({"time_limit_s": 0.0}, "`time_limit_s > 0`"),
        ({"template": {"GPU": -1.0}}, "must be finite and >= 0"),
    ],
)
def test_impossible_bounds_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        advice([job("a")], **changes)
