"""What is to happen, and when: drawn from the seed before anything begins."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

__all__ = ["Event", "Kind", "Weather", "draw_events"]


class Kind(enum.Enum):
    """What happens."""

    KILL = "replica killed"
    LOSE = "node lost"
    DRAIN = "node drained"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that is to happen."""

    kind: Kind
    at_s: float
    """Seconds after the storm has begun."""
    draw: float
    """In [0, 1): which of those who can be hit is."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad it is."""

    duration_s: float
    kill_interval_s: float = 10.0
    """Mean time between two killed replicas; the times between are exponential."""
    node_interval_s: float = 60.0
    """A node is lost or drained, in turns."""


def draw_events(seed: int, weather: Weather) -> list[Event]:
    """All that is to happen, in the order of time."""
    random = np.random.default_rng(seed)
    events = []
    at_s = random.exponential(weather.kill_interval_s)
    while at_s < weather.duration_s:
        events.append(Event(kind=Kind.KILL, at_s=at_s, draw=random.random()))
        at_s += random.exponential(weather.kill_interval_s)
    kinds, first = (Kind.LOSE, Kind.DRAIN), int(random.integers(2))
    for number in range(int(weather.duration_s / weather.node_interval_s + 0.5)):
        kind, at_s = kinds[(first + number) % 2], (number + 0.5) * weather.node_interval_s
        events.append(Event(kind=kind, at_s=at_s, draw=random.random()))
    return sorted(events, key=lambda event: event.at_s)
