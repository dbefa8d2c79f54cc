"""What each job could be given, and what that would be worth: the input of the program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.cluster import Job, num_replicas
from adaptdl.policy.instance import Instance
from adaptdl.policy.milp import Options, Wish
from adaptdl.policy.objective import Objective

__all__ = ["job_options", "sort_equal_wishes"]

STAY_BONUS = 8e-6
"""Decides ties for staying put, in units of the mean weight: above a solver's tolerance (1e-6), below what matters."""

NEAR_BONUS = 3e-6
"""Decides ties for fewer nodes."""


def job_options(instance: Instance, objective: Objective, kind: NDArray[np.int64], unit: float) -> list[Options]:
    """The choices of each job, with values in units of `unit`, less those that a smaller choice is as good as."""
    options = []
    for j, job in enumerate(instance.jobs):
        fits = instance.room.fits(instance.need[j])
        standing = instance.standing[j]
        stay = 0.0
        if standing:
            speedup = job.speedup_at(len(standing), num_replicas(standing))
            stay = float(objective.values(job, speedup, moved=False)) / unit
        single = _single(job, objective, int(fits.max(initial=0)))
        alone = single[0][1] if single and single[0][0] == 1 else 0.0
        spannable = np.where(instance.room.spannable, fits, 0)
        spanning = _spanning(job, objective, int(np.count_nonzero(spannable)), int(spannable.sum()), alone)
        options.append(
            Options(
                kind=int(kind[j]),
                stay=stay + STAY_BONUS if stay > 0 else 0.0,
                standing=standing,
                near=NEAR_BONUS,
                single=[(k, value / unit) for k, value in single],
                spanning=[(k, few, many, value / unit) for k, few, many, value in spanning],
            )
        )
    return options


def _single(job: Job, objective: Objective, most: int) -> list[tuple[int, float]]:
    """(K, value) on one node. More replicas that are worth no more are left out: fewer fit wherever they fit."""
    most = min(most, job.most_replicas)
    replicas = np.arange(job.min_replicas, most + 1)
    values = objective.values(job, job.speedup[1, job.min_replicas : most + 1], moved=True)
    better = np.diff(np.maximum.accumulate(values), prepend=0.0) > 0
    return [(int(k), float(value)) for k, value in zip(replicas[better], values[better], strict=True)]


def _spanning(
    job: Job, objective: Objective, num_nodes: int, total: int, alone: float
) -> list[tuple[int, int, int, float]]:
    """(K, fewest N, most N, value) on several nodes, one for each run of N of equal value. `alone` is the value of one
    replica, if that is allowed, which takes less."""
    choices: list[tuple[int, int, int, float]] = []
    if num_nodes < 2:
        return choices
    replicas = np.arange(max(job.min_replicas, 2), min(job.most_replicas, total) + 1)
    # Nodes beyond the table's last row count as that row.
    rows = min(job.speedup.shape[0] - 1, num_nodes)
    values = objective.values(
        job, job.speedup[min(2, rows) : rows + 1, replicas], moved=True
    )  # (rows from N = 2 on, K)
    for k, by_nodes in zip(replicas.tolist(), values.T, strict=True):
        most = min(k, num_nodes)
        by_nodes = by_nodes[: most - 1]
        starts = [n for n in range(len(by_nodes)) if n == 0 or by_nodes[n] != by_nodes[n - 1]]
        for start, end in zip(starts, [*starts[1:], most - 1], strict=True):
            if by_nodes[start] > alone:
                choices.append((k, start + 2, end + 1, float(by_nodes[start])))
    if all(few == 2 and many == min(k, num_nodes) for k, few, many, _ in choices):
        # N does not matter, so that fewer replicas fit wherever more fit.
        best, kept = 0.0, []
        for choice in choices:
            if choice[3] > best:
                best = choice[3]
                kept.append(choice)
        return kept
    return choices


def sort_equal_wishes(instance: Instance, objective: Objective, wishes: Sequence[Wish]) -> list[Wish]:
    """Among waiting jobs that differ in nothing else, the earlier one gets the more valuable wish."""
    sorted_wishes = list(wishes)
    alike: dict[tuple[object, ...], list[int]] = {}
    for j, job in enumerate(instance.jobs):
        if not instance.standing[j]:
            table = (job.speedup.shape, job.speedup.tobytes())
            numbers = (job.min_replicas, job.max_replicas, job.weight, job.move_cost)
            alike.setdefault((instance.need[j].tobytes(), numbers, table), []).append(j)
    for group in alike.values():
        if len(group) > 1:
            job = instance.jobs[group[0]]
            best_first = sorted((wishes[j] for j in group), key=lambda wish: -_value(job, objective, wish))
            for j, wish in zip(group, best_first, strict=True):
                sorted_wishes[j] = wish
    return sorted_wishes


def _value(job: Job, objective: Objective, wish: Wish) -> float:
    return float(objective.values(job, job.speedup_at(len(wish.sizes), sum(wish.sizes)), moved=True))
