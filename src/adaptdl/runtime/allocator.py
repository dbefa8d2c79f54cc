"""The allocator: jobs, nodes and a policy in, allocations to apply out. A plain object; whoever owns it acts.

It is told of jobs and of what their coordinators say (:class:`~adaptdl.runtime.messages.JobStatus`), and asked at
events and at intervals what to change. Nothing here waits, or knows how allocations are sent.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from adaptdl.goodput import JobReport
from adaptdl.policy import Job, Node, Policy
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import JobStatus, Phase
from adaptdl.runtime.nodes import capacity, default_resources_per_replica, holds

__all__ = ["Allocator", "Change"]

logger = logging.getLogger(__name__)

_SMALLEST_MOVE_COST = 0.05
"""A change must be worth 5 % at least: less is within what goodput is known to."""
_LARGEST_MOVE_COST = 0.9
_UNKNOWN_PAUSE_S = 1.0
"""Taken as the pause of a job's reallocation until it was measured, seconds."""
_LONGEST_STAY_S = 60.0
"""A job that has not been changed for long is expected to be left alone for as long again, but no longer than this."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """An allocation to apply."""

    job_id: str
    before: Mapping[str, int]
    after: Mapping[str, int]
    elastic: ElasticConfig
    """The job's config, with its resources."""
    reason: str

    @property
    def growth(self) -> int:
        """Replicas more than before."""
        return sum(self.after.values()) - sum(self.before.values())


@dataclass
class _Entry:
    """What the allocator knows of one job."""

    elastic: ElasticConfig
    arrival: int
    resumes: bool = False
    allocation: dict[str, int] = field(default_factory=dict)
    """Decided last."""
    status: JobStatus | None = None
    changed_at: float = -math.inf
    """When the allocation was decided, monotonic seconds."""

    @property
    def report(self) -> JobReport | None:
        return None if self.status is None else self.status.report

    @property
    def max_profiled_replicas(self) -> int:
        return 0 if self.report is None else self.report.max_profiled_replicas


class Allocator:
    """Decides which job runs where.

    Args:
        policy: divides the nodes among the jobs.
        interval_s: how often it is asked when nothing happens; a pause is weighed against it.
        clock: monotonic seconds.
    """

    def __init__(self, policy: Policy, *, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._interval_s = interval_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._num_arrived = 0
        self._stepped_at = -math.inf
        self._something_happened = False
        self._nodes_seen: list[tuple[str, bool, dict[str, float]]] = []

    # -- what it is told --------------------------------------------------------------------------------------------

    def add_job(self, job_id: str, elastic: ElasticConfig, *, resumes: bool = False) -> None:
        """A job has come, or comes again: after its coordinator was lost, or when it was put aside (`resumes`)."""
        arrival = self._entries[job_id].arrival if job_id in self._entries else self._num_arrived
        self._num_arrived += 1
        self._entries[job_id] = _Entry(elastic=elastic, arrival=arrival, resumes=resumes)
        self._something_happened = True

    def remove_job(self, job_id: str) -> None:
        """A job has ended, or waits for nothing."""
        if self._entries.pop(job_id, None) is not None:
            self._something_happened = True

    def update(self, job_id: str, status: JobStatus) -> None:
        """A coordinator has told how its job stands."""
        entry = self._entries.get(job_id)
        if entry is None:
            return
        before = entry.report
        profiled_before = entry.max_profiled_replicas
        entry.status = status
        if (before is None and entry.report is not None) or entry.max_profiled_replicas > profiled_before:
            self._something_happened = True

    # -- what it decides --------------------------------------------------------------------------------------------

    def is_due(self, nodes: Sequence[Node]) -> bool:
        """Whether there is reason to ask: something has happened, or the interval has passed."""
        passed_s = self._clock() - self._stepped_at
        return self._something_happened or passed_s >= self._interval_s or self._what_matters(nodes) != self._nodes_seen

    def step(self, nodes: Sequence[Node]) -> list[Change]:
        """The allocations to apply now, those that give something back first."""
        self._stepped_at = self._clock()
        self._something_happened = False
        for entry in self._entries.values():
            if entry.elastic.resources_per_replica is None:
                entry.elastic = replace(entry.elastic, resources_per_replica=default_resources_per_replica(nodes))
        self._nodes_seen = self._what_matters(nodes)
        jobs = [job for job_id, entry in self._entries.items() if (job := self._job(job_id, entry, nodes)) is not None]
        if not jobs or not nodes:
            return []
        current = {job_id: dict(entry.allocation) for job_id, entry in self._entries.items() if entry.allocation}
        decision = self._policy.allocate(nodes, jobs, current)
        changes = []
        for job in jobs:
            entry = self._entries[job.job_id]
            after = {node_id: number for node_id, number in decision.allocations[job.job_id].items() if number > 0}
            if after == entry.allocation:
                continue
            changes.append(
                Change(
                    job_id=job.job_id,
                    before=dict(entry.allocation),
                    after=after,
                    elastic=entry.elastic,
                    reason=_reason(job, entry, after, nodes),
                )
            )
            entry.allocation, entry.changed_at = after, self._clock()
        return sorted(changes, key=lambda change: change.growth)

    def infeasible(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Jobs that could not run even if they were alone on these nodes: `job_id` → what to change."""
        found = {}
        for job_id, entry in self._entries.items():
            resources = entry.elastic.resources_per_replica or default_resources_per_replica(nodes)
            room = capacity(nodes, resources)
            if room >= entry.elastic.min_replicas:
                continue
            if room == 0:
                found[job_id] = (
                    f"no node of the cluster can hold a replica with {_text(resources)}; "
                    f"the {len(nodes)} nodes have {_totals(nodes, resources)}. "
                    "Lower `resources_per_replica`, or add nodes."
                )
            else:
                found[job_id] = (
                    "`min_replicas` must not exceed what the cluster holds, but got "
                    f"(min_replicas={entry.elastic.min_replicas}) with {_text(resources)} per replica "
                    f"on a cluster that holds {room}. "
                    "Lower `min_replicas` or `resources_per_replica`, or add nodes."
                )
        return found

    def _what_matters(self, nodes: Sequence[Node]) -> list[tuple[str, bool, dict[str, float]]]:
        """Of the nodes, what the jobs' replicas need."""
        names = {name for entry in self._entries.values() for name in entry.elastic.resources_per_replica or ()}
        return [
            (node.node_id, node.draining, {name: node.resources.get(name, 0.0) for name in names}) for node in nodes
        ]

    # -- jobs as the policy sees them -------------------------------------------------------------------------------

    def _job(self, job_id: str, entry: _Entry, nodes: Sequence[Node]) -> Job | None:
        elastic = entry.elastic
        assert elastic.resources_per_replica is not None
        room = capacity(nodes, elastic.resources_per_replica)
        if room < elastic.min_replicas:
            return None
        num_nodes = max(1, sum(holds(node, elastic.resources_per_replica) > 0 for node in nodes))
        now_replicas = sum(entry.allocation.values())
        if entry.report is None:
            # Nothing is known, and nothing may ever be: a function without a data loop cannot be reallocated.
            most = elastic.min_replicas
            speedup = _linear(num_nodes, most)
        else:
            most = max(elastic.min_replicas, min(room, elastic.max_replicas or room))
            speedup = entry.report.speedup_table(num_nodes, most)
            speedup = _with_way_out(speedup, elastic.min_replicas)
        alive = {node.node_id for node in nodes if not node.draining}
        runs = entry.status is not None and entry.status.phase in (Phase.RUNNING, Phase.STARTING)
        return Job(
            job_id=job_id,
            resources=elastic.resources_per_replica,
            min_replicas=elastic.min_replicas,
            max_replicas=most,
            speedup=speedup,
            move_cost=self._move_cost(entry),
            pinned=entry.report is None and runs and now_replicas > 0 and set(entry.allocation) <= alive,
            arrival=entry.arrival,
        )

    def _move_cost(self, entry: _Entry) -> float:
        """The share that a reallocation takes of the time for which the new allocation is expected to last: the
        interval, or as long as the present one has lasted. So a job that was just changed is not changed for little."""
        pause_s = None if entry.report is None else entry.report.pause_s
        if pause_s is None and entry.status is not None and entry.status.num_restarts > 0:
            pause_s = entry.status.pause_s / entry.status.num_restarts
        stay_s = max(self._interval_s, min(_LONGEST_STAY_S, self._clock() - entry.changed_at))
        share = (_UNKNOWN_PAUSE_S if pause_s is None else pause_s) / stay_s
        return min(_LARGEST_MOVE_COST, max(_SMALLEST_MOVE_COST, share))


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


def _reason(job: Job, entry: _Entry, after: Mapping[str, int], nodes: Sequence[Node]) -> str:
    before = entry.allocation
    k_before, k_after = sum(before.values()), sum(after.values())
    if not before:
        return "resumed" if entry.resumes or entry.report is not None else "start"
    gone = set(before) - {node.node_id for node in nodes if not node.draining}
    if gone:
        return f"{len(gone)} of its nodes are lost or draining"
    if not after:
        return "paused for other trials"
    old, new = job.speedup_at(len(before), k_before), job.speedup_at(len(after), k_after)
    change = f"goodput ×{new / old:.2f}" if old > 0 else "first goodput"
    if k_after > k_before:
        return change
    if k_after < k_before:
        return f"room for other trials, {change}" if new < old else change
    return f"moved, {change}"


def _text(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in resources.items()) + "}"


def _totals(nodes: Sequence[Node], resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name}: {sum(node.resources.get(name, 0.0) for node in nodes):g} "
        f"(at most {max((node.resources.get(name, 0.0) for node in nodes), default=0.0):g} on one)"
        for name in resources
    )
