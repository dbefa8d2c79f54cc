"""Results on their way from the replicas to whoever asks for them, and the snapshots that go with them.

A replica is at most one result ahead: it waits with the next one until the one before was taken. Results are numbered
from 1. A snapshot belongs to the number of results that its state contains:

* One that contains results which nobody has seen is saved with them, or not at all: they would be lost. They are
  handed out first when a job goes on from it.
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

Metrics = Mapping[str, Any]

_NUM_RECENT = 256
"""Results that are remembered after they were seen, for somebody who has forgotten them again: far more than a driver
of Tune receives between two of the states that it writes."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a job can go on from."""

    snapshot: bytes | None = None
    """The state of the job; None: it starts anew."""
    files: Mapping[str, bytes] | None = None
    """The user's own checkpoint, if there was one."""
    num_ahead: int = 0
    """Results that were seen, but are not contained in the snapshot."""
    unseen: tuple[Metrics, ...] = ()
    """Results that the snapshot contains, but nobody has seen, in order; only if `num_ahead` is 0."""


class Results:
    """The results of one job, and its newest snapshots.

    Args:
        saved: what the job goes on from.
        num_seen: results that were seen before. None: those that `saved` speaks of.
        recent: the last of them, by their numbers.
        on_news: called when there is a new result or a new snapshot.
    """

    def __init__(
        self,
        saved: Saved | None = None,
        *,
        num_seen: int | None = None,
        recent: Mapping[int, Metrics] | None = None,
        on_news: Callable[[], None] | None = None,
    ) -> None:
        saved = saved or Saved()
        assert not (saved.num_ahead and saved.unseen), saved
        self._waiting: Result | None = None
        self._changed = asyncio.Condition()
        self._num_taken = saved.num_ahead if num_seen is None else num_seen
        self._position = self._num_taken - saved.num_ahead + len(saved.unseen)
        """Results that the replicas' state contains."""
        self._num_reported = max(self._position, self._num_taken)
        self._num_restored = self._num_taken + len(saved.unseen)
        """Up to it, results that were not yet taken are among the recent ones."""
        self._recent = dict(recent or {}) | dict(enumerate(saved.unseen, self._num_taken + 1))
        self._snapshots: dict[int, bytes] = {} if saved.snapshot is None else {self._position: saved.snapshot}
        self._files: dict[int, Mapping[str, bytes]] = {} if saved.files is None else {self._position: saved.files}
        self._on_news = on_news or (lambda: None)
        self._ended = False
        self._error: JobError | None = None

    @property
    def num_taken(self) -> int:
        """Results that were seen."""
        return self._num_taken

    @property
    def recent(self) -> Mapping[int, Metrics]:
        """The last results, by their numbers, seen or not."""
        return dict(self._recent)

    async def put(
        self,
        metrics: dict[str, Any],
        files: Mapping[str, bytes] | None,
        snapshot: bytes | None,
        *,
        valid: Callable[[], bool],
    ) -> bool:
        """Hands in a result, after the one before was taken; drops it if it is not `valid` any more by then. Whether it was
        handed in."""
        async with self._changed:
            if self._position >= self._num_reported:
                await self._changed.wait_for(lambda: self._waiting is None or self._ended or not valid())
            if self._ended or not valid():
                return False
            self._position += 1
            if self._position > self._num_reported:
                self._waiting = Result(metrics=metrics, files=files)
                self._num_reported = self._position
                self._recent[self._position] = metrics
                self._recent.pop(self._position - _NUM_RECENT, None)
            if files is not None:
                self._files[self._position] = files
            if snapshot is not None:
                self._snapshots[self._position] = snapshot
            self._changed.notify_all()
            self._on_news()
            return True

    async def next(self, timeout_s: float | None = None) -> Result | None:
        """The next result; None when the job has ended.

        Raises:
            JobError: the job has failed, and all its results were taken.
            TimeoutError: there was nothing for `timeout_s`.
        """
        async with self._changed:
            if self._num_taken < self._num_restored:
                self._num_taken += 1
                files = self._files.get(self._num_taken)
                return Result(metrics=dict(self._recent[self._num_taken]), files=files)
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
        self._on_news()

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
        contained = _newest_key(self._snapshots, num_seen)
        if contained is None and num_seen < self._num_restored:  # it was restored from one with results nobody has seen
            return self._saved_at(self._num_restored, num_seen)
        return self._saved_at(contained or 0, num_seen)

    @property
    def latest(self) -> Saved:
        """What the job can go on from at best: it may contain results that nobody has seen."""
        return self._saved_at(_newest_key(self._snapshots, self._num_reported) or 0, self._num_taken)

    def _saved_at(self, contained: int, num_seen: int) -> Saved:
        return Saved(
            snapshot=self._snapshots.get(contained),
            files=_newest(self._files, max(contained, num_seen)),
            num_ahead=max(0, num_seen - contained),
            unseen=tuple(self._recent[number] for number in range(num_seen + 1, contained + 1)),
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
