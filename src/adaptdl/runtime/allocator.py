"""The allocator: jobs, nodes and a policy in, allocations to apply out. A plain object; whoever owns it acts.

It is told of jobs and of what their coordinators say (:class:`~adaptdl.runtime.messages.JobStatus`), and asked at
events and at intervals what to change. Nothing here waits, or knows how allocations are sent.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adaptdl.goodput import JobReport
from adaptdl.policy import Job, Node, Policy
from adaptdl.policy.demand import elastic_job
from adaptdl.policy.kin import Kin
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import JobStatus, Phase
from adaptdl.runtime.nodes import Rooms, default_resources_per_replica

__all__ = ["Allocator", "Change"]

logger = logging.getLogger(__name__)


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
    kind: str
    resumes: bool = False
    allocation: dict[str, int] = field(default_factory=dict)
    """Decided last."""
    status: JobStatus | None = None

    @property
    def report(self) -> JobReport | None:
        return None if self.status is None else self.status.report

    @property
    def max_profiled_replicas(self) -> int:
        return 0 if self.report is None else self.report.max_profiled_replicas

    @property
    def pause_s(self) -> float | None:
        """Of one reallocation; None if there was none."""
        if self.report is not None and self.report.pause_s is not None:
            return self.report.pause_s
        if self.status is not None and self.status.num_restarts > 0:
            return self.status.pause_s / self.status.num_restarts
        return None


class Allocator:
    """Decides which job runs where.

    Args:
        policy: divides the nodes among the jobs.
        interval_s: how often it is asked when nothing happens.
        clock: monotonic seconds.
    """

    def __init__(self, policy: Policy, *, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._interval_s = interval_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._kin = Kin()
        self._num_arrived = 0
        self._stepped_at = -math.inf
        self._something_happened = False
        self._nodes_seen: list[tuple[str, bool, dict[str, float]]] = []

    # -- what it is told --------------------------------------------------------------------------------------------

    def add_job(self, job_id: str, elastic: ElasticConfig, *, resumes: bool = False, kind: str | None = None) -> None:
        """A job has come, or comes again: after its coordinator was lost, or when it was put aside (`resumes`). What is learnt of
        one job is used for others of its `kind`; None: it has none like it."""
        arrival = self._entries[job_id].arrival if job_id in self._entries else self._num_arrived
        self._num_arrived += 1
        self._entries[job_id] = _Entry(
            elastic=elastic, arrival=arrival, kind=f"job {job_id}" if kind is None else kind, resumes=resumes
        )
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
        self._kin.learn(entry.kind, status.report)
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
        default = default_resources_per_replica(nodes)
        for entry in self._entries.values():
            if entry.elastic.resources_per_replica is None:
                entry.elastic = replace(entry.elastic, resources_per_replica=default)
        self._nodes_seen = self._what_matters(nodes)
        rooms, alive = Rooms(nodes), frozenset(node.node_id for node in nodes if not node.draining)
        jobs = [
            job
            for job_id, entry in self._entries.items()
            if (job := self._job(job_id, entry, rooms, alive)) is not None
        ]
        pauses = self._pauses(rooms, alive)
        changes = list(pauses)
        if jobs and nodes:
            changes += self._divide(nodes, jobs, alive, paused={change.job_id for change in pauses})
        for change in changes:
            self._entries[change.job_id].allocation = dict(change.after)
        return sorted(changes, key=lambda change: change.growth)

    def _divide(
        self, nodes: Sequence[Node], jobs: Sequence[Job], alive: frozenset[str], paused: Collection[str]
    ) -> list[Change]:
        """What the policy wants to be changed."""
        current = {
            job_id: dict(entry.allocation)
            for job_id, entry in self._entries.items()
            if entry.allocation and job_id not in paused
        }
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
                    reason=_reason(job, entry, after, alive),
                )
            )
        return changes

    def infeasible(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Jobs that could not run even if they were alone on these nodes: `job_id` → what to change."""
        found, rooms, default = {}, Rooms(nodes), default_resources_per_replica(nodes)
        for job_id, entry in self._entries.items():
            resources = entry.elastic.resources_per_replica or default
            room = rooms.of(resources).num_replicas
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

    def _pauses(self, rooms: Rooms, alive: frozenset[str]) -> list[Change]:
        """Jobs that the nodes have no room for any more leave those that are draining, as long as they can."""
        changes = []
        for job_id, entry in self._entries.items():
            assert entry.elastic.resources_per_replica is not None
            room = rooms.of(entry.elastic.resources_per_replica).num_replicas
            gone = set(entry.allocation) - alive
            if gone and room < entry.elastic.min_replicas:
                reason = f"{len(gone)} of its nodes are lost or draining, and there is no room for it"
                changes.append(
                    Change(job_id=job_id, before=dict(entry.allocation), after={}, elastic=entry.elastic, reason=reason)
                )
        return changes

    def _what_matters(self, nodes: Sequence[Node]) -> list[tuple[str, bool, dict[str, float]]]:
        """Of the nodes, what the jobs' replicas need."""
        names = {name for entry in self._entries.values() for name in entry.elastic.resources_per_replica or ()}
        return [
            (node.node_id, node.draining, {name: node.resources.get(name, 0.0) for name in names}) for node in nodes
        ]

    # -- jobs as the policy sees them -------------------------------------------------------------------------------

    def _job(self, job_id: str, entry: _Entry, rooms: Rooms, alive: frozenset[str]) -> Job | None:
        elastic = entry.elastic
        assert elastic.resources_per_replica is not None
        room, num_nodes = rooms.of(elastic.resources_per_replica)
        if room < elastic.min_replicas:
            return None
        runs = entry.status is not None and entry.status.phase in (Phase.RUNNING, Phase.STARTING)
        return elastic_job(
            job_id,
            self._kin.informed(entry.kind, entry.report),
            resources=elastic.resources_per_replica,
            min_replicas=elastic.min_replicas,
            max_replicas=max(elastic.min_replicas, min(room, elastic.max_replicas or room)),
            num_nodes=min(2, max(1, num_nodes)),
            allocation=entry.allocation,
            pause_s=entry.pause_s,
            arrival=entry.arrival,
            # A function without a data loop never reports, and cannot be reallocated.
            pinned=entry.report is None and runs and bool(entry.allocation) and set(entry.allocation) <= alive,
        )


def _reason(job: Job, entry: _Entry, after: Mapping[str, int], alive: frozenset[str]) -> str:
    before = entry.allocation
    k_before, k_after = sum(before.values()), sum(after.values())
    if not before:
        return "resumed" if entry.resumes or entry.report is not None else "start"
    gone = set(before) - alive
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
