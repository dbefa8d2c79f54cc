"""The host of a session that nobody launched: a directory for snapshots, and the log for reports."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from adaptdl.errors import AdaptDLError
from adaptdl.plan import Place, Position, Switched, Update
from adaptdl.torch.mailbox import Mailbox

__all__ = ["LocalHost", "interruptible"]

logger = logging.getLogger(__name__)


class LocalHost:
    """A :class:`adaptdl.plan.Host` without anybody behind it.

    Args:
        checkpoint_dir: where snapshots are kept, as ``snapshot.pt``; None keeps none.
    """

    def __init__(self, checkpoint_dir: str | None) -> None:
        self._path = None if checkpoint_dir is None else Path(checkpoint_dir) / "snapshot.pt"
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def keeps_snapshots(self) -> bool:
        return self._path is not None

    @property
    def path(self) -> Path | None:
        return self._path

    def read(self) -> bytes | None:
        """The snapshot in the directory, if there is one."""
        if self._path is None or not self._path.exists():
            return None
        return self._path.read_bytes()

    def ready(self, position: Position) -> None: ...

    def broken(self, generation: int, place: Place, reason: str) -> None:
        raise AdaptDLError(
            f"a replica was lost, and there is nobody to go on with the others: start the script again ({reason})"
        )

    def missed(self, generation: int, place: Place) -> None: ...

    def switched(self, switched: Switched) -> None: ...

    def left(self, generation: int) -> None: ...

    def update(self, update: Update) -> None: ...

    def snapshot(self, data: bytes, steps: int) -> None:
        """Replaces the snapshot; there is never half of one under its name."""
        if self._path is None:
            return
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".snapshot-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise

    def report(
        self, metrics: dict[str, Any], files: dict[str, bytes] | None, snapshot: bytes | None, number: int
    ) -> None:
        logger.info(
            "%s",
            " ".join(
                f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in metrics.items()
            ),
        )
        if snapshot is not None:
            self.snapshot(snapshot, 0)


@contextmanager
def interruptible(mailbox: Mailbox) -> Iterator[None]:
    """Within it, the first Ctrl-C (or SIGTERM) asks the session to stop at its next boundary, where it saves itself and
    raises KeyboardInterrupt; a second one stops at once. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if mailbox.interrupted:
            raise KeyboardInterrupt
        mailbox.interrupted = True
        logger.warning("stopping at the next step; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
