"""Results on their way from the replicas to whoever asks for them, and the snapshots that go with them.

A replica is at most one result ahead: it waits with the next one until the one before was taken. Results are numbered
from 1. A snapshot belongs to the number of results that its state contains:

* One that contains a result which nobody has seen must not be saved: the result would be lost.
* A job that goes on from one which lacks results that were seen reports them again; they are dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from adaptdl.runtime.messages import JobError, Result

__all__ = ["Results", "Saved"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a job can go on from."""

    snapshot: bytes | None = None
    """The state of the job; None: it starts anew."""
    files: Mapping[str, bytes] | None = None
    """The user's own checkpoint, if there was one."""
    num_ahead: int = 0
    """Results that were seen, but are not contained in the snapshot."""


class Results:
    """The results of one job, and its newest snapshots.

    Args:
        saved: what the job goes on from.
    """

    def __init__(self, saved: Saved | None = None) -> None:
        saved = saved or Saved()
        self._waiting: Result | None = None
        self._changed = asyncio.Condition()
        self._position = 0
        """Results that the replicas' state contains."""
        self._num_reported = self._num_taken = saved.num_ahead
        self._snapshots: dict[int, bytes] = {} if saved.snapshot is None else {0: saved.snapshot}
        self._files: dict[int, Mapping[str, bytes]] = {} if saved.files is None else {0: saved.files}
        self._ended = False
        self._error: JobError | None = None

    @property
    def num_taken(self) -> int:
        """Results that were seen."""
        return self._num_taken

    async def put(
        self,
        metrics: dict[str, Any],
        files: Mapping[str, bytes] | None,
        snapshot: bytes | None,
        *,
        valid: Callable[[], bool],
    ) -> None:
        """Hands in a result, after the one before was taken; drops it if it is not `valid` any more by then."""
        async with self._changed:
            if self._position >= self._num_reported:
                await self._changed.wait_for(lambda: self._waiting is None or self._ended or not valid())
            if self._ended or not valid():
                return
            self._position += 1
            if self._position > self._num_reported:
                self._waiting = Result(metrics=metrics, files=files)
                self._num_reported = self._position
            if files is not None:
                self._files[self._position] = files
            if snapshot is not None:
                self._snapshots[self._position] = snapshot
            self._changed.notify_all()

    async def next(self, timeout_s: float | None = None) -> Result | None:
        """The next result; None when the job has ended.

        Raises:
            JobError: the job has failed, and all its results were taken.
            TimeoutError: there was nothing for `timeout_s`.
        """
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self._waiting is not None or self._ended), timeout_s)
            result, self._waiting = self._waiting, None
            if result is None:
                if self._error is not None:
                    raise self._error
                return None
            self._num_taken += 1
            # Whoever takes them may not have noted it yet: what goes with the one before is kept, too.
            _drop_old(self._snapshots, self._num_taken - 1)
            _drop_old(self._files, self._num_taken - 1)
            self._changed.notify_all()
            return result

    async def end(self, error: JobError | None = None) -> None:
        """No more results. The one that waits can still be taken."""
        async with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def keep_snapshot(self, snapshot: bytes) -> None:
        """The state of the job after the last result that was handed in."""
        self._snapshots[self._position] = snapshot

    async def rewind(self) -> Saved:
        """The replicas are gone; new ones go on from what is returned."""
        async with self._changed:
            self._position = _newest_key(self._snapshots, self._num_reported) or 0
            self._snapshots = {key: value for key, value in self._snapshots.items() if key <= self._position}
            self._changed.notify_all()
        return self.newest

    @property
    def newest(self) -> Saved:
        """What new replicas go on from."""
        return Saved(snapshot=_newest(self._snapshots, self._position), files=_newest(self._files, self._position))

    def saved(self, num_seen: int) -> Saved:
        """What the job can go on from, for somebody who has seen `num_seen` of its results."""
        contained = _newest_key(self._snapshots, num_seen) or 0
        return Saved(
            snapshot=self._snapshots.get(contained),
            files=_newest(self._files, num_seen),
            num_ahead=num_seen - contained,
        )


def _newest_key(kept: Mapping[int, Any], number: int) -> int | None:
    return max((key for key in kept if key <= number), default=None)


def _newest(kept: Mapping[int, T], number: int) -> T | None:
    key = _newest_key(kept, number)
    return None if key is None else kept[key]


def _drop_old(kept: dict[int, T], number: int) -> None:
    """Drops what is older than the newest up to `number`."""
    newest = _newest_key(kept, number)
    for key in [key for key in kept if newest is not None and key < newest]:
        del kept[key]
