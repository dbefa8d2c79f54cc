"""From what a job says of itself to what a policy is told of it: one rule for the real allocator and for the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adaptdl.goodput import JobReport
from adaptdl.goodput.report import unit_goodput
from adaptdl.policy.cluster import Allocation, Job, num_replicas

__all__ = ["elastic_job", "move_cost"]

SMALLEST_MOVE_COST = 0.05
"""A change must be worth 5 % at least: less is within what goodput is known to."""

LARGEST_MOVE_COST = 0.9

UNKNOWN_PAUSE_S = 1.0
"""Taken as the pause of a job's reallocation until it was measured, seconds."""

LONGEST_STAY_S = 300.0
"""Nobody knows what will come: an allocation is expected to last no longer than this. (Simulated with reallocations of
30 s, 300 and 600 gave equal completion times, 300 with fewer reallocations.)"""


def elastic_job(
    job_id: str,
    report: JobReport | None,
    *,
    resources: Mapping[str, float],
    min_replicas: int,
    max_replicas: int,
    num_nodes: int,
    allocation: Allocation,
    pause_s: float | None,
    arrival: float,
    pinned: bool = False,
    weight: float = 1.0,
    service_s: float = 0.0,
) -> Job:
    """A job whose replicas and batch size may be changed, as a policy sees it.

    `max_replicas` is what the job allows and the cluster of `num_nodes` nodes has room for. Without a report nothing
    is known, and nothing may ever be (a function without a data loop cannot be reallocated): it gets `min_replicas`.
    `allocation` is what it has at present, `pause_s` what a reallocation of it costs, None if that is not known.
    """
    if report is None:
        max_replicas, unit = min_replicas, 0.0
        speedup = _linear(num_nodes, max_replicas)
    else:
        goodput = report.goodput_table(num_nodes, max_replicas)
        unit = unit_goodput(goodput)
        speedup = _with_way_out(goodput / unit if unit else goodput, min_replicas)
    remaining_s = None if report is None else _remaining_s(report, unit)
    job = Job(
        job_id=job_id,
        resources=resources,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        speedup=speedup,
        weight=weight,
        pinned=pinned,
        arrival=arrival,
        service_s=service_s,
        remaining_s=remaining_s,
    )
    if not allocation:
        return job  # a start costs what it costs, now or later
    now = job.speedup_at(len(allocation), num_replicas(allocation))
    left_s = remaining_s / now if remaining_s is not None and now > 0 else None
    return replace(job, move_cost=move_cost(pause_s, left_s=left_s))


def move_cost(pause_s: float | None, *, left_s: float | None) -> float:
    """The share that a reallocation takes of the time for which the new allocation is expected to last.

    That is until the job ends, after `left_s` seconds at its present speed (None: nobody knows), but no longer than
    LONGEST_STAY_S. So a job that is about to end is left alone.
    """
    stay_s = LONGEST_STAY_S if left_s is None else min(left_s, LONGEST_STAY_S)
    share = (UNKNOWN_PAUSE_S if pause_s is None else pause_s) / max(stay_s, 1e-9)
    return min(LARGEST_MOVE_COST, max(SMALLEST_MOVE_COST, share))


def _remaining_s(report: JobReport, unit: float) -> float | None:
    """Seconds to go at a speedup of 1, which is a goodput of `unit`."""
    if report.remaining_progress is None or report.perf_params is None or report.bounds is None:
        return None
    samples = report.remaining_progress * report.bounds.init_batch_size
    return samples / unit if samples > 0 and unit > 0 else None


def _linear(num_nodes: int, num_replicas: int) -> NDArray[np.float64]:
    """Perfect scaling on any number of nodes, as far as it can go."""
    nodes = np.arange(num_nodes + 1)[:, None]
    replicas = np.arange(num_replicas + 1)[None, :]
    table: NDArray[np.float64] = np.where((nodes >= 1) & (nodes <= replicas), replicas, 0).astype(np.float64)
    return table


def _with_way_out(speedup: NDArray[np.float64], min_replicas: int) -> NDArray[np.float64]:
    """`speedup`, but with `min_replicas` possible whatever it says: a job must be able to run at all."""
    if speedup[:, min_replicas:].any():
        return speedup
    table = speedup.copy()
    table[1:, min_replicas] = _linear(speedup.shape[0] - 1, min_replicas)[1:, min_replicas]
    return table
