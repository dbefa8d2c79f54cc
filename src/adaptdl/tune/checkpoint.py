"""A saved state of a trial, and how it lies in a checkpoint of Tune's: the user's own files, and beside them what AdaptDL
needs to go on.

::

    checkpoint_000003/
      <the user's files>          as given to tune.report(..., checkpoint=...)
      .adaptdl/snapshot.pt        the state of the job
      .adaptdl/manifest.json      version, what is known of the state, checksums of all files and of itself; written last

Reading runs no code, whoever wrote it: the manifest is JSON, names of files cannot lead out of the checkpoint, and
replicas load the snapshot as tensors and plain values only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from adaptdl.errors import SnapshotError
from adaptdl.runtime.reporting import write_files
from adaptdl.runtime.results import Metrics, Saved

__all__ = [
    "MANIFEST",
    "SNAPSHOT",
    "Descent",
    "Manifest",
    "Record",
    "SavedTrial",
    "decode_manifest",
    "encode_manifest",
    "read_manifest",
    "read_parts",
    "read_trial",
    "write_trial",
]

SNAPSHOT = "snapshot.pt"
MANIFEST = "manifest.json"
_VERSION = 2
_FOLDER = ".adaptdl"
_RECENT_BYTES = 2**20
"""Of the results that go with a state, as many of the last ones as fit into this."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Where a state comes from: the trial, and its line.

    A line begins where a trial starts anew, or takes over another trial's state (PBT's exploit). A trial that was
    interrupted goes on in its line.
    """

    trial_id: str = ""
    line: str = ""
    """Unique."""
    parent: str = ""
    """`name` of the state of another trial that the line began with."""
    ordinal: int = 0
    """Counts what a trial has saved: of two states with as many results, the later one has come further."""

    @property
    def name(self) -> str:
        return f"{self.line}/{self.ordinal}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a state beside the state itself."""

    descent: Descent = Descent()
    num_contained: int = 0
    """Results of the trial that the state contains; Tune's ``training_iteration`` after them."""
    num_seen: int = 0
    """Results that Tune had seen when it was saved."""
    recent: Mapping[int, Metrics] = field(default_factory=dict)
    """The last results up to `num_contained`, by their numbers: for a Tune that has not seen them."""
    num_restarts: int = 0
    pause_s: float = 0.0
    time_total_s: float = 0.0
    """Tune's, after the results that it had seen."""

    def leads_on_from(self, num_seen: int) -> bool:
        """Whether a Tune that has seen so many results can go on from it, and receive every other one."""
        return self.least_seen <= num_seen

    @property
    def least_seen(self) -> int:
        """As few results may Tune have seen that those it lacks are all there."""
        number = self.num_contained
        while number in self.recent:
            number -= 1
        return number


@dataclass(frozen=True, kw_only=True)
class SavedTrial:
    """What a trial goes on from."""

    record: Record = Record()
    snapshot: bytes | None = None
    files: Mapping[str, bytes] | None = None

    def saved(self, num_seen: int) -> Saved:
        """For a Tune that has seen so many results, from which the record leads on."""
        contained = self.record.num_contained
        return Saved(
            snapshot=self.snapshot,
            files=self.files,
            num_ahead=max(0, num_seen - contained),
            unseen=tuple(self.record.recent[number] for number in range(num_seen + 1, contained + 1)),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in ``manifest.json``."""

    record: Record
    snapshot_sha256: str | None
    files_sha256: Mapping[str, str] | None


def encode_manifest(saved: SavedTrial) -> str:
    """The text of a state's manifest."""
    content = {
        **asdict(replace(saved.record, recent={})),
        "recent": _encode_recent(saved.record.recent),
        "snapshot_sha256": None if saved.snapshot is None else _sha256(saved.snapshot),
        "files_sha256": None if saved.files is None else {name: _sha256(data) for name, data in saved.files.items()},
    }
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"version": _VERSION, "sha256": _sha256(text.encode()), "content": text})


def decode_manifest(text: str | bytes, where: str) -> Manifest:
    """The manifest that `encode_manifest` gave this text of.

    Raises:
        SnapshotError: it is damaged, or of another version; the message names `where` it lies.
    """
    try:
        outer = json.loads(text)
        version = outer["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise SnapshotError(f"the manifest of {where} is damaged: {error!r}") from error
    if version != _VERSION:
        raise SnapshotError(
            f"{where} must be of version {_VERSION} to be read here, but is of {version!r}; "
            "resume it with the AdaptDL that wrote it"
        )
    try:
        if _sha256(outer["content"].encode()) != outer["sha256"]:
            raise SnapshotError(f"the manifest of {where} is damaged: its checksum is not the one it was written with")
        content = json.loads(outer["content"])
        manifest = Manifest(
            snapshot_sha256=content.pop("snapshot_sha256"),
            files_sha256=content.pop("files_sha256"),
            record=Record(
                descent=Descent(**content.pop("descent")),
                recent={int(number): metrics for number, metrics in content.pop("recent")},
                **content,
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(f"the manifest of {where} is damaged: {error!r}") from error
    for name in manifest.files_sha256 or {}:
        _check_name(name, where)
    return manifest


def read_parts(
    manifest: Manifest, read: Callable[[str], bytes], where: str, *, snapshot: str, files: str
) -> SavedTrial:
    """The state that a manifest belongs to.

    Args:
        manifest: its manifest.
        read: gives the content of a file by its name in there.
        where: it lies, for messages.
        snapshot: the name of the snapshot in there.
        files: what the names of the user's files begin with in there.

    Raises:
        SnapshotError: a file is missing or damaged.
    """

    def checked(name: str, checksum: str) -> bytes:
        try:
            data = read(name)
        except (OSError, KeyError) as error:
            raise SnapshotError(f"{where} lacks its file {name}: {error}") from error
        if _sha256(data) != checksum:
            raise SnapshotError(f"{name} of {where} is damaged: its checksum is not the one it was written with")
        return data

    return SavedTrial(
        record=manifest.record,
        snapshot=None if manifest.snapshot_sha256 is None else checked(snapshot, manifest.snapshot_sha256),
        files=None
        if manifest.files_sha256 is None
        else {name: checked(f"{files}{name}", checksum) for name, checksum in manifest.files_sha256.items()},
    )


def write_trial(saved: SavedTrial, directory: Path) -> None:
    """Writes a checkpoint; there is no manifest until all else is there."""
    if saved.files is not None:
        write_files(saved.files, directory)
    folder = directory / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if saved.snapshot is not None:
        (folder / SNAPSHOT).write_bytes(saved.snapshot)
    half = folder / f"{MANIFEST}.half"
    half.write_text(encode_manifest(saved))
    os.replace(half, folder / MANIFEST)


def read_manifest(read: Callable[[str], bytes], where: str) -> Manifest:
    """The manifest of a checkpoint.

    Args:
        read: gives the content of a file by its name in there.
        where: it lies, for messages.

    Raises:
        SnapshotError: it is damaged, of another version, or was written by something else.
    """
    try:
        text = read(f"{_FOLDER}/{MANIFEST}")
    except FileNotFoundError:
        raise SnapshotError(
            f"{where} is no checkpoint of an AdaptDL trial (it has no {_FOLDER}/{MANIFEST}); "
            "resume it with the trainable that wrote it"
        ) from None
    except OSError as error:
        raise SnapshotError(f"the manifest of {where} cannot be read: {error}") from error
    return decode_manifest(text, where)


def read_trial(directory: Path) -> SavedTrial:
    """Reads what `write_trial` wrote.

    Raises:
        SnapshotError: it is damaged, of another version, or was written by something else.
    """

    def read(name: str) -> bytes:
        return (directory / name).read_bytes()

    manifest = read_manifest(read, str(directory))
    return read_parts(manifest, read, str(directory), snapshot=f"{_FOLDER}/{SNAPSHOT}", files="")


def _check_name(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise SnapshotError(f"{where} names a file {name!r}, which must lie inside of it: do not trust its origin")


def _encode_recent(recent: Mapping[int, Metrics]) -> list[tuple[int, dict[str, Any]]]:
    """As much of the last results as has room, in order. Values that JSON has no word for are left out of them."""
    encoded: list[tuple[int, dict[str, Any]]] = []
    room_bytes = _RECENT_BYTES
    for number in sorted(recent, reverse=True):
        texts = {name: text for name, value in recent[number].items() if (text := _encode(value)) is not None}
        room_bytes -= sum(len(name) + len(text) for name, text in texts.items())
        if room_bytes < 0:
            break
        encoded.append((number, {name: json.loads(text) for name, text in texts.items()}))
    return encoded[::-1]


def _encode(value: Any) -> str | None:
    try:
        return json.dumps(value, default=_listed)
    except (TypeError, ValueError):
        return None


def _listed(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no plain value: {type(value)}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
