"""The thread beside Tune's loop that asks the coordinators how they stand, asks the allocator, and applies its answers.

Tune's loop talks to it through two queues and never waits for it; it never touches Tune's objects.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from adaptdl.policy import Node
from adaptdl.runtime.allocator import Allocator, Change
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import JobStatus
from adaptdl.runtime.node_demand import NodeDemand, Places
from adaptdl.runtime.nodes import ClusterView, Rooms
from adaptdl.runtime.placement import prefix_of, sweep

__all__ = ["AllocationLoop", "Arrived", "Departed", "Seen"]

logger = logging.getLogger(__name__)

_TICK_S = 0.25
_STATUS_INTERVAL_S = 0.5
_LOOK_INTERVAL_S = 1.0
"""How often the nodes are looked at."""
_ANSWER_WAIT_S = 0.1
"""How long answers of coordinators are waited for in one go; late ones are taken the next time."""
_INFEASIBLE_AFTER_S = 3.0
"""How long a trial may ask for more than the cluster has before it fails, where nobody is to start nodes."""
_ASK_AFTER_S = 1.0
"""How long a trial has no room before nodes are asked for."""
_ATTEMPTS, _ATTEMPT_INTERVAL_S = 5, 1.0
"""How often in a row a policy may fail before the trials that wait for it fail too, and how soon it is asked again."""
_SWEEP_AFTER_S = (1.0, 10.0)
"""When the reservations of a trial that is gone are looked for: its coordinator gives them back by itself."""
_SWEEP_INTERVAL_S = 5.0
"""How often at most."""
_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A trial is to be run."""

    trial_id: str
    elastic: ElasticConfig
    kind: str
    """Trials of one kind share what is learnt of their speed."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A trial's coordinator, or that it has none at present."""

    trial_id: str
    coordinator: ActorHandle[Any] | None
    waits: bool = True
    """Without a coordinator: one is about to come. Otherwise the trial needs nothing for now."""


@dataclass(frozen=True, kw_only=True)
class Departed:
    """A trial is not to be run any more."""

    trial_id: str


@dataclass
class _Trial:
    """What the thread knows of one trial."""

    elastic: ElasticConfig
    kind: str
    coordinator: ActorHandle[Any] | None = None
    had_coordinator: bool = False
    in_allocator: bool = False
    wish: Change | None = None
    """The allocation decided last."""
    sent: Change | None = None
    """The one the present coordinator was told."""
    asked_at: float = 0.0
    answers: list[Any] = field(default_factory=list)
    lost_on: frozenset[str] = frozenset()
    infeasible_since: float | None = None
    waits_since: float | None = None
    """For replicas."""
    failed: bool = False


class AllocationLoop:
    """Runs an allocator for one experiment.

    Args:
        experiment: its name, which the names of its reservations begin with.
        allocator: decides; used by the thread only, once it runs.
        wait_for_nodes_s: the cluster scales itself: trials without room ask it for nodes, for so long at most if it could not
            hold them even if it were empty. None: it does not.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        experiment: str,
        allocator: Allocator,
        wait_for_nodes_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._experiment = experiment
        self._infeasible_after_s = _INFEASIBLE_AFTER_S if wait_for_nodes_s is None else wait_for_nodes_s
        self._demand = None if wait_for_nodes_s is None else NodeDemand(experiment)
        self._allocator = allocator
        self._clock = clock
        self._prefixes: set[str] = set() if self._demand is None else {self._demand.prefix}
        """Of the reservations of all trials that there ever were."""
        self._view = ClusterView(self._prefixes)
        self._inbox: queue.SimpleQueue[Arrived | Seen | Departed] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[str, JobStatus]] = queue.SimpleQueue()
        self._trials: dict[str, _Trial] = {}
        self._nodes: list[Node] = []
        self._looked_at = 0.0
        self._sweeps: list[tuple[float, str]] = []
        self._swept_at = -math.inf
        self._num_sent = 0
        """Allocations told to coordinators, who need the newest only and may receive it before an older one."""
        self._departed: set[str] = set()
        """Trials that had a coordinator, and may come again."""
        self._policy_failures: list[str] = []
        """Since its last answer."""
        self._asked_at = -math.inf
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adaptdl-allocation", daemon=True)

    # -- for Tune's loop: return at once ----------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def tell(self, *news: Arrived | Seen | Departed) -> None:
        """Something has happened in Tune's loop."""
        for item in news:
            self._inbox.put(item)
        self._wake.set()

    def statuses(self) -> list[tuple[str, JobStatus]]:
        """What coordinators have said since the last call."""
        found = []
        while True:
            try:
                found.append(self._outbox.get_nowait())
            except queue.Empty:
                return found

    @property
    def nodes(self) -> Sequence[Node]:
        """The cluster as last seen."""
        return self._nodes

    def stop(self) -> None:
        """Ends the thread and removes every reservation of its trials that is left."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_TIMEOUT_S)
        if ray.is_initialized():
            with contextlib.suppress(RayError, ConnectionError):  # the cluster is gone, and all of ours with it
                sweep(*self._prefixes)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Ray connects to whatever cluster it finds if it is asked for something without being connected.
        while not self._stopped.is_set() and ray.is_initialized():
            try:
                self._turn()
            except RayError as error:
                logger.warning("the allocation thread will try again: %s", error)
            except Exception:  # the trials must not lose their scheduler
                if ray.is_initialized():
                    logger.exception("the allocation thread failed in one turn and goes on")
            self._wake.wait(_TICK_S)
            self._wake.clear()
        if self._demand is not None and ray.is_initialized():
            with contextlib.suppress(RayError, RuntimeError):  # the cluster is gone, or is about to be
                self._demand.close()

    def _turn(self) -> None:
        while not self._inbox.empty():
            self._take(self._inbox.get())
        self._collect()
        now = self._clock()
        looks = now - self._looked_at >= _LOOK_INTERVAL_S or not self._nodes
        if looks:
            self._nodes, self._looked_at = self._view.look(self._suspects()), now
        self._sweep_the_departed(now)
        self._fail_the_infeasible(now)
        again = bool(self._policy_failures) and now - self._asked_at >= _ATTEMPT_INTERVAL_S
        if (again or self._allocator.is_due(self._nodes)) and not self._stopped.is_set():
            self._asked_at = now
            self._allocate()
        if self._demand is not None and not self._policy_failures and not self._stopped.is_set():
            self._ask_for_nodes(self._demand, now, looks)
        self._send()

    def _allocate(self) -> None:
        """Asks the policy. If it keeps failing, the trials that wait for its answer fail; the others stay as they are."""
        try:
            changes = self._allocator.step(self._nodes)
        except RayError:
            raise
        except Exception as error:
            self._policy_failures.append(repr(error))
            first = len(self._policy_failures) == 1
            logger.log(
                logging.ERROR if first else logging.DEBUG, "the policy failed, and is asked again", exc_info=True
            )
            if len(self._policy_failures) >= _ATTEMPTS:
                self._fail_the_waiting("".join(traceback.format_exception(error)))
            return
        self._policy_failures.clear()
        for change in changes:
            if (trial := self._trials.get(change.job_id)) is not None:
                trial.wish = change

    def _fail_the_waiting(self, trace: str) -> None:
        for trial in self._trials.values():
            waits = trial.wish is None or not trial.wish.after
            if waits and trial.coordinator is not None and trial.in_allocator and not trial.failed:
                trial.failed = True
                trial.coordinator.fail.remote(
                    f"the policy must answer, but it failed {len(self._policy_failures)} times in a row:\n{trace}"
                )

    def _ask_for_nodes(self, demand: NodeDemand, now: float, looks: bool) -> None:
        """For all that have no room, once the policy has seen the nodes that are there."""
        ids = [node.node_id for node in self._nodes]
        try:
            demand.ask(self._lacking(now), ids, now)
            if looks:
                demand.renew(ids)
        except Exception:  # allocations are to be sent all the same
            logger.warning("could not ask for nodes, and will try again", exc_info=True)

    def _lacking(self, now: float) -> dict[str, Places]:
        """What those trials lack that have waited for a while: the replicas they need at least, less what the nodes hold beside
        those that run, if these were as small as they may be."""
        rooms = Rooms(self._nodes)
        waiting, num_running = {}, 0
        for trial_id, trial in self._trials.items():
            runs = trial.wish is not None and bool(trial.wish.after)
            num_running += trial.elastic.min_replicas if runs else 0
            waits = trial.in_allocator and not trial.failed and not runs
            trial.waits_since = (trial.waits_since or now) if waits else None
            if trial.waits_since is not None and now - trial.waits_since >= _ASK_AFTER_S:
                waiting[trial_id] = trial.elastic
        lacking = {}
        for trial_id, elastic in waiting.items():
            assert elastic.resources_per_replica is not None
            spare = max(0, rooms.of(elastic.resources_per_replica).num_replicas - num_running)
            lacking[trial_id] = Places(
                resources_per_replica=elastic.resources_per_replica, num_replicas=max(1, elastic.min_replicas - spare)
            )
        return lacking

    def _suspects(self) -> frozenset[str]:
        """Nodes on which trials have lost replicas: those may be gone."""
        return frozenset().union(*(trial.lost_on for trial in self._trials.values()))

    def _take(self, news: Arrived | Seen | Departed) -> None:
        trial = self._trials.get(news.trial_id)
        if isinstance(news, Arrived):
            self._prefixes.add(prefix_of(self._experiment, news.trial_id))
            known = news.trial_id in self._departed or (trial is not None and trial.had_coordinator)
            self._trials[news.trial_id] = _Trial(
                elastic=news.elastic, kind=news.kind, had_coordinator=known, in_allocator=True
            )
            self._sweeps = [(due, trial_id) for due, trial_id in self._sweeps if trial_id != news.trial_id]
            self._allocator.add_job(news.trial_id, news.elastic, resumes=known, kind=news.kind)
        elif trial is None:
            return
        elif isinstance(news, Departed):
            del self._trials[news.trial_id]
            if trial.had_coordinator:
                self._departed.add(news.trial_id)
            self._allocator.remove_job(news.trial_id)
            self._sweeps += [(self._clock() + after_s, news.trial_id) for after_s in _SWEEP_AFTER_S]
        else:
            self._see(news, trial)

    def _see(self, seen: Seen, trial: _Trial) -> None:
        another = seen.coordinator is not None and trial.had_coordinator
        trial.coordinator, trial.sent, trial.answers, trial.failed = seen.coordinator, None, [], False
        trial.had_coordinator |= seen.coordinator is not None
        needed = seen.coordinator is not None or seen.waits
        if needed and not trial.in_allocator:
            trial.wish = None
            self._allocator.add_job(seen.trial_id, trial.elastic, resumes=trial.had_coordinator, kind=trial.kind)
        elif not needed and trial.in_allocator:
            trial.wish = None
            self._allocator.remove_job(seen.trial_id)
        trial.in_allocator = needed
        if another:
            trial.infeasible_since = None
            # Last, as it may fail: what the one before has left behind would be in the way of this one, which has nothing yet.
            sweep(prefix_of(self._experiment, seen.trial_id))

    def _collect(self) -> None:
        """Takes the coordinators' answers that are there, and asks again."""
        waiting = {answer: trial_id for trial_id, trial in self._trials.items() for answer in trial.answers}
        if waiting:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_ANSWER_WAIT_S)
            for answer in ready:
                self._take_answer(answer, waiting[answer])
        now = self._clock()
        for trial in self._trials.values():
            if trial.coordinator is not None and not trial.answers and now - trial.asked_at >= _STATUS_INTERVAL_S:
                trial.asked_at = now
                trial.answers.append(trial.coordinator.status.remote())

    def _take_answer(self, answer: Any, trial_id: str) -> None:
        trial = self._trials[trial_id]
        trial.answers.remove(answer)
        try:
            status: JobStatus = ray.get(answer)
        except RayError as error:  # its end is Tune's to notice; a new coordinator may come
            logger.debug("the coordinator of trial %s does not answer: %s", trial_id, error)
            return
        if status.lost_on - trial.lost_on:
            self._looked_at = -math.inf
        trial.lost_on = status.lost_on
        self._allocator.update(trial_id, status)
        self._outbox.put((trial_id, status))

    def _send(self) -> None:
        """Tells coordinators what was decided, those that give something back first."""
        unsent = [
            trial
            for trial in self._trials.values()
            if trial.coordinator is not None and trial.wish is not None and trial.sent is not trial.wish
        ]
        for trial in sorted(unsent, key=lambda trial: trial.wish.growth if trial.wish is not None else 0):
            assert trial.coordinator is not None
            assert trial.wish is not None
            trial.sent = trial.wish
            self._num_sent += 1
            trial.answers.append(
                trial.coordinator.set_allocation.remote(
                    self._num_sent, dict(trial.wish.after), trial.wish.elastic, trial.wish.reason
                )
            )

    def _fail_the_infeasible(self, now: float) -> None:
        infeasible = self._allocator.infeasible(self._view.whole)
        for trial_id, trial in self._trials.items():
            if trial_id not in infeasible:
                trial.infeasible_since = None
                continue
            if trial.infeasible_since is None:
                trial.infeasible_since = now
            late = now - trial.infeasible_since >= self._infeasible_after_s
            if late and not trial.failed and trial.coordinator is not None and not trial.wish:
                trial.failed = True
                trial.coordinator.fail.remote(infeasible[trial_id])

    def _sweep_the_departed(self, now: float) -> None:
        due = {trial_id for at, trial_id in self._sweeps if at <= now}
        if not due or now - self._swept_at < _SWEEP_INTERVAL_S:
            return
        self._swept_at = now
        self._sweeps = [(at, trial_id) for at, trial_id in self._sweeps if at > now]
        if gone := due - self._trials.keys():
            sweep(*(prefix_of(self._experiment, trial_id) for trial_id in gone))
