"""What only Tune's driver knows, told to the trials' coordinators; and Tune's own log, kept whole when trials are started
again.

Tune restores a trial from its checkpoint *and* forgets what came after it: ``trial.last_result`` falls back to the result
of the checkpoint, and the log (``result.json``, ``progress.csv``) is replaced by the copy on the storage, which may be
older. Our trials go on where they were, so both must stay. After the driver was killed it is the other way round: the log
may have results that the driver, started again, has forgotten; they come again, and must not be there twice.

What was kept of a trial is removed when it has come to its end *and* Tune's own state on the storage says so: Tune writes
that every ten seconds or less often, and a driver that was killed in between goes on with a trial that had ended.

All hooks run in Tune's loop. Files are touched only when a trial starts, is interrupted, or has ended.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE
from ray.train._internal.storage import StorageContext, _exists_at_fs_path, _upload_to_fs_path
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import TIMESTAMP, TRAINING_ITERATION

from adaptdl.tune.resume import Known
from adaptdl.tune.vault import VaultPlace

__all__ = ["Bookkeeper", "state_written_at"]

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 5.0
"""A coordinator that was told to stop has answered, or Tune has ended it."""


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A trial that has come to its end."""

    trial: Trial
    ended_at: float
    """Monotonic seconds."""
    answer: Any
    """Of its coordinator: it writes nothing any more."""


class Bookkeeper(Callback):
    """One per run of Tune; :class:`~adaptdl.tune.AdaptDLScheduler` adds it.

    Args:
        state_written_at: when Tune's loop was about to write the newest of its own states that are whole on the storage, in
            monotonic seconds.
    """

    def __init__(self, state_written_at: Callable[[], float]) -> None:
        self._state_written_at = state_written_at
        self._known: set[str] = set()
        """All trials that there ever were."""
        self._live: dict[str, Trial] = {}
        """Those that are not known to be at their end."""
        self._unmended: list[Trial] = []
        """Those whose logs may not be as this driver has them."""
        self._started: set[str] = set()
        """Trials that had a coordinator under this driver."""
        self._waits: dict[str, bool] = {}
        """Trials that were started and do not run: whether they failed."""
        self._outlived: dict[str, tuple[object, ...] | None] = {}
        """Of trials that were started: the last result when they began to go on from what they restore; None if it is of now."""
        self._last_results: dict[str, dict[str, Any]] = {}
        """Of trials that are being restored, as before that."""
        self._ended: list[_Ended] = []
        """Trials whose coordinators were told so, and whose saved states are still there."""
        self._removed: set[str] = set()
        """Trials whose saved states this driver has removed."""
        self._unfinished: set[str] | None = None
        """Trials that were not at their end after Tune's last step; those ended later were cut off."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._take_in_new(trials)
        unmended, self._unmended = self._unmended, []
        for trial in unmended:
            if not trial.is_finished():
                _mend_log(trial)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        is_new = trial.trial_id not in self._started
        interrupted = is_new or self._waits.get(trial.trial_id, False)
        if is_new or not interrupted:
            is_own = is_new and _has_config_of_now(trial)
            self._outlived[trial.trial_id] = None if is_own else _which(trial.run_metadata.last_result)
        self._started.add(trial.trial_id)
        self._live[trial.trial_id] = trial
        self._removed.discard(trial.trial_id)
        self._waits.pop(trial.trial_id, None)
        last_result, restored = self._last_result(trial), trial.latest_checkpoint_result
        if restored is not None and interrupted and _number(restored.metrics) < _number(last_result):
            self._last_results[trial.trial_id] = last_result
        adaptdl: Mapping[str, Any] = getattr(trial, "adaptdl", {})
        known = Known(
            last_result=last_result,
            num_restarts=adaptdl.get("num_restarts", 0),
            pause_s=adaptdl.get("pause_s", 0.0),
            interrupted=interrupted,
            is_current=not is_new,
        )
        coordinator = trial.temporary_state.ray_actor
        if coordinator is not None:
            coordinator.know.remote(known)

    def _last_result(self, trial: Trial) -> dict[str, Any]:
        """The last result that Tune has of the life in which the trial goes on.

        After PBT's exploit, and until its next result, Tune has the last one of the trial's own life. A new driver can only tell
        by the config of then.
        """
        last_result, restored = trial.run_metadata.last_result or {}, trial.latest_checkpoint_result
        is_outlived = self._outlived[trial.trial_id] == _which(last_result)
        if is_outlived and restored is not None and _is_anothers(restored, trial):
            return dict(restored.metrics)
        return dict(last_result)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._waits[trial.trial_id] = True
        self._live[trial.trial_id] = trial
        _save_log(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        coordinator = trial.temporary_state.ray_actor
        if coordinator is not None:
            self._ended.append(_Ended(trial=trial, ended_at=time.monotonic(), answer=coordinator.finish.remote()))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._take_in_new(trials)
        for trial in self._live.values():
            if trial.status == Trial.PAUSED and self._waits.get(trial.trial_id) is None:
                self._waits[trial.trial_id] = False
                _save_log(trial)
            if trial.trial_id in self._last_results and not trial.is_restoring:
                last_result = self._last_results.pop(trial.trial_id)
                if _number(trial.run_metadata.last_result) < _number(last_result):
                    trial.run_metadata.last_result = last_result
                    trial.run_metadata.invalidate_cache()
        self._live = {trial_id: trial for trial_id, trial in self._live.items() if not trial.is_finished()}
        self._unfinished = set(self._live)
        self._remove_the_ended()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Removes the saved states of all trials that have come to their end."""
        known = self._removed.union(ended.trial.trial_id for ended in self._ended)
        for trial in trials:
            ended = trial.status == Trial.TERMINATED and trial.trial_id not in (self._unfinished or ())
            if ended and trial.trial_id not in known:  # it had no coordinator, all were stopped at once, or long ago
                _remove_vault(trial)
        self._remove_the_ended(_ANSWER_TIMEOUT_S)

    def _take_in_new(self, trials: list[Trial]) -> None:
        """Takes in the trials that are new.

        Tune's list of trials only grows, but one that failed and is tried again moves to its end: the new ones are near the
        end, and are all found once there are as many as it has grown by.
        """
        num_new = len(trials) - len(self._known)
        if not num_new:
            return
        new: list[Trial] = []
        for trial in reversed(trials):
            if trial.trial_id not in self._known:
                new.append(trial)
                if len(new) == num_new:
                    break
        for trial in reversed(new):
            self._known.add(trial.trial_id)
            self._unmended.append(trial)
            self._live[trial.trial_id] = trial

    def _remove_the_ended(self, timeout_s: float = 0.0) -> None:
        """Removes the saved states that neither a driver started again would ask for, nor a coordinator still writes."""
        if not self._ended:
            return
        written_at = self._state_written_at()
        sure = {ended.answer: ended for ended in self._ended if ended.ended_at < written_at}
        if not sure:
            return
        silent_from_now_on, _ = ray.wait(list(sure), num_returns=len(sure), timeout=timeout_s)
        for answer in silent_from_now_on:
            self._ended.remove(sure[answer])
            if _remove_vault(sure[answer].trial):
                self._removed.add(sure[answer].trial.trial_id)


def state_written_at(controller: Any) -> float:
    """When Tune's loop was about to write the newest of its own states that are whole on the storage, in monotonic seconds;
    minus infinity while one is on its way there, or when that failed.
    """
    syncing = controller._storage.syncer._sync_process
    if syncing is not None and (syncing.is_running or "exception" in syncing._result):
        return float("-inf")
    # Taken between writing on this machine and sending: what was sent is not older than the last step of Tune's loop.
    last_sync_time: float | None = controller._checkpoint_manager._last_sync_time
    return float("-inf") if last_sync_time is None else last_sync_time


def _remove_vault(trial: Trial) -> bool:
    """Whether nothing is left of it."""
    if trial.relative_logdir is None or trial.storage is None:
        return True
    place = VaultPlace.of(trial.storage, None)
    assert place is not None
    try:
        place.remove()
    except Exception as error:  # noqa: BLE001 (whatever the user's file system raises: nobody needs these files)
        logger.warning("cannot remove %s, which is not needed any more: %r", place.path, error)
        return False
    return True


def _number(result: Mapping[str, Any] | None) -> int:
    number: int = (result or {}).get(TRAINING_ITERATION, 0)
    return number


def _which(result: Mapping[str, Any] | None) -> tuple[object, ...]:
    """Tells a trial's results apart."""
    return tuple((result or {}).get(name) for name in (TRAINING_ITERATION, TIMESTAMP))


def _is_anothers(restored: Any, trial: Trial) -> bool:
    """Whether a checkpoint is of another trial (PBT's exploit)."""
    checkpoint = restored.checkpoint
    return checkpoint is not None and not Path(checkpoint.path).is_relative_to(_storage(trial).trial_fs_path)


def _has_config_of_now(trial: Trial) -> bool:
    """Whether the trial's last result was made with the config that it has: PBT's exploit changes it."""
    try:
        return bool((trial.run_metadata.last_result or {}).get("config") == trial.config)
    except ValueError:  # of numpy, if there are arrays in it
        return False


def _storage(trial: Trial) -> StorageContext:
    assert trial.storage is not None
    return trial.storage


def _save_log(trial: Trial) -> None:
    """Copies a trial's log to the storage, from where Tune takes it when the trial starts again."""
    for path, _ in _log_of(trial):
        _save_file(path, _storage(trial))


def _save_file(path: Path, storage: StorageContext) -> None:
    try:
        if path.is_file():
            _upload_to_fs_path(str(path), storage.storage_filesystem, f"{storage.trial_fs_path}/{path.name}")
    except OSError as error:
        logger.warning("cannot copy %s to the storage, results may be missing in it: %s", path, error)


def _mend_log(trial: Trial) -> None:
    """Makes the log of a trial that an earlier driver has run end with the last result that this one knows of.

    Of the copies on this machine and on the storage, the first is newer, if it is there. A trial that no driver has run has
    no log.
    """
    storage, last_result = _storage(trial), trial.run_metadata.last_result
    for path, rows in _log_of(trial):
        try:
            here = path.read_bytes() if path.is_file() else None
            there = None
            where = f"{storage.trial_fs_path}/{path.name}"
            if _exists_at_fs_path(storage.storage_filesystem, where):
                with storage.storage_filesystem.open_input_stream(where) as stream:
                    there = stream.readall()
            copies = [copy for copy in (here, there) if copy is not None]
            if last_result:
                mended = next((cut for copy in copies if (cut := _cut(copy, rows, last_result))), here)
            else:
                mended = b"" if copies else None
            if mended is not None and mended != here:
                path.write_bytes(mended)
            if mended == there:
                continue
        except OSError as error:
            logger.warning("cannot bring %s in order, results may be missing or twice in it: %s", path, error)
        _save_file(path, storage)


Rows = Callable[[Iterable[str]], Iterable[Mapping[str, Any]]]


def _cut(log: bytes, rows: Rows, last_result: Mapping[str, Any]) -> bytes:
    """`log` up to the last line of `last_result`; nothing if that is not in it.

    It is near the end of a log that may be long, so it is looked for from there; only a header is read before.
    """
    lines = log.splitlines(keepends=True)
    header = next((line for line in lines if line.strip(b"\r\n")), b"")
    backwards = rows(line.decode(errors="replace") for line in itertools.chain([header], reversed(lines)))
    end = len(log)
    for line, row in zip(reversed(lines), itertools.islice(backwards, 1, None), strict=True):
        if all(str(row.get(name)) == str(last_result.get(name)) for name in (TRAINING_ITERATION, TIMESTAMP)):
            return log[:end]
        end -= len(line)
    return b""


def _json_rows(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last one may be half written
            row = {}
        yield row if isinstance(row, dict) else {}


def _csv_rows(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    header: list[str] = []
    for line in lines:
        values = next(csv.reader([line]), [])
        header = header or values
        yield dict(zip(header, values, strict=False))


def _log_of(trial: Trial) -> list[tuple[Path, Rows]]:
    """The files of a trial's log on this machine, whether they are there or not, and how to read them."""
    if trial.storage is None or trial.storage.trial_dir_name is None:  # it was never started
        return []
    folder = Path(trial.storage.trial_driver_staging_path)
    return [(folder / EXPR_RESULT_FILE, _json_rows), (folder / EXPR_PROGRESS_FILE, _csv_rows)]
