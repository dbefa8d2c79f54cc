"""Which of its saved states a trial goes on from.

There may be several: the checkpoint that Tune restores, newer states in the trial's vault, older checkpoints. The one that
has come furthest wins, if it is the trial's own and of the line that Tune restores. PBT's exploit restores *another*
trial's checkpoint: the trial's own states, however far they came, are then another line's, and do not count. A state that
is damaged is passed over for the next best, with a warning; if none is left that is an error, never a new beginning.

Tune must receive every result once. What it has seen is known to its driver only
(:class:`~adaptdl.tune.bookkeeper.Bookkeeper` tells us): a coordinator may be killed with a result on its way, and a driver
that was killed has forgotten the results since it last wrote its own state. Results that a state contains and Tune lacks
come with the state, and are handed out again; results that Tune has and the state lacks will be made again, and are
dropped.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.train._internal.storage import StorageContext, _list_at_fs_path
from ray.tune import Checkpoint
from ray.tune.result import TIME_TOTAL_S, TRAINING_ITERATION

from adaptdl.errors import SnapshotError
from adaptdl.tune.checkpoint import Descent, Manifest, SavedTrial, read_manifest, read_trial
from adaptdl.tune.vault import Found, VaultPlace, ordinal_of

__all__ = ["Known", "Start", "choose", "find_start"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What Tune's driver knows of a trial when a coordinator of it starts."""

    last_result: Mapping[str, Any] = field(default_factory=dict)
    num_restarts: int = 0
    pause_s: float = 0.0
    interrupted: bool = False
    """The trial failed, or the driver is a new one: it goes on from its newest state. Otherwise from a checkpoint that
    was chosen for it."""
    is_current: bool = False
    """The last result is not of the trial's own life before it took over another one's state: the driver has seen it do that."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a coordinator begins with."""

    state: SavedTrial = field(default_factory=SavedTrial)
    restored: bool = False
    where: str = ""
    num_seen: int = 0
    """Results that Tune has seen."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The last of them, if it is known."""
    descent: Descent
    """Of the states to come, which count on from its ordinal."""
    num_restarts: int = 0
    pause_s: float = 0.0

    @property
    def time_total_s(self) -> float:
        return float(self.metrics.get(TIME_TOTAL_S, self.state.record.time_total_s))


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The checkpoint that Tune restores."""

    found: Found
    metrics: Mapping[str, Any]
    is_own: bool
    """It is the trial's, not another one's."""

    @property
    def num_seen(self) -> int:
        """Results that Tune had seen when it was made; if it is damaged, Tune's own word for it."""
        if isinstance(self.found.manifest, Manifest):
            return self.found.manifest.record.num_seen
        number: int = self.metrics.get(TRAINING_ITERATION, 0)
        return number


def find_start(
    *,
    trial_id: str,
    checkpoint: Checkpoint | None,
    metrics: Mapping[str, Any],
    storage: StorageContext | None,
    vault: VaultPlace | None,
    known: Known | None,
) -> Start:
    """Reads what a trial goes on from. Takes as long as the storage does.

    Args:
        trial_id: the trial.
        checkpoint: what Tune restores, if anything.
        metrics: the result that goes with it.
        storage: where older checkpoints are.
        vault: where newer states are.
        known: what the driver knows.

    Raises:
        SnapshotError: there is something to go on from, but none of it can be read.
    """
    kept = _find_kept(vault)
    ordinal = max((ordinal_of(found.where) for found in kept), default=0)
    restored = None
    if checkpoint is not None:
        found = _find_checkpoint(checkpoint)
        restored = Restored(found=found, metrics=metrics, is_own=_is_own(found, checkpoint, trial_id, storage))
    if restored is None and not kept:
        return _anew(trial_id, known)
    problems: list[SnapshotError] = []
    for found in _best_first(restored, kept, known, storage):
        try:
            if isinstance(found.manifest, SnapshotError):
                raise found.manifest
            state = found.load()
        except SnapshotError as error:
            problems.append(error)
            continue
        for problem in problems:
            logger.warning("%s. Trial %s goes on from %s instead", problem, trial_id, found.where)
        return _start(state, found, restored, known, trial_id, ordinal)
    reasons = "; ".join(str(problem) for problem in problems)
    raise SnapshotError(
        f"no saved state of trial {trial_id} can be read: {reasons}. Bring back a good copy"
        + ("" if vault is None else f", or remove {vault.path} (and Tune's checkpoints) to let the trial begin anew")
    )


def _find_kept(vault: VaultPlace | None) -> list[Found]:
    try:
        return [] if vault is None else vault.find()
    except OSError as error:
        raise SnapshotError(f"the storage must be readable for a trial to start, but {error}") from error


def choose(restored: Restored | None, kept: Sequence[Found], known: Known | None) -> list[Found]:
    """The states that a trial may go on from, the best first, and those that cannot be read where they might have been."""
    readable = [found for found in kept if isinstance(found.manifest, Manifest)]
    if restored is None or (restored.is_own and isinstance(restored.found.manifest, SnapshotError)):
        line = _descent(readable[0]).line if readable else ""
        mine = [found for found in readable if _descent(found).line == line]
    elif restored.is_own:
        mine = [found for found in readable if _descent(found).line == _descent(restored.found).line]
    elif known is not None and known.interrupted and isinstance(restored.found.manifest, Manifest):
        mine = [found for found in readable if _descent(found).parent == _descent(restored.found).name]
    else:
        mine = []

    def worth(found: Found) -> tuple[bool, int, bool, int]:
        record = _manifest(found).record
        num_seen = _known_number(found, known)
        leads_on = num_seen is None or record.leads_on_from(num_seen)
        is_mine = restored is None or found is not restored.found or restored.is_own
        return leads_on, record.num_contained, is_mine, record.descent.ordinal

    unreadable = [found for found in kept if isinstance(found.manifest, SnapshotError)]
    if restored is None or restored.is_own:
        candidates = mine if restored is None else [*mine, restored.found]
    else:  # what is damaged among the trial's own states need not concern one that takes over another's
        candidates, unreadable = [*mine, restored.found], unreadable if mine else []
    good = sorted((f for f in candidates if isinstance(f.manifest, Manifest)), key=worth, reverse=True)
    bad = [f for f in candidates if isinstance(f.manifest, SnapshotError)] + unreadable
    return bad + good


def _best_first(
    restored: Restored | None, kept: Sequence[Found], known: Known | None, storage: StorageContext | None
) -> Any:
    yield from choose(restored, kept, known)
    if restored is not None and restored.is_own and storage is not None:
        yield from _older_checkpoints(storage, restored.found)


def _start(
    state: SavedTrial, found: Found, restored: Restored | None, known: Known | None, trial_id: str, ordinal: int
) -> Start:
    record = state.record
    if restored is not None and not restored.is_own and found is restored.found:
        descent = Descent(trial_id=trial_id, line=uuid.uuid4().hex, parent=record.descent.name, ordinal=ordinal)
        metrics, num_seen = restored.metrics, record.num_seen
        if known is not None and known.interrupted and known.is_current:
            metrics, num_seen = _seen(found, restored, known)
    else:
        descent = replace(record.descent, trial_id=trial_id, ordinal=max(ordinal, record.descent.ordinal))
        metrics, num_seen = _seen(found, restored, known)
    if not record.leads_on_from(num_seen):
        logger.warning(
            "Tune has seen %d results of trial %s, which goes on from %s, after %d results: those in between are missing",
            num_seen,
            trial_id,
            found.where,
            record.least_seen,
        )
        num_seen = record.least_seen
    return Start(
        state=state,
        restored=True,
        where=found.where,
        num_seen=num_seen,
        metrics=metrics,
        descent=descent,
        num_restarts=max(record.num_restarts, 0 if known is None else known.num_restarts),
        pause_s=max(record.pause_s, 0.0 if known is None else known.pause_s),
    )


def _seen(found: Found, restored: Restored | None, known: Known | None) -> tuple[Mapping[str, Any], int]:
    """The last result that Tune has seen, if it is known, and its number."""
    number = _known_number(found, known)
    at_checkpoint = 0 if restored is None else restored.num_seen
    if known is not None and number is not None and number >= at_checkpoint:
        return known.last_result, number
    at_saving = _manifest(found).record.num_seen
    if restored is not None and at_checkpoint >= at_saving:
        return restored.metrics, at_checkpoint
    return {}, at_saving


def _anew(trial_id: str, known: Known | None) -> Start:
    """Nothing was saved. Results that were seen nevertheless will be made again."""
    metrics = {} if known is None else known.last_result
    num_seen = metrics.get(TRAINING_ITERATION, 0)
    if num_seen:
        logger.warning(
            "no state of trial %s was saved before it was interrupted: it begins anew, and its first %d results, which were "
            "seen already, are not reported again",
            trial_id,
            num_seen,
        )
    return Start(
        descent=Descent(trial_id=trial_id, line=uuid.uuid4().hex),
        num_seen=num_seen,
        metrics=metrics,
        num_restarts=0 if known is None else known.num_restarts,
        pause_s=0.0 if known is None else known.pause_s,
    )


def _known_number(found: Found, known: Known | None) -> int | None:
    """How many results Tune has seen. None: we are not told, or the user numbers them in a way of their own."""
    if known is None or any(TRAINING_ITERATION in metrics for metrics in _manifest(found).record.recent.values()):
        return None
    number: int = known.last_result.get(TRAINING_ITERATION, 0)
    return number


def _manifest(found: Found) -> Manifest:
    assert isinstance(found.manifest, Manifest)
    return found.manifest


def _descent(found: Found) -> Descent:
    return _manifest(found).record.descent


def _is_own(found: Found, checkpoint: Checkpoint, trial_id: str, storage: StorageContext | None) -> bool:
    if isinstance(found.manifest, Manifest):
        return _descent(found).trial_id == trial_id
    return storage is not None and Path(checkpoint.path).is_relative_to(storage.trial_fs_path)


def _find_checkpoint(checkpoint: Checkpoint) -> Found:
    where, filesystem = str(checkpoint.path), checkpoint.filesystem
    assert filesystem is not None

    def read(name: str) -> bytes:
        with filesystem.open_input_stream(f"{where}/{name}") as stream:
            content: bytes = stream.readall()
        return content

    def load() -> SavedTrial:
        try:
            with checkpoint.as_directory() as directory:
                return read_trial(Path(directory))
        except OSError as error:
            raise SnapshotError(f"{where} cannot be read: {error}") from error

    manifest: Manifest | SnapshotError
    try:
        manifest = read_manifest(read, where)
    except SnapshotError as error:
        manifest = error
    return Found(where=where, manifest=manifest, load=load)


def _older_checkpoints(storage: StorageContext, restored: Found) -> Any:
    """Tune's other checkpoints of the same trial and line, the newest first."""
    names = [
        name
        for name in _list_at_fs_path(storage.storage_filesystem, storage.trial_fs_path)
        if name.startswith("checkpoint_")
    ]
    for name in sorted(names, reverse=True):
        path = f"{storage.trial_fs_path}/{name}"
        if path == restored.where:
            continue
        found = _find_checkpoint(Checkpoint(path=path, filesystem=storage.storage_filesystem))
        same_line = isinstance(restored.manifest, SnapshotError) or (
            isinstance(found.manifest, Manifest) and _descent(found).line == _descent(restored).line
        )
        if same_line:
            yield found
