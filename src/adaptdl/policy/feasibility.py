"""Whether allocations are possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from adaptdl.policy.cluster import Allocation, Job, Node, num_nodes, num_replicas

__all__ = ["TOLERANCE", "violations"]

TOLERANCE = 1e-6
"""Amounts of resources may be fractions: so much more than there is still counts as rounding."""


def violations(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    allocations: Mapping[str, Allocation],
    current: Mapping[str, Allocation] | None = None,
) -> list[str]:
    """All that is wrong with `allocations`, in words; empty if nothing.

    Resources of each node suffice, a draining node has nothing but what is pinned there, each job has 0 or
    `min_replicas` to `max_replicas` replicas, at most one job that spans nodes stands on any node (two would fight for
    its network), and nobody is unknown. With `current`: pinned jobs are where they were, if their nodes still exist.
    """
    known, places = {job.job_id: job for job in jobs}, {node.node_id: node for node in nodes}
    found: list[str] = []
    used: dict[str, dict[str, float]] = {node_id: {} for node_id in places}
    spanning: Counter[str] = Counter()
    for job_id, allocation in allocations.items():
        job = known.get(job_id)
        if job is None:
            found.append(f"job {job_id!r} is unknown")
            continue
        before = (current or {}).get(job_id, {})
        held = job.pinned and bool(before) and set(before) <= set(places)
        if held and dict(before) != dict(allocation):
            found.append(f"job {job_id!r} is pinned and was moved")
        found += _limits(job, allocation)
        for node_id, count in allocation.items():
            if node_id not in places:
                found.append(f"job {job_id!r} is on node {node_id!r}, which is unknown")
                continue
            if places[node_id].draining and not held:
                found.append(f"job {job_id!r} is on node {node_id!r}, which is draining")
            for name, amount in job.resources.items():
                used[node_id][name] = used[node_id].get(name, 0.0) + amount * count
            spanning[node_id] += num_nodes(allocation) > 1
    for node_id, amounts in used.items():
        for name, amount in amounts.items():
            available = places[node_id].resources.get(name, 0.0)
            if amount > available + TOLERANCE:
                found.append(f"node {node_id!r} has {available:g} of {name!r}, but {amount:g} are given away")
        if spanning[node_id] > 1:
            found.append(f"node {node_id!r} has {spanning[node_id]} jobs that span nodes")
    if current is not None:
        for job in jobs:
            before = current.get(job.job_id, {})
            if job.pinned and before and set(before) <= set(places) and job.job_id not in allocations:
                found.append(f"job {job.job_id!r} is pinned and was moved")
    return found


def _limits(job: Job, allocation: Allocation) -> list[str]:
    found = [
        f"job {job.job_id!r} has {count} replicas on node {node_id!r}"
        for node_id, count in allocation.items()
        if count < 1 or count != int(count)
    ]
    total = num_replicas(allocation)
    if allocation and not job.min_replicas <= total <= job.max_replicas:
        found.append(f"job {job.job_id!r} has {total} replicas, not {job.min_replicas} to {job.max_replicas} or none")
    return found
