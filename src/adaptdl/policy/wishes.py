"""What a job could be given, and what it is to be given, in pieces: on nodes of a class, not yet on real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Options", "Wish"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one job may get, with the value of each choice over having nothing; only values > 0 matter."""

    kind: int
    stay: float = 0.0
    """Value of staying."""
    standing: Mapping[int, int] | None = None
    """Where it stays: by node's index, number of replicas."""
    near: float = 0.0
    """Value, on top of the following ones, of being on one node; on several it falls towards 0 with their number."""
    single: Sequence[tuple[int, float]] = ()
    """On one node: (K, value)."""
    spanning: Sequence[tuple[int, int, int, float]] = ()
    """On several nodes: (K, smallest N, largest N, value)."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one job is to get."""

    sizes: tuple[int, ...]
    """Its pieces, descending; empty: nothing."""
    stays: bool = False
