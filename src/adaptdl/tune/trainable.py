"""The coordinator of a trial as Tune sees it: a Trainable whose methods are coroutines.

Tune makes it an asyncio actor since its methods are coroutines: ``train`` waits for the next result while the
allocator's and the replicas' messages are served beside it. It holds no CPU and never imports torch. Nothing here may
block the loop, as Tune's driver waits for some answers; ``save`` in particular answers at once, whatever the replicas
do.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import cloudpickle
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, PlacementGroupFactory, Trainable
from ray.tune.result import RESULT_DUPLICATE, SHOULD_CHECKPOINT, TIME_THIS_ITER_S

from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import Event, JobError, JobInfo, JobStatus, Phase
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results, Saved
from adaptdl.tune.checkpoint import SavedTrial, read_trial, write_trial

__all__ = ["AdaptDLTrainable"]

logger = logging.getLogger(__name__)

_COORDINATOR_BYTES = 64 * 2**20
"""What Tune reserves for a coordinator: memory, so that it takes no CPU and no device."""
_LOOK_INTERVAL_S = 2.0


class AdaptDLTrainable(Trainable):
    """Made by :func:`adaptdl.tune.DistributedTrainableCreator` for one training function."""

    function: ClassVar[bytes] = b""
    """The training function of one argument, pickled; only replicas unpickle it."""
    elastic: ClassVar[ElasticConfig] = ElasticConfig()

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{"memory": _COORDINATOR_BYTES}])

    def setup(self, config: dict[str, Any]) -> None:
        self._restored_from = SavedTrial(saved=Saved())
        self._group: ReplicaGroup | None = None
        self._results: Results | None = None
        self._allocation: tuple[Mapping[str, int], ElasticConfig, str] | None = None
        self._restored_metrics: dict[str, Any] = {}
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
        _, results = self._begin()
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
        """Writes the newest state that goes with the results Tune has seen. Does not wait for replicas."""
        state, group, results = self._restored_from, self._group, self._results
        if group is not None and results is not None:
            state = SavedTrial(
                saved=results.saved(self._num_seen),
                num_restarts=group.news.num_restarts,
                pause_s=group.news.pause_s,
            )
        metrics: dict[str, Any] = dict(self._last_result or self._restored_metrics)
        async with self._saving:
            loop = asyncio.get_running_loop()
            result: _TrainingResult = await loop.run_in_executor(None, self._persist, state, metrics, checkpoint_dir)
        return result

    def _persist(self, state: SavedTrial, metrics: dict[str, Any], checkpoint_dir: str | None) -> _TrainingResult:
        directory = Path(checkpoint_dir or tempfile.mkdtemp(prefix="adaptdl-"))
        write_trial(state, directory)
        checkpoint = Checkpoint.from_directory(str(directory))
        if self._storage is None:
            return _TrainingResult(checkpoint=checkpoint, metrics=metrics)
        self._storage._update_checkpoint_index(metrics)
        persisted = self._storage.persist_current_checkpoint(checkpoint)
        if checkpoint_dir is None:
            shutil.rmtree(directory, ignore_errors=True)
        return _TrainingResult(checkpoint=persisted, metrics=metrics)

    async def restore(self, checkpoint_path: Any) -> None:
        """Takes the state of a checkpoint; before the first `train`."""
        if self._group is not None:
            raise JobError("a trial that runs already cannot be restored; run with reuse_actors=False")
        if isinstance(checkpoint_path, _TrainingResult):
            self._restored_metrics = dict(checkpoint_path.metrics)
        await asyncio.get_running_loop().run_in_executor(None, Trainable.restore, self, checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._restored_from = read_trial(Path(checkpoint))

    async def stop(self) -> None:
        """Ends all replicas and gives everything back; quick, and may be called at any time."""
        self._stopped = True
        if self._group is not None:
            await self._group.stop()
        Trainable.stop(self)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return False

    # -- from the allocator -----------------------------------------------------------------------------------------

    async def set_allocation(self, allocation: Mapping[str, int], elastic: ElasticConfig, reason: str) -> JobStatus:
        """The replicas the trial should have from now on. Returns at once."""
        self._contacted = True
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

    async def notify(self, replica_id: str, event: Event) -> None:
        assert self._group is not None
        self._group.notify(replica_id, event)

    async def report(
        self, replica_id: str, metrics: dict[str, Any], files: Mapping[str, bytes] | None, snapshot: bytes | None
    ) -> None:
        assert self._group is not None
        await self._group.report(replica_id, metrics, files, snapshot)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _begin(self) -> tuple[ReplicaGroup, Results]:
        """The group of replicas, made when Tune asks for the first result: all that was saved is loaded by then."""
        if self._group is None or self._results is None:
            self._results = Results(self._restored_from.saved)
            self._num_seen = self._results.num_taken
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
                results=self._results,
                num_restarts=self._restored_from.num_restarts,
                pause_s=self._restored_from.pause_s,
            )
            if self._allocation is not None:
                self._group.set_allocation(*self._allocation)
        return self._group, self._results

    def _status(self) -> JobStatus:
        if self._group is not None:
            return self._group.status()
        return JobStatus(
            phase=Phase.WAITING,
            allocation={},
            held={},
            wish={},
            num_restarts=self._restored_from.num_restarts,
            pause_s=self._restored_from.pause_s,
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
