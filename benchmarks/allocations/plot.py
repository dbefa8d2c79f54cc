"""The time of a decision by the size of the cluster, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allocations.scale import Measured

__all__ = ["plot"]

PUBLISHED = (("Sia", 2_048, 5.0), ("Pollux", 2_048, 960.0))
"""(policy, GPUs, seconds per decision), Sia, SOSP 2023, figure 9: on the authors' machine, not on this one."""


def plot(rounds: Sequence[Measured], file: Path) -> None:
    """Writes `file`; the kind of picture is that of its ending. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for text, churned, marker in (("from an empty cluster", False, "o"), ("after 5 % churn, worst of 3", True, "s")):
        slowest: dict[int, float] = {}
        for measured in rounds:
            case = measured.case
            if case.fairness == 0.5 and not case.mixed and (measured.churn > 0) == churned:
                slowest[case.num_gpus] = max(measured.wall_s, slowest.get(case.num_gpus, 0.0))
        axes.plot(list(slowest), list(slowest.values()), marker=marker, label=f"OptimalPolicy, {text}")
    for name, num_gpus, wall_s in PUBLISHED:
        axes.plot([num_gpus], [wall_s], marker="x", markersize=8, linestyle="", color="black")
        axes.annotate(f"{name}, {wall_s:g} s as published", (num_gpus, wall_s), xytext=(-8, -3), ha="right",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="GPUs (0.2 jobs each)", ylabel="seconds per decision")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.8))
    figure.savefig(file)
