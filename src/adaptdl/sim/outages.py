"""Nodes that fail and come back at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.policy import Node
from adaptdl.sim.simulator import Outage

__all__ = ["random_outages"]


def random_outages(
    nodes: Sequence[Node], *, seed: int, mean_between_s: float, mean_away_s: float, until_s: float
) -> list[Outage]:
    """Every node by itself is there for a random time, away for a random time, and so on; same arguments, same outages.

    Args:
        nodes: the cluster. A node's outages do not depend on how many others there are.
        seed: of the times.
        mean_between_s: mean time from a node's return to its next failure, exponential.
        mean_away_s: mean time that it is away, exponential.
        until_s: no failures from then on.

    Raises:
        UsageError: times that are not finite and > 0.
    """
    for name, value in (("mean_between_s", mean_between_s), ("mean_away_s", mean_away_s), ("until_s", until_s)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"`{name}` must be finite and > 0, but got ({name}={value}).")
    outages: list[Outage] = []
    for i, node in enumerate(nodes):
        rng = np.random.default_rng([seed, i])
        from_s = float(rng.exponential(mean_between_s))
        while from_s < until_s:
            to_s = from_s + float(rng.exponential(mean_away_s))
            outages.append(Outage(node_id=node.node_id, from_s=from_s, to_s=to_s))
            from_s = to_s + float(rng.exponential(mean_between_s))
    return sorted(outages, key=lambda outage: (outage.from_s, outage.node_id))
