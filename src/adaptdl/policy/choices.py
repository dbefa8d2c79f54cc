"""What each job could be given, and what that would be worth: the input of the program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.cluster import Job, num_replicas
from adaptdl.policy.instance import Instance
from adaptdl.policy.objective import Objective
from adaptdl.policy.wishes import Options, Wish

__all__ = ["job_options", "sort_equal_wishes"]

STAY_BONUS = 8e-6
"""Decides ties for staying put, in the values' unit: above a solver's tolerance (1e-6), below what matters."""

NEAR_BONUS = 3e-6
"""Decides ties for fewer nodes."""


def job_options(instance: Instance, objective: Objective, kind: NDArray[np.int64]) -> tuple[list[Options], float]:
    """The choices of each job, less those that a smaller choice is as good as; and the unit of their values.

    That is the mean weight, what one replica is worth, or what a job could have at most, on average, if that is less:
    weights are of any size, a solver's tolerances are not.
    """
    stays, singles, spannings = [], [], []
    best: list[float] = []
    for j, job in enumerate(instance.jobs):
        fits = instance.room.fits(instance.need[j])
        standing = instance.standing[j]
        speedup = job.speedup_at(len(standing), num_replicas(standing))
        stay = float(objective.values(job, speedup, moved=False))
        single = _single(job, objective, int(fits.max(initial=0)))
        alone = single[0][1] if single and single[0][0] == 1 else 0.0
        spannable = np.where(instance.room.spannable, fits, 0)
        spanning = _spanning(job, objective, int(np.count_nonzero(spannable)), int(spannable.sum()), alone)
        stays.append(stay)
        singles.append(single)
        spannings.append(spanning)
        best.append(max(stay, single[-1][1] if single else 0.0, max((choice[3] for choice in spanning), default=0.0)))
    possible = [value for value in best if value > 0]
    unit = min(float(np.mean([job.weight for job in instance.jobs])), float(np.mean(possible or [np.inf])))
    options = [
        Options(
            kind=int(kind[j]),
            stay=stays[j] / unit + STAY_BONUS if stays[j] > 0 else 0.0,
            standing=standing,
            near=NEAR_BONUS,
            single=[(k, value / unit) for k, value in singles[j]],
            spanning=[(k, few, many, value / unit) for k, few, many, value in spannings[j]],
        )
        for j, standing in enumerate(instance.standing)
    ]
    return options, unit


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
    replicas = np.arange(max(job.min_replicas, 2), min(job.most_replicas, total) + 1)
    if num_nodes < 2 or not replicas.size:
        return []
    # Nodes beyond the table's last row count as that row, and nobody has more nodes than replicas.
    rows = min(job.speedup.shape[0] - 1, num_nodes, int(replicas[-1]))
    nodes = np.arange(min(2, rows), rows + 1).clip(2)  # (n,), N
    values = objective.values(job, job.speedup[min(2, rows) : rows + 1, replicas], moved=True)  # (n, K)
    most = np.minimum(replicas, num_nodes)
    starts = nodes[:, None] <= most
    starts[1:] &= values[1:] != values[:-1]
    which, row = np.nonzero(starts.T)  # by K and then N
    first = nodes[row]
    last = np.where(np.append(which[1:] == which[:-1], False), np.append(first[1:], 0) - 1, most[which])
    worth = values[row, which]
    better = worth > alone
    num_replicas, most = replicas[which][better], most[which][better]
    first, last, worth = first[better], last[better], worth[better]
    if (first == 2).all() and (last == most).all():
        # N does not matter, so that fewer replicas fit wherever more fit.
        better = np.diff(np.maximum.accumulate(worth), prepend=0.0) > 0
        num_replicas, first, last, worth = num_replicas[better], first[better], last[better], worth[better]
    return list(zip(num_replicas.tolist(), first.tolist(), last.tolist(), worth.tolist(), strict=True))


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
