"""What is known of the data loop that runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adaptdl.plan import Plan
from adaptdl.torch.tuning import Batch

if TYPE_CHECKING:
    from adaptdl.torch.loader import AdaptiveDataLoader

__all__ = ["Action", "Loop", "Micro", "Notice"]


class Action(enum.Enum):
    """What a loop does after a boundary."""

    CONTINUE = "continue"
    REPARTITION = "repartition"
    """The group has changed: take the next samples anew."""
    OVER = "over"
    """The loop has come to its end."""
    STOP = "stop"
    """Another replica has left the loop."""


@dataclass
class Loop:
    """A data loop that runs."""

    loader: AdaptiveDataLoader
    training: bool
    """Steps are expected, or were seen."""
    retuned_at: float
    """Monotonic time at which the batch size was last thought over."""
    better_batch: Batch | None = None
    """What rank 0 wants to change to."""
    quiet_until: float = float("-inf")
    """Monotonic time before which rank 0 need not look again whether a snapshot or another batch size is due."""
    steady_since: float | None = None
    """Monotonic time of the last boundary; None if the step that runs is the first one after something."""
    wait_s: float = 0.0
    """For which the step that runs has waited for its data."""
    covers_from: int = 0
    """Of a loop without steps on several replicas: position from which the shares below, of all replicas, cover the pass."""
    shares: list[tuple[int, int]] = field(default_factory=list)
    """Positions that this replica has done since: (first, number)."""
    lost_replicas: bool = False
    """Replicas were lost in this loop, and what they had done in it, if it has no steps."""
    hands_out: bool = True
    """False: the group was formed anew as the loop began; shares are settled at its end."""


@dataclass(kw_only=True, slots=True)
class Micro:
    """The part of a step that one batch from the loader is. Nobody changes it (a frozen one takes thrice as long to make)."""

    index: int
    count: int
    size: int
    """Samples of this replica in it, padding not counted."""
    previous_size: int
    """`size` of the part before within the step; 0 for the first."""
    share: int
    """Samples of this replica in the whole step."""
    batch_size: int
    """Samples of the whole step, over all replicas."""
    num_shares: int
    """Replicas with at least one sample in the step."""

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    @property
    def weight(self) -> float:
        """What the gradients, accumulated in units of this part, are multiplied with before they are summed."""
        return self.size / self.batch_size


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What rank 0 tells everybody at a boundary."""

    plan: Plan | None = None
    batch: Batch | None = None
    snapshot: bool = False
    interrupt: bool = False
