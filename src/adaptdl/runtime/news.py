"""What a coordinator knows of its job's progress, and the columns it adds to every result."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from adaptdl.goodput import JobReport
from adaptdl.plan import Position, Switched, Update
from adaptdl.runtime.messages import JobStatus, Phase, Reallocation

__all__ = ["COLUMNS", "News"]

COLUMNS = (
    "adaptdl/num_replicas",
    "adaptdl/num_nodes",
    "adaptdl/num_restarts",
    "adaptdl/batch_size",
    "adaptdl/goodput",
    "adaptdl/efficiency",
    "adaptdl/progress",
    "adaptdl/pause_s",
    "adaptdl/num_skipped_steps",
)
"""In every result, from the first one on: tables and CSV files take their columns from it."""

_NUM_KEPT = 20
"""Reallocations told in a status: more than happen between two looks."""


class News:
    """What a job has done so far.

    Args:
        num_restarts: reallocations made before, if the job is restored.
        pause_s: their pauses together.
        restored: its first generation here starts from a snapshot.
    """

    def __init__(self, *, num_restarts: int = 0, pause_s: float = 0.0, restored: bool = False) -> None:
        self.num_restarts = num_restarts
        self.pause_s = pause_s
        self.num_generations = 0
        self.steps = 0
        self.step_time_s: float | None = None
        """How long a step took at last, while nothing else was done."""
        self._stepped_at: float | None = None
        self._restored = restored
        self._num_replicas = 0
        self._num_nodes = 0
        self._boot_s: float | None = None
        self._report: JobReport | None = None
        self._metrics: dict[str, float] = {}
        self._reallocations: deque[Reallocation] = deque(maxlen=_NUM_KEPT)

    def booted(self, boot_s: float) -> None:
        """A replica stood at its data loop after so long."""
        self._boot_s = boot_s

    @property
    def boot_s(self) -> float | None:
        return self._boot_s

    def updated(self, update: Update, now: float) -> None:
        """Rank 0 has told how it stands."""
        made = update.place.steps - self.steps
        if made > 0:
            if self._stepped_at is not None:
                self.step_time_s = (now - self._stepped_at) / made
            self._stepped_at = now
        self.steps = max(self.steps, update.place.steps)
        if update.report is not None:
            self._report = update.report
        self._metrics.update(update.metrics)

    def switched(self, switched: Switched, reason: str) -> Reallocation:
        """A generation has begun."""
        if self.num_generations > 0 or self._restored:
            self.num_restarts += 1
        self.num_generations += 1
        self.pause_s += switched.pause_s
        self.steps = max(self.steps, switched.steps)
        reallocation = Reallocation(
            number=self.num_restarts,
            before=self._num_replicas,
            after=switched.num_replicas,
            num_nodes=switched.num_nodes,
            reason=reason,
            pause_s=switched.pause_s,
            steps=switched.steps,
        )
        self._num_replicas, self._num_nodes = switched.num_replicas, switched.num_nodes
        self._reallocations.append(reallocation)
        return reallocation

    def steps_from(self, now: float) -> None:
        """The steps of a generation begin."""
        self._stepped_at = now

    def began_alone(self, generation: int, reason: str) -> None:
        """A first generation of one replica has begun. It says so itself only at its first data loop, if it has one."""
        self.switched(
            Switched(
                generation=generation, num_replicas=1, num_nodes=1, position=Position(), steps=self.steps, pause_s=0.0
            ),
            reason,
        )

    def lost(self) -> None:
        """All replicas are gone; the next generation starts from a snapshot."""
        self._num_replicas = self._num_nodes = 0
        self._stepped_at = None

    def completed(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """`metrics` with all of `COLUMNS`, the user's own ones first."""
        known = {**self._metrics, **{name: value for name, value in metrics.items() if name in COLUMNS}}
        known["adaptdl/num_restarts"] = self.num_restarts
        known["adaptdl/pause_s"] = self.pause_s
        known.setdefault("adaptdl/num_replicas", self._num_replicas)
        known.setdefault("adaptdl/num_nodes", self._num_nodes)
        known.setdefault("adaptdl/batch_size", 0)
        known.setdefault("adaptdl/progress", 0.0)
        known.setdefault("adaptdl/num_skipped_steps", 0)
        own = {name: value for name, value in metrics.items() if name not in COLUMNS}
        return {**own, **{name: known.get(name, math.nan) for name in COLUMNS}}

    def status(
        self,
        *,
        phase: Phase,
        allocation: Mapping[str, int],
        held: Mapping[str, int],
        wish: Mapping[str, int],
        lost_on: frozenset[str],
        trouble: str,
    ) -> JobStatus:
        """With what the coordinator knows beside this."""
        return JobStatus(
            phase=phase,
            allocation=allocation,
            held=held,
            wish=wish,
            num_restarts=self.num_restarts,
            pause_s=self.pause_s,
            boot_s=self._boot_s,
            report=self._report,
            metrics=dict(self._metrics),
            reallocations=tuple(self._reallocations),
            lost_on=lost_on,
            trouble=trouble,
        )
