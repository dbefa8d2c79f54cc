"""A cluster in simulated time: arrivals, jobs that train, nodes that fail, and a policy that is asked.

One turn, from `t` to the next moment at which anything is decided:

1. the next moment: the next multiple of `interval_s`; with `immediate` also the next arrival, end of a job, failure
   or return of a node, or new profile, whichever is first;
2. all jobs train up to it;
3. nodes fail and return; trials that an early stopping rule gives up end;
4. the policy is asked about all jobs that have been submitted and are not complete, and what it answers is applied.

So without `immediate` a job is first looked at in the first round at or after its submission, and one that completes within
a round holds its replicas to the end of it, as in the published simulator (Pollux, OSDI 2021 artifact).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptdl.errors import AdaptDLError, UsageError
from adaptdl.policy import Allocation, Job, Node, Policy, violations
from adaptdl.policy.demand import elastic_job, move_cost
from adaptdl.policy.kin import Kin
from adaptdl.sim.application import split_batch
from adaptdl.sim.job import JobSpec, SimulatedJob
from adaptdl.sim.results import JobResult, Reallocation, Sample, SimulationResult

__all__ = ["Costs", "Outage", "Simulation", "Stopper", "cluster_nodes"]

REPLICA_RESOURCE = "GPU"
"""What a replica needs one of."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What changes cost. Raises UsageError unless all are finite and ≥ 0."""

    start_s: float = 30.0
    """From nothing to the first step."""
    pause_s: float = 30.0
    """From the last step before a reallocation to the first one after it."""
    growth_s: float = 0.0
    """Before such a pause, if replicas are added: how long they take to start, while the job trains on without them.
    0, as in the published simulator: all of it is in `pause_s`."""
    snapshot_interval_s: float = 30.0
    """A job that loses all its replicas at once loses up to as much."""

    def __post_init__(self) -> None:
        for name in ("start_s", "pause_s", "growth_s", "snapshot_interval_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"`{name}` must be finite and >= 0, but got ({name}={value}).")


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A node that is away for a time."""

    node_id: str
    from_s: float
    to_s: float


class Stopper:
    """An early stopping rule of a tuning workload. This one stops nothing."""

    def goes_on(self, spec: JobSpec, rung: int, score: float) -> bool:
        """Whether a trial that has reached rung number `rung` of its `rungs` with `score` goes on."""
        return True


def cluster_nodes(num_nodes: int, replicas_per_node: int, *, prefix: str = "node") -> list[Node]:
    """Nodes that are alike, with room for so many replicas each."""
    digits = len(str(num_nodes - 1))
    return [
        Node(node_id=f"{prefix}-{i:0{digits}}", resources={REPLICA_RESOURCE: float(replicas_per_node)})
        for i in range(num_nodes)
    ]


class Simulation:
    """One run. Same arguments, same result."""

    def __init__(
        self,
        *,
        nodes: Sequence[Node],
        workload: Sequence[JobSpec],
        policy: Policy,
        interval_s: float = 60.0,
        costs: Costs | None = None,
        immediate: bool = False,
        adaptive: bool = True,
        exclusive: bool = True,
        outages: Sequence[Outage] = (),
        stopper: Stopper | None = None,
        max_concurrent: int | None = None,
        kin: bool = True,
        profile_s: float = 10.0,
        resolution_s: float = 1.0,
        longest_s: float = 1e7,
        on_turn: Callable[[float, int], None] | None = None,
    ) -> None:
        """
        Args:
            nodes: the cluster; a replica needs one "GPU".
            workload: the jobs.
            policy: divides the nodes among them.
            interval_s: how often it is asked.
            costs: of changes.
            immediate: whether it is asked at events too, as the real allocator is.
            adaptive: whether jobs choose their batch size by goodput and say what more replicas would be worth; else
                they train with the batch size that was requested, and the policy is told what nobody could know: the
                true step times and steps to go.
            exclusive: whether allocations are checked for nodes shared by jobs that span nodes.
            outages: when nodes are away.
            stopper: which trials end early.
            max_concurrent: so many jobs at a time; the next one is submitted when one of them ends.
            kin: whether what is learnt of a job is used for others of the same application.
            profile_s: with `immediate`, seconds of training after which a new number of replicas counts as profiled.
            resolution_s: epochs end at multiples of it.
            longest_s: after so much simulated time with jobs left the run is given up.
            on_turn: called with the time and the number of complete jobs, at each turn.

        Raises:
            UsageError: jobs of the same name, an unknown node in an outage, or numbers out of range.
        """
        if not (interval_s > 0 and profile_s > 0 and resolution_s >= 0):
            raise UsageError(
                "`interval_s > 0`, `profile_s > 0` and `resolution_s >= 0` must hold, but got "
                f"(interval_s={interval_s}, profile_s={profile_s}, resolution_s={resolution_s})."
            )
        if max_concurrent is not None and max_concurrent < 1:
            raise UsageError(f"`max_concurrent >= 1` must hold, but got (max_concurrent={max_concurrent}).")
        names = [spec.job_id for spec in workload]
        if len(set(names)) < len(names):
            raise UsageError("each job of a workload must have a name of its own, but some have the same.")
        unknown = {outage.node_id for outage in outages} - {node.node_id for node in nodes}
        if unknown:
            raise UsageError(f"outages must be of nodes of the cluster, but got {', '.join(sorted(unknown))}.")
        self._nodes = list(nodes)
        self._waiting = sorted(workload, key=lambda spec: spec.submitted_s)
        self._policy, self._interval_s, self._costs = policy, interval_s, costs or Costs()
        self._immediate, self._adaptive, self._exclusive = immediate, adaptive, exclusive
        self._outages, self._stopper = sorted(outages, key=lambda outage: outage.from_s), stopper
        self._max_concurrent = len(names) if max_concurrent is None else max_concurrent
        self._full = False
        """Whether jobs are held back by `max_concurrent`."""
        self._profile_s, self._resolution_s, self._longest_s = profile_s, resolution_s, longest_s
        self._on_turn = on_turn or (lambda now_s, num_complete: None)
        self._kin = Kin() if kin else None
        self._now_s = 0.0
        self._rounds = 0
        self._jobs: list[SimulatedJob] = []
        """In the order of their arrival, complete ones included."""
        self._samples: list[Sample] = []
        self._reallocations: list[Reallocation] = []

    # -- time -------------------------------------------------------------------------------------------------------

    def run(self) -> SimulationResult:
        """Until all jobs are complete.

        Raises:
            AdaptDLError: jobs are left after `longest_s`, or an allocation was not possible.
        """
        while self._waiting or any(not job.is_complete for job in self._jobs):
            self._turn()
            if self._now_s > self._longest_s:
                raise AdaptDLError(f"after {self._now_s:g} simulated seconds jobs were not complete: {self._left()}")
        return SimulationResult(
            jobs=tuple(_result(job) for job in self._jobs),
            samples=tuple(self._samples),
            reallocations=tuple(self._reallocations),
            num_replicas=int(sum(node.resources.get(REPLICA_RESOURCE, 0.0) for node in self._nodes)),
            ended_s=self._now_s,
        )

    def _turn(self) -> None:
        before_s, until_s = self._now_s, self._next_s()
        active = self._active()
        self._sample(active, until_s)
        for job in active:
            if not job.is_complete:
                job.advance(until_s - before_s, before_s)
        self._now_s = until_s
        if until_s >= (self._rounds + 1) * self._interval_s:
            self._rounds += 1
        self._stop_early(active)
        for job in active:
            if job.is_complete:
                job.allocation, job.members = {}, {}
        self._fail_nodes(before_s)
        self._submit()
        self._allocate()
        self._on_turn(self._now_s, sum(job.is_complete for job in self._jobs))

    def _submit(self) -> None:
        """All that are due, as far as there is room for more jobs. Those held back count as submitted when there is."""
        room, was_full, self._full = self._max_concurrent - len(self._active()), self._full, False
        while self._waiting and self._waiting[0].submitted_s <= self._now_s:
            if not room:
                self._full = True
                return
            spec = self._waiting.pop(0)
            if was_full:
                spec = dataclasses.replace(spec, submitted_s=self._now_s)
            self._jobs.append(SimulatedJob(spec=spec, adaptive=self._adaptive, resolution_s=self._resolution_s))
            room -= 1

    def _active(self) -> list[SimulatedJob]:
        return [job for job in self._jobs if not job.is_complete]

    def _next_s(self) -> float:
        """The next moment at which anything is decided."""
        next_s = (self._rounds + 1) * self._interval_s
        if self._immediate:
            if self._waiting and not self._full:
                next_s = min(next_s, self._waiting[0].submitted_s)
            for outage in self._outages:
                next_s = min([next_s, *(at for at in (outage.from_s, outage.to_s) if at > self._now_s)])
            for job in self._active():
                if self._adaptive and job.allocation and job.num_replicas > job.max_profiled_replicas:
                    next_s = min(next_s, self._now_s + job.settles_s + self._profile_s)
        if self._immediate or self._stopper is not None:
            for job in self._active():
                next_s = min(next_s, self._notable_s(job, next_s))
        return max(next_s, self._now_s)

    def _notable_s(self, job: SimulatedJob, limit_s: float) -> float:
        """When the job completes or reaches a rung, if before `limit_s`; infinity if not."""
        if not job.allocation:
            return math.inf
        rungs = job.spec.rungs if self._stopper is not None else ()
        until = next((epochs for epochs, _ in rungs if epochs > job.epoch), None)
        twin = job.saved()
        used_s = twin.advance(limit_s - self._now_s, self._now_s, until=until)
        return self._now_s + used_s if twin.is_complete or twin.epoch == until else math.inf

    def _left(self) -> str:
        names = [job.job_id for job in self._active()] + [spec.job_id for spec in self._waiting]
        return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

    # -- what happens -----------------------------------------------------------------------------------------------

    def _stop_early(self, jobs: Sequence[SimulatedJob]) -> None:
        if self._stopper is None:
            return
        for job in jobs:
            for rung, (epochs, score) in enumerate(job.spec.rungs):
                at_rung = epochs == job.epoch and rung not in job.rungs_passed
                if at_rung and not job.is_complete:
                    job.rungs_passed.add(rung)
                    if not self._stopper.goes_on(job.spec, rung, score):
                        job.completed_s, job.stopped = self._now_s, True

    def _fail_nodes(self, since_s: float) -> None:
        """Jobs lose their replicas on nodes that have failed since then; those without any left lose training, too."""
        gone = {outage.node_id: outage.from_s for outage in self._outages if since_s < outage.from_s <= self._now_s}
        for job in self._active():
            failed_s = min((gone[node_id] for node_id in job.allocation if node_id in gone), default=None)
            if failed_s is None:
                continue
            left = {node_id: count for node_id, count in job.allocation.items() if node_id not in gone}
            survivors = sum(count for node_id, count in job.members.items() if node_id not in gone)
            if min(sum(left.values()), survivors) < job.spec.min_replicas:
                left = {}
                age_s = max(failed_s - max(job.changed_s, 0.0), 0.0) % max(self._costs.snapshot_interval_s, 1e-9)
                job.lose(job.rate() * max(age_s + self._now_s - failed_s - job.delay_s, 0.0))
            self._reallocate(job, left)

    def _alive(self) -> list[Node]:
        away = {outage.node_id for outage in self._outages if outage.from_s <= self._now_s < outage.to_s}
        return [node for node in self._nodes if node.node_id not in away]

    def _allocate(self) -> None:
        nodes, active = self._alive(), self._active()
        if not nodes or not active:
            return
        room = int(sum(node.resources.get(REPLICA_RESOURCE, 0.0) for node in nodes))
        active = [job for job in active if job.spec.min_replicas <= room]
        if self._kin is not None:
            for job in self._jobs:
                self._kin.learn(job.spec.application.name, job.report())
        jobs = [self._job(job, nodes, room) for job in active]
        current = {job.job_id: job.allocation for job in active if job.allocation}
        decision = self._policy.allocate(nodes, jobs, current)
        wrong = violations(nodes, jobs, decision.allocations, current)
        if not self._exclusive:
            wrong = [line for line in wrong if not line.endswith("that span nodes")]
        if wrong:
            raise AdaptDLError(f"the policy's allocations are not possible: {'; '.join(wrong)}")
        for job in active:
            allocation = decision.allocations.get(job.job_id, {})
            if dict(allocation) != dict(job.allocation):
                self._reallocate(job, allocation)

    def _reallocate(self, job: SimulatedJob, allocation: Allocation) -> None:
        self._reallocations.append(
            Reallocation(time_s=self._now_s, job_id=job.job_id, before=dict(job.allocation), after=dict(allocation))
        )
        delay_s = self._costs.pause_s if job.allocation else self._costs.start_s
        job.reallocate(allocation, delay_s, self._now_s, boot_s=self._costs.growth_s)

    # -- jobs as the policy sees them -------------------------------------------------------------------------------

    def _job(self, job: SimulatedJob, nodes: Sequence[Node], room: int) -> Job:
        spec = job.spec
        most = max(spec.min_replicas, min(room, spec.max_replicas or room, spec.application.max_replicas))
        if not self._adaptive:
            return self._informed_job(job, nodes, most)
        report = job.report()
        return elastic_job(
            job.job_id,
            report if self._kin is None else self._kin.informed(spec.application.name, report),
            resources={REPLICA_RESOURCE: 1.0},
            min_replicas=spec.min_replicas,
            max_replicas=most,
            num_nodes=min(len(nodes), 2),  # the model knows one node and several
            allocation=job.allocation,
            pause_s=self._costs.pause_s,
            arrival=spec.submitted_s,
            service_s=job.service_s,
        )

    def _informed_job(self, job: SimulatedJob, nodes: Sequence[Node], most: int) -> Job:
        """A job with a fixed batch size, with the truth about its step times and steps to go.

        Step times are those on as few nodes as possible, whatever the number of nodes.
        """
        spec, application = job.spec, job.spec.application
        batch_size = spec.requested_batch_size or application.init_batch_size
        low = application.bounds.local_bsz_bounds[0] if application.bounds.local_bsz_bounds else 1
        most = max(1, min(most, application.max_replicas, batch_size // low))
        size = int(max(node.resources.get(REPLICA_RESOURCE, 0.0) for node in nodes))
        times = np.array([_fixed_step_time_s(spec, batch_size, k, size) for k in range(1, most + 1)])
        table = np.zeros((2, most + 1))
        table[1, 1:] = times[0] / times
        last = len(application.epoch_ends) - 1
        left = application.iterations(last, batch_size) - application.iterations(min(job.epoch, last), batch_size)
        requested = max(spec.min_replicas, min(spec.requested_replicas, spec.max_replicas or spec.requested_replicas))
        return Job(
            job_id=job.job_id,
            resources={REPLICA_RESOURCE: 1.0},
            min_replicas=spec.min_replicas,
            max_replicas=max(most, requested),
            speedup=table,
            move_cost=0.0 if not job.allocation else move_cost(self._costs.pause_s, left_s=None),
            arrival=spec.submitted_s,
            requested_replicas=requested,
            service_s=job.service_s,
            remaining_s=float(times[0]) * (left if left > 0 else 1.0),
        )

    # -- what is written down ---------------------------------------------------------------------------------------

    def _sample(self, active: Sequence[SimulatedJob], until_s: float) -> None:
        self._samples.append(
            Sample(
                from_s=self._now_s,
                to_s=until_s,
                num_waiting=sum(not job.allocation for job in active),
                num_running=sum(bool(job.allocation) for job in active),
                replicas={job.job_id: job.num_replicas for job in active if job.allocation},
                batch_sizes={job.job_id: job.batch_size for job in active if job.allocation},
                num_nodes=len(self._alive()),
            )
        )


def _fixed_step_time_s(spec: JobSpec, batch_size: int, num_replicas: int, node_size: int) -> float:
    """Of the requested batch size on as few nodes as possible; infinite where nothing is known of it."""
    application = spec.application
    shape = (node_size,) * (num_replicas // node_size)
    if num_replicas % node_size:
        shape = (*shape, num_replicas % node_size)
    split = split_batch(application, num_replicas, batch_size)
    return application.step_times(shape, split.atomic_batch_size).with_accumulation(split.accum_steps)


def _result(job: SimulatedJob) -> JobResult:
    assert job.completed_s is not None
    return JobResult(
        job_id=job.job_id,
        application=job.spec.application.name,
        submitted_s=job.spec.submitted_s,
        completed_s=job.completed_s,
        stopped=job.stopped,
        num_restarts=job.num_restarts,
        service_s=job.service_s,
        waited_s=job.waited_s,
        progress=job.progress,
        lost_progress=job.lost_progress,
        score=job.spec.score,
    )
