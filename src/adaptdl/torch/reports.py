"""Results and snapshots on their way to the host, in their order, beside the training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from adaptdl.plan import Position
from adaptdl.torch.news import metrics as own_metrics
from adaptdl.torch.transfer import write_snapshot

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Reports"]

_SNAPSHOT_SHARE = 0.05
"""Largest share of the time that copies for the snapshots of results may take; beyond it results come without one."""
_CHEAP_SNAPSHOT_S = 0.05
"""A copy that takes no longer than this is made for every result."""
_MOST_KEPT = 256
"""Results that a replica keeps at most. Each step drops all but a few; in a loop without steps there may be many."""


@dataclass(frozen=True, kw_only=True)
class _Report:
    metrics: dict[str, Any]
    files: dict[str, bytes] | None
    number: int


class _Standing(NamedTuple):
    """Of a replica's results, as a step began."""

    num_seen: int
    num_done: int
    num_results: int
    pending: _Report | None

    @property
    def num_flushed(self) -> int:
        """The number of the last one that did not wait any more."""
        return self.num_results - (self.pending is not None)


class Reports:
    """What one replica has reported. A result waits for the end of a step or an epoch, or for the next result; then rank 0 sends
    it, once the one before was taken. All keep what would be lost with rank 0: the one that waits, and those before it, from the
    last one on that did not wait any more as the last step began that all have made.

    What is reported in a step that turns out to be void is taken back: it is reported again as the step is made.

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
        self._num_seen_in: dict[Position, int] = {}
        """Data loop of the epoch → `_num_seen` after the last result in it."""
        self._pending: _Report | None = None
        self._kept: dict[int, _Report] = {}
        """By their numbers, in this order; flushed."""
        self._standing: _Standing | None = None
        """Before the step that runs; None after it."""
        self.snapshot_at = self._next_snapshot_at = time.monotonic()

    def begin_epoch(self) -> None:
        self._num_seen = self.num_done = 0
        self._num_seen_in = {}

    def enter_loop(self) -> None:
        """A data loop begins, or is skipped. What the job has reported in it before does not come again: its batches do not."""
        self._num_seen = max(self._num_seen, self._num_seen_in.get(self._session.position, 0))

    def begin_step(self) -> None:
        self._standing = _Standing(self._num_seen, self.num_done, self.num_results, self._pending)

    def end_step(self) -> None:
        """All have made it."""
        standing, self._standing = self._standing, None
        if standing is not None and len(self._kept) > 1:
            self._kept = {number: report for number, report in self._kept.items() if number >= standing.num_flushed}

    def undo_step(self) -> None:
        """Nobody has made the step that runs. What was sent in it comes again with the same number."""
        standing, self._standing = self._standing, None
        if standing is None:
            return
        if self._num_seen != standing.num_seen:
            self._num_seen = self._num_seen_in[self._session.position] = standing.num_seen
        self.num_done, self.num_results, self._pending = standing.num_done, standing.num_results, standing.pending
        self._kept = {number: report for number, report in self._kept.items() if number <= standing.num_flushed}

    def state_dict(self) -> dict[str, Any]:
        """Without the result that waits, which goes with a snapshot, or as one of `unsent` to another replica."""
        seen_in = [(at.epoch, at.loop, number) for at, number in self._num_seen_in.items()]
        return {"num_results": self.num_results, "num_done": self.num_done, "num_seen_in": seen_in}

    def load(self, state: Mapping[str, Any], *, resume: bool) -> None:
        """The state of a snapshot (`resume`: its results of the epoch are reported again), or of another replica."""
        self.num_results, self.num_done = state["num_results"], state["num_done"]
        self._num_seen_in = {Position(epoch=epoch, loop=loop): number for epoch, loop, number in state["num_seen_in"]}
        self._standing = None
        if not resume:
            self._num_seen = self.num_done

    def unsent(self) -> tuple[Sequence[_Report], _Report | None]:
        """For another replica: those that are kept, without files, which may be large; and the one that waits."""
        return [replace(report, files=None) for report in self._kept.values()], self._pending

    def load_unsent(self, unsent: tuple[Sequence[_Report], _Report | None]) -> None:
        """Those of another replica, whose state was loaded."""
        kept, self._pending = unsent
        self._kept = {report.number: self._kept.get(report.number, report) for report in kept}

    def report(self, metrics: dict[str, Any], files: dict[str, bytes] | None) -> None:
        """A result of the user's function; nothing, if the job has made it before."""
        session = self._session
        self._num_seen += 1
        if session.loop is not None:
            self._num_seen_in[session.position] = self._num_seen
        if not session.joined or session.is_skipping or self._num_seen <= self.num_done:
            return
        self.flush()
        self.num_done = self._num_seen
        self.num_results += 1
        self._pending = _Report(metrics={**metrics, **own_metrics(session)}, files=files, number=self.num_results)

    def flush(self) -> None:
        """Sends the result that waits, if there is one."""
        report = self._take_pending() if self._session.joined else None
        if report is None or self._session.rank != 0:
            return
        states = None
        if self._session.loop is None and self._is_worth_a_snapshot(
            report
        ):  # within a step, its state is none to go on from
            began = time.monotonic()
            states = self._session.capture()
            self._note_copy(time.monotonic() - began)
        self._send(report, states)

    @property
    def wants_snapshot(self) -> bool:
        """Whether the result that waits should go with a snapshot, at the next boundary of the loop that runs."""
        return self._pending is not None and self._is_worth_a_snapshot(self._pending)

    def _is_worth_a_snapshot(self, report: _Report) -> bool:
        return report.files is not None or time.monotonic() >= self._next_snapshot_at

    def _note_copy(self, copy_s: float) -> None:
        """A copy for a snapshot was made just now, and took so long."""
        self.snapshot_at = time.monotonic()
        if copy_s > _CHEAP_SNAPSHOT_S:
            self._next_snapshot_at = self.snapshot_at + copy_s * (1 / _SNAPSHOT_SHARE - 1)

    def send_again(self) -> None:
        """A new rank 0 sends what the one before it may not have sent; whoever gets it knows its number."""
        kept = list(self._kept.values())
        for report in kept:
            # A state must not be kept without the results that it contains.
            is_last = report is kept[-1] and self._pending is None
            self._send(report, self._session.capture() if is_last else None)

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

    def send_snapshot(self, states: dict[str, Any], *, copy_s: float) -> None:
        """Sends a snapshot of `states`, a copy that took so long, and the result that waits, which they contain; returns at
        once."""
        self._note_copy(copy_s)
        self._sent = self._sender.submit(self._write, states, self._take_pending())

    def send_snapshot_now(self, states: dict[str, Any]) -> None:
        """As `send_snapshot`, and waits until it was taken."""
        self.wait()
        self._write(states, self._take_pending())

    def _take_pending(self) -> _Report | None:
        pending, self._pending = self._pending, None
        if pending is not None:
            if self._session.num_replicas == 1:  # there is nobody who could be lost
                self._kept = {}
            self._kept[pending.number] = pending
            self._kept.pop(pending.number - _MOST_KEPT, None)
        return pending

    def _write(self, states: dict[str, Any], report: _Report | None) -> None:
        snapshot, host = write_snapshot(states), self._session.host
        if report is None:
            host.snapshot(snapshot, int(states["session"]["num_steps"]))
        else:
            host.report(report.metrics, report.files, snapshot, report.number)

    def wait(self) -> None:
        """Waits until all that was sent was taken. Raises what went wrong with it."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def close(self) -> None:
        self.wait()
        self._sender.shutdown(wait=True)
