"""The newest states of one trial on its storage, so that nothing is lost with its coordinator, its node or Tune's driver.

::

    <trial's directory on the storage>/.adaptdl/
      snapshot_00000012.zip       manifest.json, snapshot.pt, files/<the user's files>; the number grows
      snapshot_00000013.zip
      *.half                      being written; only a complete file gets the other name

A thread of its own writes, so that the coordinator's loop never waits for a disk: the newest state offered wins, those in
between are skipped. A file is written under another name and moved; the two newest that are known to be good are kept,
also while writing fails. :class:`~adaptdl.tune.bookkeeper.Bookkeeper` removes the vault when the trial has come to its end
and Tune has written that down: no one will ask for its state again. It stays for a trial that failed, is paused, or whose
driver was interrupted, as all of these may go on.

There is no second copy in Ray's object store: an object is lost with the process that made it, so it would have to be
made by another actor, which needs a place, memory for the states of all trials, and a life beyond the driver's to be of
use when the driver dies; and all it could save is the second or two by which the storage lags behind. Where nodes share
no storage, Tune cannot restore checkpoints either, and we say so once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.train._internal.storage import (
    _VALIDATE_STORAGE_MARKER_FILENAME,
    StorageContext,
    _exists_at_fs_path,
    _list_at_fs_path,
    get_fs_and_path,
)

from adaptdl.errors import SnapshotError
from adaptdl.tune.checkpoint import (
    MANIFEST,
    SNAPSHOT,
    Manifest,
    SavedTrial,
    decode_manifest,
    encode_manifest,
    read_parts,
)

__all__ = ["Found", "Vault", "VaultPlace"]

logger = logging.getLogger(__name__)

_FOLDER = ".adaptdl"
_NAME = re.compile(r"snapshot_(\d{8,})\.zip")
_HALF = ".half"
_FILES = "files/"
_NUM_KEPT = 2
_MIN_INTERVAL_S = 1.0
"""Between the ends of two writes; a trial may report many times a second, and storage may cost per write."""
_MAX_SHARE = 0.2
"""Of the time that may be spent writing."""
_RETRY_S = 15.0
"""Until the next attempt after one that failed."""
_DAMAGE = (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, EOFError, struct.error)
"""What reading a damaged archive may raise."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A saved state somewhere."""

    where: str
    manifest: Manifest | SnapshotError
    """Or why it cannot be read."""
    load: Callable[[], SavedTrial]
    """Reads and checks all of it; raises SnapshotError."""


@dataclass(frozen=True, kw_only=True)
class VaultPlace:
    """Where a trial's vault is."""

    filesystem: Any
    """pyarrow's."""
    path: str
    marker: str | None = None
    """A file that is there if this node sees the storage."""

    @classmethod
    def of(cls, storage: StorageContext | None, directory: str | None) -> VaultPlace | None:
        """In the trial's storage, or else in its working directory; None if it has neither."""
        if storage is not None:
            return cls(
                filesystem=storage.storage_filesystem,
                path=f"{storage.trial_fs_path}/{_FOLDER}",
                marker=f"{storage.experiment_fs_path}/{_VALIDATE_STORAGE_MARKER_FILENAME}",
            )
        if directory is None:
            return None
        filesystem, path = get_fs_and_path(directory)
        return cls(filesystem=filesystem, path=f"{path}/{_FOLDER}")

    def find(self) -> list[Found]:
        """What lies there, the newest first.

        Raises:
            OSError: the storage cannot be reached.
        """
        return [self._find(name) for name in self.names()]

    def names(self) -> list[str]:
        """The names of the states' files, the newest first."""
        names = [name for name in _list_at_fs_path(self.filesystem, self.path) if _NAME.fullmatch(name)]
        return sorted(names, key=ordinal_of, reverse=True)

    def remove(self) -> None:
        """Removes the vault."""
        if _exists_at_fs_path(self.filesystem, self.path):
            self.filesystem.delete_dir(self.path)

    def _find(self, name: str) -> Found:
        where = f"{self.path}/{name}"

        def load() -> SavedTrial:
            with self._opened(where) as archive:
                manifest = decode_manifest(archive.read(MANIFEST), where)
                return read_parts(manifest, _reader(archive), where, snapshot=SNAPSHOT, files=_FILES)

        manifest: Manifest | SnapshotError
        try:
            with self._opened(where) as archive:
                manifest = decode_manifest(archive.read(MANIFEST), where)
        except SnapshotError as error:
            manifest = error
        return Found(where=where, manifest=manifest, load=load)

    @contextlib.contextmanager
    def _opened(self, where: str) -> Any:
        try:
            with self.filesystem.open_input_file(where) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except _DAMAGE as error:
            raise SnapshotError(f"{where} is damaged or cannot be read: {error!r}") from error

    def write(self, state: SavedTrial, name: str) -> None:
        """Writes a state; there is no file of this name until all of it is there.

        Raises:
            OSError, or whatever else the user's file system raises.
        """
        if self.marker is not None and not _exists_at_fs_path(self.filesystem, self.marker):
            raise OSError(
                f"this node does not see the storage; use a `storage_path` that all nodes share ({self.marker})"
            )
        self.filesystem.create_dir(self.path, recursive=True)
        half, final = f"{self.path}/{secrets.token_hex(4)}{_HALF}", f"{self.path}/{name}"
        try:
            with (
                self.filesystem.open_output_stream(half, compression=None) as stream,
                zipfile.ZipFile(stream, "w") as archive,
            ):
                if state.snapshot is not None:
                    archive.writestr(SNAPSHOT, state.snapshot)
                for path, content in (state.files or {}).items():
                    archive.writestr(f"{_FILES}{path}", content)
                archive.writestr(MANIFEST, encode_manifest(state))
            self._flush(half)
            self.filesystem.move(half, final)
        except BaseException:
            with contextlib.suppress(Exception):
                self.filesystem.delete_file(half)
            raise

    def _flush(self, path: str) -> None:
        """A name must not reach the disk before what it names: the machine may stop at any time."""
        if self.filesystem.type_name == "local":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove_all_but(self, names: list[str]) -> None:
        """Removes all other states, and what was left half written."""
        for name in _list_at_fs_path(self.filesystem, self.path):
            if name not in names and (name.endswith(_HALF) or _NAME.fullmatch(name)):
                with contextlib.suppress(OSError):  # the next one will do it
                    self.filesystem.delete_file(f"{self.path}/{name}")


def ordinal_of(name: str) -> int:
    """Of ``snapshot_00000012.zip``: 12."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    assert match is not None, name
    return int(match[1])


def _reader(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except _DAMAGE as error:
            raise OSError(repr(error)) from error

    return read


class Vault:
    """Keeps the states of one trial that are offered to it.

    Args:
        place: where.
        trial: its name, for the log.
        good: path of a state that has been read; if it lies there, it is kept until there are two newer ones.
        clock: monotonic seconds.
        min_interval_s: between the end of a write and the next one, ≥ 0.
        retry_s: between a failed write and the next one, ≥ 0.
    """

    def __init__(
        self,
        place: VaultPlace,
        *,
        trial: str,
        good: str = "",
        clock: Callable[[], float] = time.monotonic,
        min_interval_s: float = _MIN_INTERVAL_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._place = place
        self._trial = trial
        self._clock = clock
        self._min_interval_s, self._retry_s = min_interval_s, retry_s
        name = good.rpartition("/")[2]
        self._good = [name] if _NAME.fullmatch(name) else []
        self._num_failed = 0
        """Writes that failed since the last one that did not."""
        self._changed = threading.Condition()
        self._offered: SavedTrial | None = None
        self._not_before = float("-inf")
        self._closing = False
        self._thread: threading.Thread | None = None

    def offer(self, state: SavedTrial) -> None:
        """The newest state. Returns at once."""
        with self._changed:
            if self._closing:
                return
            self._offered = state
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="adaptdl-vault", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, *, timeout_s: float) -> None:
        """Writes what was offered last, and ends.

        Args:
            timeout_s: how long a slow storage is waited for.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning(
                    "the newest state of trial %s is not yet in %s after %.0f s; a trial that goes on uses the one before",
                    self._trial,
                    self._place.path,
                    timeout_s,
                )

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (state := self._next()) is not None:
            began = self._clock()
            written = self._write(state)
            now = self._clock()
            pause_s = max(self._min_interval_s, (now - began) * (1 / _MAX_SHARE - 1)) if written else self._retry_s
            with self._changed:
                self._not_before = now + pause_s
                if not written and self._offered is None and not self._closing:
                    self._offered = state

    def _next(self) -> SavedTrial | None:
        """The state to write, once it is time to; None at the end."""
        with self._changed:
            while not self._closing:
                wait_s = None if self._offered is None else self._not_before - self._clock()
                if wait_s is not None and wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            state, self._offered = self._offered, None
            return state

    def _write(self, state: SavedTrial) -> bool:
        name = f"snapshot_{state.record.descent.ordinal:08d}.zip"
        try:
            self._place.write(state, name)
            self._good = [*self._good, name][-_NUM_KEPT:]
            self._place.remove_all_but(self._good if len(self._good) == _NUM_KEPT else self._place.names())
        except Exception as error:  # noqa: BLE001 (whatever the user's file system raises: training goes on)
            self._failed(error)
            return False
        if self._num_failed:
            logger.warning("the state of trial %s is kept again, after %d failures", self._trial, self._num_failed)
        self._num_failed = 0
        return True

    def _failed(self, error: Exception) -> None:
        self._num_failed += 1
        logger.log(
            logging.WARNING if self._num_failed == 1 else logging.DEBUG,
            "cannot keep the state of trial %s in %s: %s. Training goes on; if the trial is interrupted now it resumes from "
            "%s. Will try again every %.0f s",
            self._trial,
            self._place.path,
            error,
            self._good[-1] if self._good else "the last checkpoint of Tune's, or its beginning",
            self._retry_s,
        )
