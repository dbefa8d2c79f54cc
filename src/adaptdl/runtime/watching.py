"""Finding out which replica hangs. Pure, but for what it remembers: pulses and times in, names out.

A group makes steps together, so one replica that hangs (a stopped process, a stuck data loader) stops all. Those that wait for
it are not the ones: what counts is who stands still without waiting for another one.

  limit       max(progress_timeout_s, 20 × step time): nothing is suspected before
  stands      no batch, step or loop more since it was first seen so
  abandoned   the members were told that their group does not work: whatever waits in it has failed then

Who still says after the limit that it waits in a group that was abandoned is stuck in something else (a backward pass that
began before, a collective of the user's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptdl.plan import LoopKind, Pulse

__all__ = ["Finding", "Watch", "progress_limit_s"]

STEPS_MISSED = 20.0
"""A step that takes so many times what steps took before is not a slow one."""

SHARE_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a look at all members has shown."""

    hanging: Mapping[str, str] = field(default_factory=dict)
    """replica_id → why."""
    deadlocked: bool = False
    """All wait for each other: the group does not work."""


def progress_limit_s(progress_timeout_s: float, step_time_s: float | None, first_timeout_s: float) -> float:
    """After how long without progress replicas are looked at. `first_timeout_s`: before the first steps (compilation)."""
    if step_time_s is None:
        return max(progress_timeout_s, first_timeout_s)
    return max(progress_timeout_s, STEPS_MISSED * step_time_s)


class Watch:
    """Remembers since when each replica has been where it is."""

    def __init__(self) -> None:
        self._stands: dict[str, tuple[Any, float]] = {}

    def look(
        self,
        pulses: Mapping[str, Pulse | None],
        now: float,
        limit_s: float,
        *,
        abandoned_at: float | None = None,
    ) -> Finding:
        """Takes the pulses of all members; None is one that did not answer.

        Args:
            abandoned_at: when their group was abandoned, if it was.
        """
        self._stands = {replica_id: self._since(replica_id, pulse, now) for replica_id, pulse in pulses.items()}
        stood_s = {replica_id: now - since for replica_id, (_, since) in self._stands.items()}
        may_wait = abandoned_at is None or now - abandoned_at <= limit_s
        hanging = {}
        for replica_id, pulse in pulses.items():
            if stood_s[replica_id] <= limit_s:
                continue
            if pulse is None:
                hanging[replica_id] = f"it has not answered for {stood_s[replica_id]:.0f} s"
            elif pulse.waited_s is None and pulse.place.kind is not LoopKind.BETWEEN:
                hanging[replica_id] = f"no batch for {stood_s[replica_id]:.0f} s in a {pulse.place.kind.value} loop"
            elif pulse.waited_s is not None and not may_wait:
                hanging[replica_id] = f"it has not left its group, which does not work, for {stood_s[replica_id]:.0f} s"
        all_wait = len(pulses) > 1 and all(
            pulse is not None and (pulse.waited_s or 0.0) > limit_s for pulse in pulses.values()
        )
        return Finding(hanging=hanging, deadlocked=all_wait)

    def _since(self, replica_id: str, pulse: Pulse | None, now: float) -> tuple[Any, float]:
        before = self._stands.get(replica_id)
        if pulse is None:  # then it is where it was, as far as is known
            return before or (None, now)
        here = (pulse.generation, pulse.place.position, pulse.place.steps, pulse.num_batches)
        return before if before is not None and before[0] == here else (here, now)
