"""A trial's checkpoint in Tune's storage: the user's own files, and beside them what AdaptDL needs to go on.

::

    checkpoint_000003/
      <the user's files>          as given to tune.report(..., checkpoint=...)
      .adaptdl/snapshot.pt        the state of the job
      .adaptdl/manifest.json      version, checksums; written last
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptdl.errors import SnapshotError
from adaptdl.runtime.reporting import write_files
from adaptdl.runtime.results import Saved

__all__ = ["SavedTrial", "read_trial", "write_trial"]

_VERSION = 1
_FOLDER = ".adaptdl"
_SNAPSHOT = "snapshot.pt"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class SavedTrial:
    """What a trial goes on from."""

    saved: Saved
    num_restarts: int = 0
    pause_s: float = 0.0


def write_trial(saved: SavedTrial, directory: Path) -> None:
    """Writes a checkpoint; there is no manifest until all else is there."""
    snapshot, files = saved.saved.snapshot, saved.saved.files
    if files is not None:
        write_files(files, directory)
    folder = directory / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if snapshot is not None:
        (folder / _SNAPSHOT).write_bytes(snapshot)
    manifest = {
        "version": _VERSION,
        "num_restarts": saved.num_restarts,
        "pause_s": saved.pause_s,
        "num_ahead": saved.saved.num_ahead,
        "files": None if files is None else sorted(files),
        "snapshot_sha256": None if snapshot is None else hashlib.sha256(snapshot).hexdigest(),
    }
    half = folder / f"{_MANIFEST}.half"
    half.write_text(json.dumps(manifest))
    os.replace(half, folder / _MANIFEST)


def read_trial(directory: Path) -> SavedTrial:
    """Reads what `write_trial` wrote.

    Raises:
        SnapshotError: it is damaged, of another version, or was written by something else.
    """
    folder = directory / _FOLDER
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        raise SnapshotError(
            f"{directory} is no checkpoint of an AdaptDL trial (it has no {_FOLDER}/{_MANIFEST}); "
            "resume it with the trainable that wrote it"
        ) from None
    except ValueError as error:
        raise SnapshotError(f"the manifest of the checkpoint {directory} is damaged: {error}") from error
    if manifest.get("version") != _VERSION:
        raise SnapshotError(
            f"the checkpoint {directory} must be of version {_VERSION} to be read here, "
            f"but is of {manifest.get('version')!r}"
        )
    return SavedTrial(
        saved=Saved(
            snapshot=_read_snapshot(folder / _SNAPSHOT, manifest["snapshot_sha256"]),
            files=None if manifest["files"] is None else _read_files(directory, manifest["files"]),
            num_ahead=manifest["num_ahead"],
        ),
        num_restarts=manifest["num_restarts"],
        pause_s=manifest["pause_s"],
    )


def _read_snapshot(path: Path, checksum: str | None) -> bytes | None:
    if checksum is None:
        return None
    try:
        snapshot = path.read_bytes()
    except FileNotFoundError:
        raise SnapshotError(f"the checkpoint lacks its {path}") from None
    if hashlib.sha256(snapshot).hexdigest() != checksum:
        raise SnapshotError(f"{path} is damaged: its checksum is not the one it was written with")
    return snapshot


def _read_files(directory: Path, names: list[str]) -> dict[str, bytes]:
    try:
        return {name: (directory / name).read_bytes() for name in names}
    except FileNotFoundError as error:
        raise SnapshotError(f"the checkpoint {directory} lacks its file {error.filename}") from None
