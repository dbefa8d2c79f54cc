"""How many nodes a cluster should have: advice for whoever rents them. Nothing here adds, removes or evicts anything.

  n                nodes of one kind, of which a cluster is imagined
  s_j(n)           speedup of job j with what the policy gives it there                                 ≥ 0
  d_jr             what one replica of job j needs of resource r                                        ≥ 0
  c_r              the most of r that replicas of one job can fill on one node                          > 0
  utilisation(n)   max_r Σ_j s_j(n)·d_jr / (n·c_r): useful work over what the cluster holds             [0, 1]

If all replicas need the same, utilisation is Σ_j s_j(n) over the number of replicas that the cluster holds: its scaling
efficiency. Otherwise the resource that is put to most use decides.

Utilisation falls with n, and what else is asked about here holds from some n on. So each answer is found in about
2·log₂(n) questions to the policy. That is true apart from ripples (nodes and jobs do not divide; a job that needs many
replicas leaves nodes idle until there are enough; a fair policy does not maximise the total). Where there are any, an
answer is one of the crossings, for utilisation one of the last: the next size was looked at and is on the other side.
Sizes are looked at along one fixed tree (…, 8, 4, 2, 1 and the middles between), in which only those within the bounds
cost anything. So asking for more utilisation (a higher `low` or `high`) never gives more nodes, ripples or not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError
from adaptdl.policy.cluster import Allocation, Job, Node, num_nodes, num_replicas
from adaptdl.policy.instance import Instance
from adaptdl.policy.optimal import OptimalPolicy
from adaptdl.policy.policy import Policy

__all__ = ["Advice", "advise"]

ALL_OF_IT = 0.999
"""Share of the greatest total speedup that counts as all of it: what is missing is not worth a node."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Sizes of a cluster, in nodes: `smallest <= best <= largest`, all within the bounds.

    A cluster between `smallest` and `largest` is well as it is; another one is best made `best`.
    """

    smallest: int
    """With fewer, somebody who runs would have nothing, or somebody would wait for nodes that would be used well."""
    best: int
    """As many as are used well, less those that would bring nothing."""
    largest: int
    """More would be used with less than `low`."""
    utilisation: float | None
    """At `best`, 0 for a cluster without nodes; None if there was no time to look."""
    by_nodes: Mapping[int, float]
    """Utilisation at all sizes that were looked at, in order."""
    in_time: bool
    """If not, the advice is to leave the cluster as it is, as far as the bounds allow."""


def advise(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    current: Mapping[str, Allocation],
    *,
    template: Mapping[str, float],
    low: float,
    high: float,
    min_nodes: int = 0,
    max_nodes: int,
    policy: Policy | None = None,
    time_limit_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Advice:
    """How many nodes with the resources `template` are worth having for `jobs`, allocated by `policy` (default: the
    optimal one). Raises UsageError unless `0 < low <= high <= 1` and `0 <= min_nodes <= max_nodes`.

    `largest` is the most nodes that are used with at least `low`. `smallest` is the fewest of these with which every job
    has something, or of which neither they nor any more are used with more than `high`. Two things go before `low`: the
    policy would not take everything from a job that runs (one with an allocation on `nodes` in `current`), nor leave
    all jobs without anything. Nodes that pinned jobs stand on are needed. Only `max_nodes` goes before that, and what
    becomes of whom is decided elsewhere.

    Jobs that such nodes do not hold play no part, nor do moves: it is not said which nodes are to go. The time limit
    is looked at between questions to the policy, of which each has limits of its own. They are about clusters that do
    not exist: a policy that remembers what it is asked needs an object of its own for this.
    """
    _check(low, high, min_nodes, max_nodes, time_limit_s)
    deadline = clock() + time_limit_s
    if policy is None:
        policy = OptimalPolicy(time_limit_s=time_limit_s, clock=clock)
    sizes = _Sizes(jobs, template, policy, lambda: clock() > deadline)
    running = _Running.of(nodes, current, sizes.jobs)
    in_time = True
    try:
        smallest, best, largest = _search(sizes, running, low, high, min_nodes, max_nodes)
    except _OutOfTimeError:
        smallest = best = largest = min(max(len(nodes), min_nodes), max_nodes)
        in_time = False
    by_nodes = sizes.by_nodes()
    return Advice(
        smallest=smallest,
        best=best,
        largest=largest,
        utilisation=by_nodes.get(best) if best else 0.0,
        by_nodes=by_nodes,
        in_time=in_time,
    )


def _check(low: float, high: float, min_nodes: int, max_nodes: int, time_limit_s: float) -> None:
    if not 0 < low <= high <= 1:
        raise UsageError(f"`0 < low <= high <= 1` must hold, but got (low={low}, high={high}).")
    if not 0 <= min_nodes <= max_nodes:
        raise UsageError(
            f"`0 <= min_nodes <= max_nodes` must hold, but got (min_nodes={min_nodes}, max_nodes={max_nodes})."
        )
    if not time_limit_s > 0:
        raise UsageError(f"`time_limit_s > 0` must hold, but got (time_limit_s={time_limit_s}).")


@dataclass(frozen=True, kw_only=True)
class _Running:
    """What must not be lost."""

    jobs: frozenset[str]
    """Those that have something now."""
    pinned_nodes: int
    """Number of nodes that cannot go."""

    @classmethod
    def of(cls, nodes: Sequence[Node], current: Mapping[str, Allocation], jobs: Sequence[Job]) -> _Running:
        there = {node.node_id for node in nodes}
        on = {
            job.job_id: there & {node for node, count in current.get(job.job_id, {}).items() if count} for job in jobs
        }
        return cls(
            jobs=frozenset(job_id for job_id, stands in on.items() if stands),
            pinned_nodes=len(set[str]().union(*(on[job.job_id] for job in jobs if job.pinned))),
        )

    def keep(self, size: _Size, n: int) -> bool:
        """Whether nobody is evicted on n nodes."""
        return n >= self.pinned_nodes and self.jobs <= size.served


def _search(
    sizes: _Sizes, running: _Running, low: float, high: float, min_nodes: int, max_nodes: int
) -> tuple[int, int, int]:
    """The smallest, best and largest size."""
    greatest = sizes.at(max_nodes)
    running = dataclasses.replace(running, jobs=running.jobs & greatest.served)
    # With so many nodes anybody who still waits has to.
    well_used = _last(lambda n: sizes.utilisation(n) >= low, min_nodes, max_nodes)
    too_full = _last(lambda n: sizes.utilisation(n) > high, min_nodes, max_nodes)
    most = max(min(well_used, too_full + 1), min_nodes)
    smallest = _first(lambda n: greatest.served <= sizes.at(n).served, min_nodes, most)

    def bearable(n: int) -> bool:
        size = sizes.at(n)
        return running.keep(size, n) and (bool(size.served) or not greatest.served)

    smallest = _first(bearable, smallest, max_nodes)
    largest = max(well_used, smallest)
    best = _first(lambda n: sizes.at(n).speedup >= ALL_OF_IT * greatest.speedup, smallest, largest)
    # Ripples again: more nodes than the smallest size, and yet somebody has nothing.
    best = next((n for n in range(best, largest) if bearable(n)), largest)
    sizes.at(best)
    return smallest, best, largest


def _last(holds: Callable[[int], bool], least: int, most: int) -> int:
    """The last n up to `most` at which `holds`, which is true before and false after; least − 1 if it is before `least`."""
    return _first(lambda n: not holds(n), least, most + 1) - 1


def _first(holds: Callable[[int], bool], least: int, most: int) -> int:
    """The first n from `least` on at which `holds`, which is false before and true after; `most` if it is that far."""

    def known_or_holds(n: int) -> bool:
        return n >= most or (n >= least and holds(n))

    above = 1
    while above < most:
        above *= 2
    while above > 1 and known_or_holds(above // 2):
        above //= 2
    if above == 1 and known_or_holds(0):
        return 0
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        if known_or_holds(middle):
            above = middle
        else:
            below = middle
    return above


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What the policy makes of a cluster of some size."""

    served: frozenset[str]
    """Jobs that have anything."""
    speedup: float
    """Σ_j s_j"""
    work: NDArray[np.float64]
    """Σ_j s_j·d_jr, shape (r,)."""


class _Sizes:
    """Clusters of some kind of node; each is looked at once."""

    def __init__(
        self, jobs: Sequence[Job], template: Mapping[str, float], policy: Policy, expired: Callable[[], bool]
    ) -> None:
        one = Instance.of([Node(node_id="template", resources=template)], [_alone(job) for job in jobs], {})
        held = [int(one.room.fits(need)[0]) for need in one.need]
        useful = [j for j, job in enumerate(one.jobs) if held[j] and job.most_replicas]
        self._need = {one.jobs[j].job_id: one.need[j] for j in useful}
        self.jobs = [job for job in jobs if job.job_id in self._need]
        """Those that such nodes hold."""
        self._filled = np.max([held[j] * one.need[j] for j in useful], axis=0) if useful else np.zeros(0)  # c, (r,)
        self._plenty = sum(-(-one.jobs[j].most_replicas // held[j]) for j in useful)
        """With so many nodes each job has its own ones, and more change nothing."""
        self._template, self._policy, self._expired = template, policy, expired
        self._known: dict[int, _Size] = {0: _Size(served=frozenset(), speedup=0.0, work=np.zeros_like(self._filled))}
        self._looked_at: set[int] = set()

    def at(self, n: int) -> _Size:
        """Raises _OutOfTimeError if the policy would have to be asked, and there is no time."""
        asked = min(n, self._plenty)
        if asked not in self._known:
            if self._expired():
                raise _OutOfTimeError
            self._known[asked] = self._ask(asked)
        self._looked_at.add(n)
        return self._known[asked]

    def _ask(self, n: int) -> _Size:
        nodes = [Node(node_id=f"{i:0{len(str(n))}}", resources=self._template) for i in range(n)]
        jobs = [_alone(job) for job in self.jobs]
        allocations = self._policy.allocate(nodes, jobs, {}).allocations
        speedup = {
            job.job_id: job.speedup_at(num_nodes(allocations[job.job_id]), num_replicas(allocations[job.job_id]))
            for job in jobs
        }
        return _Size(
            served=frozenset(job.job_id for job in jobs if allocations[job.job_id]),
            speedup=sum(speedup.values()),
            work=np.sum([speedup[job.job_id] * self._need[job.job_id] for job in jobs], axis=0),
        )

    def utilisation(self, n: int) -> float:
        """Of n nodes, in [0, 1]; of none it is 0 or, if there is anybody who could use one, infinite."""
        if n == 0 or not self.jobs:
            return math.inf if self.jobs else 0.0
        work, used = self.at(n).work, self._filled > 0
        return min(1.0, float((work[used] / (n * self._filled[used])).max()))

    def by_nodes(self) -> dict[int, float]:
        """Utilisation of the sizes that were looked at, in order."""
        return {n: self.utilisation(n) for n in sorted(self._looked_at) if n}


def _alone(job: Job) -> Job:
    """The job as if it were new: free to go anywhere, at no cost."""
    return dataclasses.replace(job, pinned=False, move_cost=0.0)


class _OutOfTimeError(Exception):
    """There is no time for another question."""
