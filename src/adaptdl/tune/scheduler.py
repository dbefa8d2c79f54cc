"""The scheduler that users pass to Tune: it decides where trials run and how wide.

*Which* trials live is decided by a base scheduler (FIFO, ASHA, HyperBand, PBT, ...), to which every question of Tune is
passed on. Tune asks about ten times a second; everything slow happens in the thread of
:class:`~adaptdl.tune.allocation_loop.AllocationLoop`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.actor import ActorHandle
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.trainable import FunctionTrainable

from adaptdl.errors import UsageError
from adaptdl.policy import Node, OptimalPolicy, Policy
from adaptdl.runtime.allocator import Allocator
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import JobStatus
from adaptdl.runtime.nodes import ClusterView, capacity, default_resources_per_replica
from adaptdl.tune.admission import Admission, wants_all_trials
from adaptdl.tune.allocation_loop import AllocationLoop, Arrived, Departed, Seen
from adaptdl.tune.bookkeeper import Bookkeeper, state_written_at
from adaptdl.tune.creator import check_resource_request, elastic_config, elastic_from_function_trainable
from adaptdl.tune.output import add_table_columns
from adaptdl.tune.trainable import AdaptDLTrainable

__all__ = ["AdaptDLScheduler"]

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 0.1
"""How often trials are looked at for new coordinators."""


@dataclass
class _Tracked:
    """A trial that is to be run."""

    trial: Trial
    coordinator: ActorHandle[Any] | None = None
    status: str = Trial.PENDING
    number: int = -1
    """Of the last reallocation that was logged."""
    was_paused: bool = False
    """Its coordinator's turn is over, and nobody has been told so."""


@dataclass
class _Experiment:
    """What belongs to one run of Tune; never pickled."""

    controller_id: int
    name: str
    loop: AllocationLoop
    admission: Admission
    elastic: ElasticConfig
    """Of the trial that was added last; with resources."""
    resources_per_replica: Mapping[str, float]
    """Of trials for which nobody has said what a replica holds."""
    tracked: dict[str, _Tracked] = field(default_factory=dict)
    looked_at: float = 0.0
    nodes: Sequence[Node] = ()
    """For which it was counted how many trials they hold; they are looked at anew each second."""
    num_trials: int = 0
    num_replicas: dict[str, int] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)


def _name_of_trainable(trial: Trial) -> str:
    return str(trial.trainable_name)


class AdaptDLScheduler(TrialScheduler):
    """Adjusts the replicas of every trial while it runs, so that the cluster does the most useful training it can.

    Args:
        base_scheduler: decides which trials live; FIFO if None.
        policy: divides the cluster among the trials; :class:`~adaptdl.policy.OptimalPolicy` if None.
        interval_s: how often the division is reconsidered when nothing happens, > 0. Trials that come or end, and nodes
            that come or go, are considered at once.
        resources_per_replica: what one replica holds, for trials that do not say it themselves. None: one GPU if the
            cluster has GPUs, else one CPU.
        min_replicas: a trial runs on at least so many replicas, or waits; for trials that do not say it themselves. None: 1.
        max_replicas: and on at most so many. None: as many as are useful.
        elastic: time limits and the like; of the three arguments above, those that are not None are put into it.
        kind_of: gives the name of a trial's kind. How fast trials of one kind train on so many replicas is learnt from all of
            them, so name what makes them differ, for instance ``lambda trial: str(trial.config["num_layers"])``. None: all
            trials of one training function are of a kind; one that computes faster or slower than the others is noticed.
        wait_for_nodes_s: for a cluster that scales itself: trials that have no room ask it for nodes. One that would have none
            even if it were alone fails after so many seconds, > 0; a node should have started by then. Say
            `resources_per_replica`, too, if the nodes with GPUs are not there yet. None: all nodes are there.

    Raises:
        UsageError: an argument is out of its bounds.
    """

    def __init__(
        self,
        base_scheduler: TrialScheduler | None = None,
        *,
        policy: Policy | None = None,
        interval_s: float = 5.0,
        resources_per_replica: Mapping[str, float] | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        elastic: ElasticConfig | None = None,
        kind_of: Callable[[Trial], str] | None = None,
        wait_for_nodes_s: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if base_scheduler is not None and not isinstance(base_scheduler, TrialScheduler):
            raise UsageError(f"`base_scheduler` must be one of Tune's schedulers, but got {base_scheduler!r}")
        if isinstance(base_scheduler, AdaptDLScheduler):
            raise UsageError("`base_scheduler` must not be an AdaptDLScheduler itself")
        if not _is_positive(interval_s):
            raise UsageError(f"`interval_s > 0` must hold, in seconds, but got (interval_s={interval_s!r})")
        if wait_for_nodes_s is not None and not _is_positive(wait_for_nodes_s):
            raise UsageError(
                f"`wait_for_nodes_s > 0` must hold, in seconds, but got (wait_for_nodes_s={wait_for_nodes_s!r})"
            )
        if policy is not None and (isinstance(policy, type) or not callable(getattr(policy, "allocate", None))):
            raise UsageError(f"`policy` must be a policy, such as OptimalPolicy(), but got {policy!r}")
        if kind_of is not None and not callable(kind_of):
            raise UsageError(f"`kind_of` must be a function that takes a trial, but got {kind_of!r}")
        self._base = base_scheduler or FIFOScheduler()
        self._policy = OptimalPolicy() if policy is None else policy
        self._interval_s = float(interval_s)
        self._kind_of = kind_of or _name_of_trainable
        self._wait_for_nodes_s = wait_for_nodes_s
        self._elastic = elastic_config(
            elastic, resources_per_replica=resources_per_replica, min_replicas=min_replicas, max_replicas=max_replicas
        )
        self._experiment: _Experiment | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}

    # -- passed on to the base scheduler ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_base":  # while it is unpickled there is no base yet
            raise AttributeError(name)
        return getattr(self._base, name)

    @property
    def base_scheduler(self) -> TrialScheduler:
        return self._base

    @property
    def metric(self) -> str | None:
        metric: str | None = self._base.metric
        return metric

    @property
    def supports_buffered_results(self) -> bool:
        """Never: results come one by one from an asynchronous trainable."""
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        add_table_columns()
        accepted: bool = self._base.set_search_properties(metric, mode, **spec)
        return accepted

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        experiment = self._of(tune_controller, trial)
        elastic = self._make_elastic(trial)
        if elastic.resources_per_replica is None:
            elastic = replace(elastic, resources_per_replica=experiment.resources_per_replica)
        self._base.on_trial_add(tune_controller, trial)
        if trial.is_finished():  # of an experiment that goes on
            return
        experiment.elastic, experiment.nodes = elastic, ()
        experiment.tracked[trial.trial_id] = _Tracked(trial=trial)
        experiment.admission.count_living([trial.trial_id])
        experiment.loop.tell(Arrived(trial_id=trial.trial_id, elastic=elastic, kind=self._kind_of(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = self._base.on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.CONTINUE and self._gives_way(trial, result):
            decision = TrialScheduler.PAUSE
        # PBT pauses by itself the trials that take over another's state.
        tracked = None if self._experiment is None else self._experiment.tracked.get(trial.trial_id)
        if tracked is not None and (decision == TrialScheduler.PAUSE or trial.status == Trial.PAUSED):
            tracked.was_paused = True
        return decision

    def _gives_way(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Whether the trial has had its turn and others wait for theirs. PBT lets all members of a population train in
        turns, by pausing those that were just compared while others are pending. Ours are never pending: they have their
        coordinators, and wait for replicas.
        """
        base, experiment = self._base, self._experiment
        if experiment is None or not isinstance(base, PopulationBasedTraining) or base._synch:
            return False
        state = base._trial_state.get(trial)
        if state is None or state.last_perturbation_time != result.get(base._time_attr):
            return False
        return any(
            tracked.trial.status == Trial.RUNNING and experiment.num_replicas.get(trial_id, 0) == 0
            for trial_id, tracked in experiment.tracked.items()
            if trial_id != trial.trial_id
        )

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)
        self._base.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._forget(trial)
        self._base.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)
        self._base.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if self._experiment is not None:
            self._look(self._experiment)
        trial: Trial | None = self._base.choose_trial_to_run(tune_controller)
        return trial

    def debug_string(self) -> str:
        experiment = self._experiment
        base = self._base.debug_string()
        if experiment is None:
            return f"AdaptDL over: {base}"
        running = {trial_id: number for trial_id, number in experiment.num_replicas.items() if number > 0}
        goodput = sum(experiment.goodput.get(trial_id, 0.0) for trial_id in running)
        nodes = [node for node in experiment.loop.nodes if not node.draining]
        return (
            f"AdaptDL: {len(running)} trials on {sum(running.values())} replicas, {len(nodes)} nodes, "
            f"goodput {goodput:.4g} samples/s, over: {base}"
        )

    # -- one experiment ---------------------------------------------------------------------------------------------

    def _of(self, tune_controller: Any, trial: Trial) -> _Experiment:
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        experiment = self._experiment
        if experiment is not None and experiment.controller_id == id(controller):
            return experiment
        if experiment is not None:
            experiment.loop.stop()
        name = trial.experiment_dir_name
        view = ClusterView()
        nodes = view.look()
        resources = self._elastic.resources_per_replica
        if resources is None:  # of all that is there: what is in use now may be free soon
            resources = default_resources_per_replica(view.whole)
        elastic = replace(self._elastic, resources_per_replica=resources)
        admission = Admission(None if wants_all_trials(self._base) else controller.search_alg)
        admission.allow(self._num_trials(nodes, elastic))
        loop = AllocationLoop(
            experiment=name,
            allocator=Allocator(self._policy, interval_s=self._interval_s),
            wait_for_nodes_s=self._wait_for_nodes_s,
        )
        experiment = self._experiment = _Experiment(
            controller_id=id(controller),
            name=name,
            loop=loop,
            admission=admission,
            elastic=elastic,
            resources_per_replica=resources,
        )
        bookkeeper = Bookkeeper(functools.partial(state_written_at, controller))
        controller._callbacks._callbacks += [bookkeeper, _AtTheEnd(functools.partial(self._end, experiment))]
        loop.start()
        return experiment

    def _end(self, experiment: _Experiment) -> None:
        experiment.loop.stop()
        if self._experiment is experiment:  # another controller may get the id that this one had
            self._experiment = None

    def _make_elastic(self, trial: Trial) -> ElasticConfig:
        """Sees to it that the trial's trainable is ours.

        Raises:
            UsageError: it is a class of the user's, which cannot be.
        """
        trainable = trial.get_trainable_cls()
        if isinstance(trainable, type) and issubclass(trainable, AdaptDLTrainable):
            check_resource_request(trainable)
            return trainable.elastic.with_defaults(self._elastic, stated=trainable.stated)
        if not (isinstance(trainable, type) and issubclass(trainable, FunctionTrainable)):
            raise UsageError(
                f"AdaptDLScheduler runs training functions, but {trial.trainable_name!r} is a class of its own; "
                "pass a function, or DistributedTrainableCreator(function)"
            )
        made = elastic_from_function_trainable(trainable, trial._default_placement_group_factory, trial.config)
        register_trainable(trial.trainable_name, made, warn=False)
        self._set_resources(trial, made.default_resource_request(trial.config))
        return made.elastic.with_defaults(self._elastic)

    @staticmethod
    def _set_resources(trial: Trial, resources: PlacementGroupFactory) -> None:
        trial._default_placement_group_factory = None
        trial.placement_group_factory = None
        trial.update_resources(resources)

    def _forget(self, trial: Trial) -> None:
        experiment = self._experiment
        if experiment is not None and experiment.tracked.pop(trial.trial_id, None) is not None:
            experiment.num_replicas.pop(trial.trial_id, None)
            experiment.loop.tell(Departed(trial_id=trial.trial_id))

    # -- in Tune's loop, ten times a second and more ----------------------------------------------------------------

    def _look(self, experiment: _Experiment) -> None:
        now = time.monotonic()
        if now - experiment.looked_at < _LOOK_INTERVAL_S:
            return
        experiment.looked_at = now
        for tracked in experiment.tracked.values():
            coordinator, status = tracked.trial.temporary_state.ray_actor, tracked.trial.status
            if coordinator is not tracked.coordinator or status != tracked.status:
                self._pass_on(experiment, tracked, coordinator, status)
        for trial_id, job_status in experiment.loop.statuses():
            tracked_trial = experiment.tracked.get(trial_id)
            if tracked_trial is not None and tracked_trial.coordinator is not None:
                self._show(experiment, tracked_trial, job_status)
        if nodes := experiment.loop.nodes:
            if nodes is not experiment.nodes:
                experiment.nodes, experiment.num_trials = nodes, self._num_trials(nodes, experiment.elastic)
            num_paused = sum(tracked.trial.status == Trial.PAUSED for tracked in experiment.tracked.values())
            experiment.admission.allow(experiment.num_trials, num_paused=num_paused)

    def _num_trials(self, nodes: Sequence[Node], elastic: ElasticConfig) -> int:
        """As many trials as the cluster can run at once; and as many again that ask for more nodes, if it scales itself."""
        assert elastic.resources_per_replica is not None
        there = max(1, capacity(nodes, elastic.resources_per_replica) // elastic.min_replicas)
        return there if self._wait_for_nodes_s is None else 2 * there

    @staticmethod
    def _pass_on(experiment: _Experiment, tracked: _Tracked, coordinator: ActorHandle[Any] | None, status: str) -> None:
        changed = coordinator is not tracked.coordinator
        waits = status == Trial.PENDING
        if changed and tracked.coordinator is not None and tracked.was_paused:
            # However soon Tune runs it again: those that have waited come before it.
            tracked.was_paused = False
            experiment.loop.tell(Seen(trial_id=tracked.trial.trial_id, coordinator=None, waits=False))
        if changed or waits != (tracked.status == Trial.PENDING):
            experiment.loop.tell(Seen(trial_id=tracked.trial.trial_id, coordinator=coordinator, waits=waits))
        if changed:  # a new one has nothing yet
            tracked.number = -1
            experiment.num_replicas.pop(tracked.trial.trial_id, None)
        tracked.coordinator, tracked.status = coordinator, status

    @staticmethod
    def _show(experiment: _Experiment, tracked: _Tracked, status: JobStatus) -> None:
        """Lets the trial's name and the log follow its reallocations."""
        trial = tracked.trial
        experiment.num_replicas[trial.trial_id] = status.num_replicas
        experiment.goodput[trial.trial_id] = status.metrics.get("adaptdl/goodput", 0.0)
        fresh = [change for change in status.reallocations if change.number > tracked.number]
        for change in fresh:
            tracked.number = change.number
            logger.info("%s", change.describe(trial.trial_id))
        if not fresh:
            return
        last = fresh[-1]
        if trial.trial_name_creator is None:
            trial.custom_trial_name = f"AdaptDLTrainable_{last.after}_{last.number}_{trial.trial_id}"
        trial.adaptdl = {  # type: ignore[attr-defined]
            "num_replicas": last.after,
            "num_restarts": last.number,
            "pause_s": status.pause_s,
        }
        trial.invalidate_json_state()


def _is_positive(seconds: object) -> bool:
    return isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0


class _AtTheEnd(Callback):
    """Tells when an experiment is over, however it ended."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        self._end()
