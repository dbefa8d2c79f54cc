"""Finishing sooner: jobs with less to do count more.

  n        jobs that are looked at
  r_j      remaining_s: seconds of training to go at a speedup of 1; None if nobody knows
  ρ_j      rank: how many of the n jobs have at least as much to go, 1 ≤ ρ ≤ n; n where r_j is not known
  ε        LEAST: what the longest of many jobs counts beside the shortest one
  weight   w_j · (1 − a + a·max(ρ_j/n, ε))

Were the cluster one machine and its jobs run one after another, a second of work taken off job j would make that job and
all that wait for it a second earlier: with shortest remaining time first these are ρ_j jobs, so that their average
completion time falls by ρ_j/n. (Schrage, 1968, for the order; Berg et al., heSRPT, 2020, for jobs that run side by side
with a concave speedup, where the weights are ranks too.) Ranks rather than times: however long a job is, it counts at
least ε, so that the objective's fairness keeps it from starving. A job of which nothing is known may be short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaptdl.policy.cluster import Job

__all__ = ["LEAST", "by_remaining_time"]

LEAST = 0.4


def by_remaining_time(jobs: Sequence[Job], shortest_first: float) -> list[Job]:
    """The jobs with their weights changed; a is `shortest_first`, from 0 (weights as they are) to 1."""
    if shortest_first == 0 or len(jobs) < 2 or all(job.remaining_s is None for job in jobs):
        return list(jobs)
    remaining = np.array([-math.inf if job.remaining_s is None else job.remaining_s for job in jobs])
    below = np.searchsorted(np.sort(remaining), remaining)  # (n,) jobs with less to go
    share = np.maximum((len(jobs) - below) / len(jobs), LEAST)
    weights = 1 - shortest_first + shortest_first * share
    return [replace(job, weight=job.weight * float(weight)) for job, weight in zip(jobs, weights, strict=True)]
