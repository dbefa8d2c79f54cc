"""What all policies have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptdl.policy.cluster import Allocation, Job, Node

__all__ = ["Decision", "Policy"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A policy's answer."""

    allocations: Mapping[str, Allocation]
    """`job_id` → allocation, for every job that was asked about."""
    objective: float
    """What the policy maximises, at these allocations; comparable within one policy only."""
    gap: float | None
    """How far from the best possible the objective may be, as a fraction of it; None if nothing is proven."""
    message: str
    """How the answer came about, for the log."""


class Policy(Protocol):
    """Who gets what. A pure function: same input, same answer, and the input is left alone.

    Its answers fit the nodes and the jobs' limits (`violations` finds nothing), are never worse than staying put by the
    policy's own objective, and stay as they are when asked again with them as `current`.
    """

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """An allocation for each of `jobs`; those that `current` lacks have nothing, and it may name what is gone."""
