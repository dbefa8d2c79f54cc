"""What a policy is told: nodes, jobs, and who has what at present."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError

__all__ = ["Allocation", "Job", "Node", "num_nodes", "num_replicas"]

Allocation: TypeAlias = Mapping[str, int]
"""Of one job: `node_id` → number of replicas there, without zeros. Empty: the job has nothing."""


def num_replicas(allocation: Mapping[Any, int]) -> int:
    """K: all replicas."""
    return sum(allocation.values())


def num_nodes(allocation: Mapping[Any, int]) -> int:
    """N: distinct nodes."""
    return len(allocation)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine."""

    node_id: str
    resources: Mapping[str, float]
    """What our jobs may use here, by name: the node's total less what others use."""
    draining: bool = False
    """Whether the node is about to go: nothing new is put here, and what is here has to move."""

    def __post_init__(self) -> None:
        _check_amounts(f"node {self.node_id!r}", self.resources)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One job, running or waiting. Raises UsageError if its numbers contradict each other."""

    job_id: str
    resources: Mapping[str, float]
    """What one replica needs, by name; at least one amount is > 0."""
    max_replicas: int
    min_replicas: int = 1
    """A job has nothing or at least this many replicas."""
    speedup: NDArray[np.float64] = field(repr=False)
    """Shape (N + 1, K + 1): speedup on N nodes and K replicas, 0 where that is no use. More nodes than it has rows for
    count as its last row; more replicas than it has columns for are not given."""
    weight: float = 1.0
    """How much the job counts, > 0."""
    move_cost: float = 0.0
    """Fraction of the time for which another allocation would last that changing to it costs the job, in [0, 1)."""
    pinned: bool = False
    """Whether an allocation, once there, must stay as it is."""
    arrival: float = 0.0
    """When the job came, in any unit: earlier ones come first where all else is equal."""
    requested_replicas: int | None = None
    """What its user asked for, for policies that give that or nothing; None: `min_replicas`."""
    service_s: float = 0.0
    """Attained service: replicas it has held × seconds, >= 0."""
    remaining_s: float | None = None
    """Seconds of training to go at a speedup of 1, > 0; None if nobody knows."""

    def __post_init__(self) -> None:
        name = f"job {self.job_id!r}"
        _check_amounts(name, self.resources)
        if not any(amount > 0 for amount in self.resources.values()):
            raise UsageError(f"{name}: a replica must need some resource, but got (resources={dict(self.resources)}).")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UsageError(
                f"{name}: `1 <= min_replicas <= max_replicas` must hold, but got "
                f"(min_replicas={self.min_replicas}, max_replicas={self.max_replicas})."
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"{name}: `weight` must be finite and > 0, but got (weight={self.weight}).")
        if not 0 <= self.move_cost < 1:
            raise UsageError(f"{name}: `0 <= move_cost < 1` must hold, but got (move_cost={self.move_cost}).")
        if self.requested_replicas is not None and not (
            self.min_replicas <= self.requested_replicas <= self.max_replicas
        ):
            raise UsageError(
                f"{name}: `min_replicas <= requested_replicas <= max_replicas` must hold, but got "
                f"(min_replicas={self.min_replicas}, requested_replicas={self.requested_replicas}, "
                f"max_replicas={self.max_replicas})."
            )
        if not (math.isfinite(self.service_s) and self.service_s >= 0):
            raise UsageError(f"{name}: `service_s` must be finite and >= 0, but got (service_s={self.service_s}).")
        if self.remaining_s is not None and not (math.isfinite(self.remaining_s) and self.remaining_s > 0):
            raise UsageError(f"{name}: `remaining_s` must be finite and > 0, but got (remaining_s={self.remaining_s}).")
        table = np.array(self.speedup, dtype=np.float64)  # our own copy
        if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all() or (table < 0).any():
            raise UsageError(
                f"{name}: `speedup` must be a table of finite numbers >= 0 for at least one node and one replica, "
                f"but got one of shape {table.shape}."
            )
        table.setflags(write=False)
        object.__setattr__(self, "speedup", table)

    def speedup_at(self, num_nodes: int, num_replicas: int) -> float:
        """Speedup on N nodes and K replicas; 0 with nothing and beyond the table's replicas."""
        if not 0 < num_replicas < self.speedup.shape[1]:
            return 0.0
        return float(self.speedup[min(num_nodes, self.speedup.shape[0] - 1), num_replicas])

    @property
    def most_replicas(self) -> int:
        """The largest K that is of use: within `max_replicas` and with a speedup on some number of nodes; 0 if none."""
        useful = np.flatnonzero(self.speedup[1:].any(axis=0))
        useful = useful[(useful >= self.min_replicas) & (useful <= self.max_replicas)]
        return int(useful[-1]) if useful.size else 0


def _check_amounts(owner: str, resources: Mapping[str, float]) -> None:
    for name, amount in resources.items():
        if not (math.isfinite(amount) and amount >= 0):
            raise UsageError(f"{owner}: amounts of resources must be finite and >= 0, but got ({name}={amount}).")
