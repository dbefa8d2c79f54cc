"""What a user may say about the replicas of a job."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from adaptdl.errors import UsageError

__all__ = ["ElasticConfig"]


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """How one job may be spread over a cluster.

    Raises:
        UsageError: a bound is missing its meaning; the message names the field, what must hold and what came.
    """

    resources_per_replica: Mapping[str, float] | None = None
    """What one replica holds, as Ray names it: ``{"GPU": 1, "CPU": 4}``. None: one GPU if the cluster has GPUs, else
    one CPU."""
    min_replicas: int = 1
    """A job runs on at least so many replicas, or waits, ≥ 1."""
    max_replicas: int | None = None
    """A job runs on at most so many replicas. None: as many as are useful."""
    boot_timeout_s: float = 120.0
    """A replica that has not reached its data loop in this time is given up, > 0."""
    reservation_timeout_s: float = 30.0
    """A place on a node that Ray has not granted in this time is given up, > 0."""
    join_timeout_s: float = 30.0
    """How long replicas wait for each other when they form a group, > 0."""
    leave_timeout_s: float = 5.0
    """How long a replica that left may take to unwind the user's function before its process is ended, > 0."""
    gather_s: float = 5.0
    """How long replicas that are ready wait for others that start, ≥ 0."""
    fork_processes: bool = True
    """Whether replicas' processes are forked from one on each host that has imported torch (on Linux): half of the time and
    of the computing."""
    idle_process_s: float = 120.0
    """How long the process of a replica without devices is kept after it left, for the next replica on its node, ≥ 0."""
    snapshot_interval_s: float = 30.0
    """How often the state of the job is copied to the coordinator, > 0."""
    contact_timeout_s: float = 60.0
    """A trial that nobody has spoken to in this time runs without the scheduler it needs, and fails, > 0."""
    progress_timeout_s: float = 30.0
    """A replica that hands out no batch for so long, and for 20 times as long as a step takes, while it waits for no other
    one, is taken as lost, > 0. It is 120 s at least before the first steps, which may compile."""
    max_recoveries: int = 3
    """How often in a row a job is started again after it lost a replica, without having made a step in between, ≥ 0."""

    def __post_init__(self) -> None:
        if self.resources_per_replica is not None:
            object.__setattr__(self, "resources_per_replica", _checked_resources(self.resources_per_replica))
        _check_whole("min_replicas", self.min_replicas, 1)
        _check_whole("max_recoveries", self.max_recoveries, 0)
        if not isinstance(self.fork_processes, bool):
            raise UsageError(f"`fork_processes` must be True or False, but got {self.fork_processes!r}")
        if self.max_replicas is not None:
            _check_whole("max_replicas", self.max_replicas, 1)
            if self.max_replicas < self.min_replicas:
                raise UsageError(
                    "`min_replicas <= max_replicas` must hold, but got "
                    f"(min_replicas={self.min_replicas}, max_replicas={self.max_replicas})"
                )
        for field in fields(self):
            if field.name.endswith("_s"):
                value = getattr(self, field.name)
                if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                    raise UsageError(f"`{field.name}` must be a time in seconds, but got {value!r}")
                if value == 0 and field.name not in ("gather_s", "idle_process_s"):
                    raise UsageError(f"`{field.name} > 0` must hold, but got 0")

    def with_defaults(self, defaults: ElasticConfig, *, stated: Collection[str] = ()) -> ElasticConfig:
        """This config, with what it leaves at its default value taken from `defaults`, but for the fields `stated`."""
        plain = ElasticConfig()
        taken: dict[str, Any] = {
            field.name: getattr(defaults, field.name)
            for field in fields(self)
            if field.name not in stated and getattr(self, field.name) == getattr(plain, field.name)
        }
        return replace(self, **taken)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"`{name}` must be a whole number ≥ {least}, but got {value!r}")


def _checked_resources(resources: Mapping[str, float]) -> dict[str, float]:
    """Ray's spelling of `resources` (``cpu`` and ``gpu`` are taken as ``CPU`` and ``GPU``), zero entries dropped."""
    if not isinstance(resources, Mapping):
        raise UsageError(f'`resources_per_replica` must be a mapping such as {{"CPU": 1}}, but got {resources!r}')
    checked: dict[str, float] = {}
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount) or amount < 0:
            raise UsageError(f"`resources_per_replica[{name!r}]` must be a number ≥ 0, but got {amount!r}")
        if amount > 1 and amount != int(amount):
            raise UsageError(f"`resources_per_replica[{name!r}]` above 1 must be whole, but got {amount!r}")
        if amount > 0:
            checked[name.upper() if name.lower() in ("cpu", "gpu") else name] = float(amount)
    if not checked:
        raise UsageError(f"`resources_per_replica` must ask for something, but got {dict(resources)!r}")
    return checked
