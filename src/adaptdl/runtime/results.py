"""Results on their way from the replicas to whoever asks for them, and the snapshots that go with them.

A replica is at most one result ahead: it waits with the next one until the one before was taken. A snapshot counts as
*saved with* the results that were taken when it is asked for: one that already contains a result which nobody has seen
would lose that result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from adaptdl.runtime.messages import JobError, Result

__all__ = ["Results"]


class Results:
    """The results of one job, and its newest snapshots.

    Args:
        snapshot: what the job was restored from, if it was.
        files: the user's own checkpoint that it was restored from, if it was.
    """

    def __init__(self, snapshot: bytes | None = None, files: Mapping[str, bytes] | None = None) -> None:
        self._waiting: Result | None = None
        self._changed = asyncio.Condition()
        self._num_reported = 0
        self._num_taken = 0
        self._snapshots: dict[int, bytes] = {} if snapshot is None else {0: snapshot}
        self._files: dict[int, Mapping[str, bytes]] = {} if files is None else {0: files}
        self._ended = False
        self._error: JobError | None = None

    @property
    def num_reported(self) -> int:
        return self._num_reported

    @property
    def num_taken(self) -> int:
        return self._num_taken

    async def put(
        self, metrics: dict[str, Any], files: Mapping[str, bytes] | None, snapshot: bytes | None,
        *, valid: Callable[[], bool],
    ) -> None:
        """Hands in a result, after the one before was taken; drops it if it is not `valid` any more by then."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting is None or self._ended or not valid())
            if self._ended or not valid():
                return
            self._waiting = Result(metrics=metrics, files=files)
            self._num_reported += 1
            if files is not None:
                self._files[self._num_reported] = files
            if snapshot is not None:
                self._snapshots[self._num_reported] = snapshot
            self._changed.notify_all()

    async def next(self, timeout_s: float | None = None) -> Result | None:
        """The next result; None when the job has ended.

        Raises:
            JobError: the job has failed, and all its results were taken.
            TimeoutError: there was nothing for `timeout_s`.
        """
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: self._waiting is not None or self._ended), timeout_s
            )
            result, self._waiting = self._waiting, None
            if result is None:
                if self._error is not None:
                    raise self._error
                return None
            self._num_taken += 1
            _drop_old(self._snapshots, self._num_taken)
            _drop_old(self._files, self._num_taken)
            self._changed.notify_all()
            return result

    async def end(self, error: JobError | None = None) -> None:
        """No more results. The one that waits can still be taken."""
        async with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    async def wake(self) -> None:
        """Lets those that wait look again whether their result is valid."""
        async with self._changed:
            self._changed.notify_all()

    def keep_snapshot(self, snapshot: bytes) -> None:
        """The state of the job after the last result that was handed in."""
        self._snapshots[self._num_reported] = snapshot

    @property
    def newest_snapshot(self) -> bytes | None:
        return _newest(self._snapshots, self._num_reported)

    @property
    def newest_files(self) -> Mapping[str, bytes] | None:
        return _newest(self._files, self._num_reported)

    @property
    def saved_snapshot(self) -> bytes | None:
        """The newest snapshot that contains no result which was not taken."""
        return _newest(self._snapshots, self._num_taken)

    @property
    def saved_files(self) -> Mapping[str, bytes] | None:
        return _newest(self._files, self._num_taken)


def _newest(kept: Mapping[int, Any], number: int) -> Any:
    known = [key for key in kept if key <= number]
    return kept[max(known)] if known else None


def _drop_old(kept: dict[int, Any], number: int) -> None:
    known = sorted(key for key in kept if key <= number)
    for key in known[:-1]:
        del kept[key]
