"""Epochs that know how far the job has come."""

from __future__ import annotations

from collections.abc import Iterator

from adaptdl.errors import UsageError
from adaptdl.torch.ambient import current_session

__all__ = ["current_epoch", "finished_epochs", "remaining_epochs_until"]


def remaining_epochs_until(epoch: int) -> Iterator[int]:
    """The epochs from the first unfinished one to `epoch - 1`.

    A replica that joins later, and a job that is resumed, start at the epoch the job has reached. Code before the epoch
    loop may run again and must be idempotent; code at the end of an epoch runs once.

    Args:
        epoch: number of epochs the job should have finished, ≥ 0.

    Raises:
        UsageError: `epoch` is negative or not a whole number, or another epoch loop is running.
    """
    if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
        raise UsageError(f"the number of epochs must be a whole number ≥ 0, but got {epoch!r}")
    return _remaining(int(epoch))


def _remaining(epoch: int) -> Iterator[int]:
    session = current_session()
    while session.finished_epochs < epoch:
        current = session.begin_epoch(epoch)
        try:
            yield current
        except GeneratorExit:
            session.abandon_epoch()
            raise
        session.end_epoch()
    session.registry.settle()  # of a job that is resumed when all its epochs are over


def current_epoch() -> int | None:
    """The epoch that is running, from 0; None outside of ``remaining_epochs_until``."""
    return current_session().epoch


def finished_epochs() -> int:
    """How many epochs are over."""
    return current_session().finished_epochs
