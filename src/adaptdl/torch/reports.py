"""Results and snapshots on their way to the host, in their order, beside the training."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptdl.torch.news import metrics as own_metrics
from adaptdl.torch.transfer import write_snapshot

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Reports"]

_SNAPSHOT_SHARE = 0.05
"""Largest share of the time that copies for the snapshots of results may take; beyond it results come without one."""
_CHEAP_SNAPSHOT_S = 0.05
"""A copy that takes no longer than this is made for every result."""


@dataclass(frozen=True, kw_only=True)
class _Report:
    metrics: dict[str, Any]
    files: dict[str, bytes] | None
    number: int


class Reports:
    """What one replica has reported. Rank 0 sends it; the others keep the last one, in case rank 0 is lost.

    Attributes:
        num_results: results of the job so far; the number of the last one.
        num_done: those of the epoch that runs.
        snapshot_at: monotonic time of the last copy for a snapshot.
    """

    def __init__(self, session: ElasticSession) -> None:
        self._session = session
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="adaptdl-sender")
        self._sent: Future[None] | None = None
        self.reset()

    def reset(self) -> None:
        """The user's function begins."""
        self.num_results = self.num_done = self._num_seen = 0
        self._pending: _Report | None = None
        self._last: _Report | None = None
        self.snapshot_at = self._next_snapshot_at = time.monotonic()

    def begin_epoch(self) -> None:
        self._num_seen = self.num_done = 0

    def load(self, *, num_results: int, num_done: int, resume: bool) -> None:
        """The state of a snapshot (`resume`: its results of the epoch are reported again), or of another replica."""
        self.num_results, self.num_done = num_results, num_done
        if not resume:
            self._num_seen = num_done

    def report(self, metrics: dict[str, Any], files: dict[str, bytes] | None) -> None:
        """A result of the user's function; nothing, if the job has made it before."""
        session = self._session
        self._num_seen += 1
        if not session.joined or session.is_skipping or self._num_seen <= self.num_done:
            return
        self.flush()
        self.num_done = self._num_seen
        self.num_results += 1
        self._pending = _Report(metrics={**metrics, **own_metrics(session)}, files=files, number=self.num_results)

    def flush(self) -> None:
        """Sends the result that waits, if there is one."""
        if self._pending is None or not self._session.joined:
            return
        self._last, self._pending = self._pending, None
        if self._session.rank != 0:
            return
        states = None
        began = time.monotonic()
        if self._last.files is not None or began >= self._next_snapshot_at:
            states = self._session.capture()
            now = self.snapshot_at = time.monotonic()
            if now - began > _CHEAP_SNAPSHOT_S:
                self._next_snapshot_at = now + (now - began) * (1 / _SNAPSHOT_SHARE - 1)
        self._send(self._last, states)

    def send_again(self) -> None:
        """A new rank 0 sends the last result, in case the one before it could not; whoever gets it knows its number."""
        if self._last is not None:
            self._send(self._last, self._session.capture())

    def _send(self, report: _Report, states: dict[str, Any] | None) -> None:
        """Training waits only until what was sent before was taken."""
        self.wait()

        def send() -> None:
            snapshot = None if states is None else write_snapshot(states)
            self._session.host.report(report.metrics, report.files, snapshot, report.number)

        self._sent = self._sender.submit(send)

    @property
    def is_sending(self) -> bool:
        """Whether something that was sent was not yet taken."""
        return self._sent is not None and not self._sent.done()

    def send_snapshot(self, states: dict[str, Any]) -> None:
        """Sends a snapshot of `states`, a copy; returns at once."""
        self.snapshot_at = time.monotonic()
        self._sent = self._sender.submit(self._write, states)

    def send_snapshot_now(self, states: dict[str, Any]) -> None:
        """As `send_snapshot`, and waits until it was taken."""
        self.wait()
        self._write(states)

    def _write(self, states: dict[str, Any]) -> None:
        self._session.host.snapshot(write_snapshot(states), int(states["session"]["num_steps"]))

    def wait(self) -> None:
        """Waits until all that was sent was taken. Raises what went wrong with it."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def close(self) -> None:
        self.wait()
        self._sender.shutdown(wait=True)
