"""The coordinator of a trial as Tune sees it: a Trainable whose methods are coroutines.

Tune makes it an asyncio actor since its methods are coroutines: ``train`` waits for the next result while the
allocator's and the replicas' messages are served beside it. It holds no CPU and never imports torch. Nothing here may
block the loop, as Tune's driver waits for some answers; ``save`` in particular answers at once, whatever the replicas
do.

Nothing is lost with this process: the newest state is kept on the trial's storage (:mod:`adaptdl.tune.vault`), and the
trial goes on from it when Tune starts it again (:mod:`adaptdl.tune.resume`), checkpoints of Tune's or not. A storage that
fails does not end the training.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import cloudpickle
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, PlacementGroupFactory, Trainable
from ray.tune.result import EPISODES_TOTAL, RESULT_DUPLICATE, SHOULD_CHECKPOINT, TIME_THIS_ITER_S, TIMESTEPS_TOTAL

from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import Event, JobError, JobInfo, JobStatus, Phase
from adaptdl.runtime.placement import prefix_of, sweep
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results, Saved
from adaptdl.tune.checkpoint import Descent, Record, SavedTrial, write_trial
from adaptdl.tune.resume import Known, Start, find_start
from adaptdl.tune.vault import Vault, VaultPlace

__all__ = ["AdaptDLTrainable"]

logger = logging.getLogger(__name__)

_COORDINATOR_BYTES = 64 * 2**20
"""What Tune reserves for a coordinator: memory, so that it takes no CPU and no device."""
_HEAD_RESOURCE = "node:__internal_head__"
"""Ray's head node has one of this, other nodes none."""
_HEAD_SHARE = 0.0001
"""The least that Ray counts: room for ten thousand coordinators."""
_LOOK_INTERVAL_S = 2.0
_CLOSE_TIMEOUT_S = 3.0
"""How long a slow storage may hold up the end of a coordinator; Tune ends it by force after 5 s."""


class AdaptDLTrainable(Trainable):
    """Made by :func:`adaptdl.tune.DistributedTrainableCreator` for one training function."""

    function: ClassVar[Any] = b""
    """The training function of one argument, pickled; only replicas unpickle it."""
    elastic: ClassVar[ElasticConfig] = ElasticConfig()
    stated: ClassVar[frozenset[str]] = frozenset()
    """Fields of `elastic` that hold although they have their default values."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """A place on the head node: a trial must outlive the nodes that its replicas stand on."""
        return PlacementGroupFactory([{"memory": _COORDINATOR_BYTES, _HEAD_RESOURCE: _HEAD_SHARE}])

    def setup(self, config: dict[str, Any]) -> None:
        self._known: Known | None = None
        self._is_known = asyncio.Event()
        self._resuming = asyncio.Lock()
        self._start = Start(descent=Descent())
        self._num_saved = 0
        """What has been saved so far, and in the trial's life before."""
        self._vault: Vault | None = None
        self._kept: bytes | None = None
        """The snapshot that was offered to it last."""
        self._save_failed = False
        self._group: ReplicaGroup | None = None
        self._results: Results | None = None
        self._allocation: tuple[Mapping[str, int], ElasticConfig, str] | None = None
        self._allocation_number = 0
        self._failure: JobError | None = None
        self._began_at = time.monotonic()
        self._contacted = False
        self._stopped = False
        self._next: dict[str, Any] = {}
        self._num_seen = 0
        """Results that `_last_result` is the last of."""
        self._saving = asyncio.Lock()

    # -- from Tune --------------------------------------------------------------------------------------------------

    async def train(self) -> dict[str, Any]:
        """Waits for the next result."""
        began = time.monotonic()
        results = await self._resumed()
        self._begin(results)
        result = None
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                result = await results.next(_LOOK_INTERVAL_S)
                break
            except TimeoutError:
                self._check_contact()
        if result is None:
            self._next = self._end_of_function(results)
        else:
            self._next = result.metrics
            if result.files is not None:
                self._next[SHOULD_CHECKPOINT] = True
        if RESULT_DUPLICATE not in self._next:
            self._next.setdefault(TIME_THIS_ITER_S, time.monotonic() - began)
        trained: dict[str, Any] = Trainable.train(self)
        self._num_seen = results.num_taken
        return trained

    def step(self) -> dict[str, Any]:
        return self._next

    async def save(  # type: ignore[override]
        self, checkpoint_dir: str | None = None
    ) -> _TrainingResult:
        """Writes the newest state that goes with the results Tune has seen. Does not wait for replicas.

        If it cannot be written, the answer is a result without a checkpoint: Tune keeps the ones it has, and goes on with
        what it wanted to save for (to continue, to pause, to skip an exploit). An error would end the trial.
        """
        results = await self._resumed()
        state = self._to_save(results.saved(self._num_seen), self._num_seen)
        metrics: dict[str, Any] = dict(self._last_result or self._start.metrics)
        async with self._saving:
            loop = asyncio.get_running_loop()
            checkpoint = await loop.run_in_executor(None, self._persist, state, metrics, checkpoint_dir)
        return _TrainingResult(checkpoint=checkpoint, metrics=metrics)

    def _persist(self, state: SavedTrial, metrics: dict[str, Any], directory: str | None) -> Any:
        """The checkpoint that was made of a state; None if it cannot be stored."""
        storage = self._storage
        if storage is None:  # made by hand, outside of Tune
            path = Path(directory or tempfile.mkdtemp(prefix="adaptdl-"))
            write_trial(state, path)
            return Checkpoint.from_directory(str(path))
        index = storage.current_checkpoint_index
        try:
            with tempfile.TemporaryDirectory(prefix="adaptdl-") as temporary:
                write_trial(state, Path(temporary))
                storage._update_checkpoint_index(metrics)
                checkpoint = storage.persist_current_checkpoint(Checkpoint.from_directory(temporary))
        except Exception as error:  # noqa: BLE001 (whatever the user's file system raises: training goes on)
            self._could_not_save(error)
            if storage.current_checkpoint_index != index:  # the driver counts those that it has received
                with contextlib.suppress(Exception):
                    storage.storage_filesystem.delete_dir(storage.checkpoint_fs_path)
                storage.current_checkpoint_index = index
            return None
        self._save_failed = False
        return checkpoint

    def _could_not_save(self, error: Exception) -> None:
        logger.log(
            logging.DEBUG if self._save_failed else logging.WARNING,
            "cannot write a checkpoint of trial %s: %s. Training goes on, and Tune keeps the checkpoints before",
            self.trial_id,
            error,
        )
        self._save_failed = True

    async def restore(self, checkpoint_path: Any) -> None:
        """Takes the state of a checkpoint, or a newer one of the same line; before the first `train`.

        Unlike Tune's own, it unpickles nothing that lies in the checkpoint.
        """
        if self._group is not None:
            raise JobError("a trial that runs already cannot be restored; run with reuse_actors=False")
        metrics: dict[str, Any] = {}
        if isinstance(checkpoint_path, _TrainingResult):
            checkpoint_path, metrics = checkpoint_path.checkpoint, dict(checkpoint_path.metrics)
        elif isinstance(checkpoint_path, str):
            checkpoint_path = Checkpoint.from_directory(checkpoint_path)
        await self._wait_for_the_driver()
        async with self._resuming:
            await self._resume(checkpoint_path, metrics)

    async def _resumed(self) -> Results:
        """Tune's calls may overlap: the first that needs to know what the trial goes on from finds it."""
        if self._results is None:
            await self._wait_for_the_driver()
        async with self._resuming:
            return self._results or await self._resume(None, {})

    async def _resume(self, checkpoint: Checkpoint | None, metrics: Mapping[str, Any]) -> Results:
        """Finds what the trial goes on from."""
        place = VaultPlace.of(self._storage, self._logdir)

        def find() -> Start:
            sweep(prefix_of(self._trial_info.experiment_name, self.trial_id))  # of a coordinator before that was killed
            return find_start(
                trial_id=self.trial_id,
                checkpoint=checkpoint,
                metrics=metrics,
                storage=self._storage,
                vault=place,
                known=self._known,
            )

        start = self._start = await asyncio.get_running_loop().run_in_executor(None, find)
        if place is not None:
            self._vault = Vault(place, trial=self.trial_id, good=start.where)
        self._results = Results(
            start.state.saved(start.num_seen),
            num_seen=start.num_seen,
            recent=start.state.record.recent,
            on_news=self._keep,
        )
        self._kept = start.state.snapshot
        self._num_saved, self._num_seen = start.descent.ordinal, start.num_seen
        self._iteration, self._time_total = start.num_seen, start.time_total_s
        self._timesteps_total, self._episodes_total = (
            start.metrics.get(TIMESTEPS_TOTAL),
            start.metrics.get(EPISODES_TOTAL),
        )
        self._restored = start.restored
        return self._results

    async def _wait_for_the_driver(self) -> None:
        """`know` is called first, and may come later than the calls after it. Nobody calls it where a scheduler of ours is
        missing."""
        if self._storage is None:  # made by hand, outside of Tune
            return
        try:
            await asyncio.wait_for(self._is_known.wait(), type(self).elastic.contact_timeout_s)
        except TimeoutError:
            logger.debug("trial %s starts without word from the driver", self.trial_id)

    async def stop(self) -> None:
        """Ends all replicas and gives everything back; quick, and may be called at any time."""
        self._stopped = True
        if self._group is not None:
            await self._group.stop()
        if self._vault is not None:
            await self._close(self._vault)
        Trainable.stop(self)

    async def _close(self, vault: Vault) -> None:
        close = functools.partial(vault.close, timeout_s=_CLOSE_TIMEOUT_S)
        await asyncio.get_running_loop().run_in_executor(None, close)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return False

    # -- from Tune's driver, by the bookkeeper ----------------------------------------------------------------------

    async def know(self, known: Known) -> None:
        """What the driver knows of the trial; `restore` and `train` wait for it."""
        self._known = known
        self._is_known.set()

    async def finish(self) -> None:
        """The trial has come to its end. Answers when nothing more will be written: the driver removes what was kept.

        `stop` follows, or was heard before.
        """
        if self._vault is not None:
            await self._close(self._vault)

    # -- from the allocator -----------------------------------------------------------------------------------------

    async def set_allocation(
        self, number: int, allocation: Mapping[str, int], elastic: ElasticConfig, reason: str
    ) -> JobStatus:
        """The replicas the trial should have from now on, unless one of a higher number has come before. Returns at once."""
        self._contacted = True
        if number < self._allocation_number:
            return self._status()
        self._allocation_number = number
        self._allocation = (allocation, elastic, reason)
        if self._group is not None:
            self._group.set_allocation(allocation, elastic, reason)
        return self._status()

    async def status(self) -> JobStatus:
        """How the trial stands."""
        self._contacted = True
        return self._status()

    async def fail(self, message: str) -> None:
        """Ends the trial with this error."""
        self._failure = JobError(message)
        if self._group is not None:
            await self._group.fail(self._failure)

    # -- from the replicas ------------------------------------------------------------------------------------------

    async def notify(self, replica_id: str, number: int | None, event: Event | None) -> None:
        assert self._group is not None
        await self._group.notify(replica_id, number, event)

    async def report(self, replica_id: str, *result: Any) -> None:
        assert self._group is not None
        await self._group.report(replica_id, *result)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, results: Results) -> None:
        """The group of replicas, made when Tune asks for the first result: all that was saved is loaded by then."""
        if self._group is not None:
            return
        self._group = ReplicaGroup(
            job=JobInfo(
                job_id=self.trial_id,
                name=self.trial_name,
                experiment=self._trial_info.experiment_name,
                directory=self._logdir,
            ),
            function=type(self).function,
            config=cloudpickle.dumps(self.config),
            coordinator=ray.get_runtime_context().current_actor,
            results=results,
            num_restarts=self._start.num_restarts,
            pause_s=self._start.pause_s,
        )
        if self._allocation is not None:
            self._group.set_allocation(*self._allocation)

    def _keep(self) -> None:
        """There is a new result or snapshot: the newest state is to be kept."""
        assert self._results is not None
        latest = self._results.latest
        if self._vault is not None and latest.snapshot is not None and latest.snapshot is not self._kept:
            self._kept = latest.snapshot
            self._vault.offer(self._to_save(latest, self._results.num_taken))

    def _to_save(self, saved: Saved, num_seen: int) -> SavedTrial:
        """A state for a Tune that has seen so many results."""
        assert self._results is not None
        contained = num_seen - saved.num_ahead + len(saved.unseen)
        self._num_saved += 1
        return SavedTrial(
            record=Record(
                descent=replace(self._start.descent, ordinal=self._num_saved),
                num_contained=contained,
                num_seen=num_seen,
                recent={number: metrics for number, metrics in self._results.recent.items() if number <= contained},
                num_restarts=self._start.num_restarts if self._group is None else self._group.news.num_restarts,
                pause_s=self._start.pause_s if self._group is None else self._group.news.pause_s,
                time_total_s=self._time_total,
            ),
            snapshot=saved.snapshot,
            files=saved.files,
        )

    def _status(self) -> JobStatus:
        if self._group is not None:
            return self._group.status()
        return JobStatus(
            phase=Phase.WAITING,
            allocation={},
            held={},
            wish={},
            num_restarts=self._start.num_restarts,
            pause_s=self._start.pause_s,
            boot_s=None,
            report=None,
            metrics={},
        )

    def _end_of_function(self, results: Results) -> dict[str, Any]:
        if results.num_taken == 0 and not self._restored and not self._stopped:
            raise JobError(
                f"the training function of trial {self.trial_id} returned without a result; it must call "
                'tune.report({"<metric>": value}) at least once, for instance at the end of each epoch'
            )
        return {RESULT_DUPLICATE: True}

    def _check_contact(self) -> None:
        timeout_s = type(self).elastic.contact_timeout_s
        if not self._contacted and time.monotonic() - self._began_at > timeout_s:
            raise JobError(
                f"nobody has given trial {self.trial_id} any replicas within {timeout_s:g} s; "
                "pass scheduler=AdaptDLScheduler() to tune.run or TuneConfig"
            )
