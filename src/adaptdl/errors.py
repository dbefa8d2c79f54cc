"""The errors of this library. All pickle, so that they can cross an actor boundary."""

from __future__ import annotations

__all__ = ["AdaptDLError", "SnapshotError", "UsageError"]


class AdaptDLError(Exception):
    """Root of all errors raised by AdaptDL."""


class UsageError(AdaptDLError, ValueError):
    """Something was asked for that cannot be done; the message says what must hold, what came, and what to do."""


class SnapshotError(AdaptDLError):
    """A snapshot or checkpoint is damaged, from another version, or from another model."""
