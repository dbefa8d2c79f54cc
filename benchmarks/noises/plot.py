"""The noise scale along trainings, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from noises.following import Look
from noises.training import Case

__all__ = ["plot"]

_COLUMNS = 2


def plot(found: Mapping[Case, Sequence[Look]], file: Path) -> None:
    """Writes `file`; the kind of picture is that of its ending. Needs matplotlib."""
    from matplotlib.figure import Figure

    rows = -(-len(found) // _COLUMNS)
    figure = Figure(figsize=(5.5 * _COLUMNS, 3.2 * rows), layout="constrained")
    for number, (case, looks) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        steps = [look.step for look in looks]
        axes.plot(steps, [look.truth.ratio for look in looks], color="black", marker=".", linewidth=0.8, label="true")
        axes.plot(steps, [look.measured.ratio for look in looks], label="AdaptDL")
        if case.num_replicas == 1:
            ratios = [look.consecutive.ratio for look in looks]
            axes.plot(steps, ratios, linestyle="--", label="pairs of consecutive steps")
        axes.set(title=f"{case.problem}, {case.num_replicas} replica{'s' * (case.num_replicas > 1)}", yscale="log")
        axes.set(xlabel="steps", ylabel="φ / M₀", ylim=(0.3, 2e4))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file)
