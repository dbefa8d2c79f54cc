"""Random scheduling problems, and all answers to the smallest of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptdl.policy import Allocation, Job, Node, num_replicas, violations


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The arguments of one call of a policy."""

    nodes: list[Node]
    jobs: list[Job]
    current: dict[str, Allocation] = field(default_factory=dict)


def linear(max_replicas: int, across: float = 1.0, loss: float = 0.0) -> NDArray[np.float64]:
    """Speedup K·(1 − loss·(K − 1)), times `across` on several nodes; shape (3, max_replicas + 1)."""
    replicas = np.arange(max_replicas + 1)
    table = np.zeros((3, max_replicas + 1))
    table[1] = np.maximum(replicas * (1 - loss * (replicas - 1)), 0)
    table[2, 2:] = table[1, 2:] * across
    return table


def job(name: str, max_replicas: int = 4, **changes: object) -> Job:
    """One GPU per replica, scaling perfectly."""
    values = {"resources": {"GPU": 1.0}, "max_replicas": max_replicas, "speedup": linear(max_replicas)}
    return Job(job_id=name, **(values | changes))  # type: ignore[arg-type]


def cluster(num_nodes: int, gpus: float) -> list[Node]:
    return [Node(node_id=f"n{i}", resources={"GPU": gpus}) for i in range(num_nodes)]


def random_problem(seed: int, *, max_nodes: int = 3, max_jobs: int = 3) -> Problem:
    """A small problem with something of everything: nodes that differ or drain, limits, weights, two resources, tables
    of any shape, jobs that wait, run or are pinned."""
    rng = np.random.default_rng(seed)
    alike, two_kinds = rng.random() < 0.5, rng.random() < 0.4
    nodes = [
        Node(
            node_id=f"n{i}",
            resources={
                "GPU": 3.0 if alike else float(rng.integers(4)),
                "CPU": 8.0 if alike else float(rng.integers(2, 9)),
            },
            draining=bool(not alike and rng.random() < 0.15),
        )
        for i in range(rng.integers(1, max_nodes + 1))
    ]
    jobs = []
    for j in range(rng.integers(1, max_jobs + 1)):
        least = int(rng.integers(1, 3))
        jobs.append(
            Job(
                job_id=f"j{j}",
                resources={"GPU": 1.0, "CPU": float(rng.integers(1, 3)) if two_kinds else 1.0},
                min_replicas=least,
                max_replicas=int(rng.integers(least, 5)),
                speedup=_random_table(rng),
                weight=float(rng.choice([1.0, 1.0, 2.5])),
                move_cost=float(rng.choice([0.0, 0.1, 0.4])),
                arrival=float(rng.integers(3)),
            )
        )
    current: dict[str, Allocation] = {}
    for job in jobs:
        possible = list(allocations_of(job, nodes))
        chosen = possible[rng.integers(len(possible))]
        if rng.random() < 0.7 and not violations(nodes, jobs, {**current, job.job_id: chosen}):
            current[job.job_id] = chosen
    return Problem(nodes=nodes, jobs=_some_pinned(rng, jobs, current), current=current)


problems = st.integers(0, 2**32 - 1).map(random_problem)


def _random_table(rng: np.random.Generator, most: int = 4) -> NDArray[np.float64]:
    table = np.zeros((4, most + 1))
    for nodes in range(1, 4):
        table[nodes, nodes:] = 4 * rng.random(most + 1 - nodes)
    if rng.random() < 0.5:  # as a model gives it: growing, and the number of nodes hardly matters
        table[1, 1:] = np.cumsum(1.2 * rng.random(most))
        for nodes in range(2, 4):
            table[nodes, nodes:] = 0.8 * table[1, nodes:]
    return table


def _some_pinned(rng: np.random.Generator, jobs: list[Job], current: Mapping[str, Allocation]) -> list[Job]:
    """Some of the running jobs become pinned."""
    return [
        Job(
            job_id=job.job_id, resources=job.resources, min_replicas=job.min_replicas, max_replicas=job.max_replicas,
            speedup=job.speedup, weight=job.weight, move_cost=job.move_cost, arrival=job.arrival,
            pinned=bool(current.get(job.job_id)) and rng.random() < 0.15,
        )
        for job in jobs
    ]  # fmt: skip


def on_the_emptiest(
    num_nodes: int, gpus: int, kept: Mapping[str, Allocation], wanted: Sequence[tuple[str, int]]
) -> dict[str, list[tuple[str, int]]]:
    """Fill the emptiest node, said as plainly as possible: who keeps his places does, the others follow in order."""
    free = {f"n{i}": gpus for i in range(num_nodes)}
    answer = {job_id: list(allocation.items()) for job_id, allocation in kept.items()}
    for node, taken in itertools.chain(*answer.values()):
        free[node] -= taken
    for job_id, missing in wanted:
        places = answer.setdefault(job_id, [])
        while missing:
            node = max(free, key=lambda name: free[name])
            taken = min(free[node], missing)
            places.append((node, taken))
            free[node] -= taken
            missing -= taken
    return answer


def allocations_of(job: Job, nodes: Sequence[Node]) -> Iterator[Allocation]:
    """All allocations of one job that are possible if it is alone."""
    for counts in itertools.product(range(job.max_replicas + 1), repeat=len(nodes)):
        allocation = {node.node_id: count for node, count in zip(nodes, counts, strict=True) if count}
        within = not allocation or job.min_replicas <= num_replicas(allocation) <= job.max_replicas
        if within and not violations(nodes, [job], {job.job_id: allocation}):
            yield allocation


def all_allocations(problem: Problem) -> Iterator[dict[str, Allocation]]:
    """All that is possible."""
    held = {job.job_id for job in problem.jobs if job.pinned}
    options = [
        [problem.current[job.job_id]] if job.job_id in held else list(allocations_of(job, problem.nodes))
        for job in problem.jobs
    ]
    for chosen in itertools.product(*options):
        allocations = {job.job_id: allocation for job, allocation in zip(problem.jobs, chosen, strict=True)}
        if not violations(problem.nodes, problem.jobs, allocations, problem.current):
            yield allocations
