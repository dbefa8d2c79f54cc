"""The validation over the seconds, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from learning.contest import ADAPTIVE, Entrant, seconds_to_target
from learning.tasks import Task
from learning.training import Point

__all__ = ["plot"]


def plot(
    runs: Mapping[str, Mapping[Entrant, Sequence[Sequence[Point]]]], tasks: Mapping[str, Task], file: Path
) -> None:
    """Writes `file`; the kind of picture is that of its ending. Of each entrant the run that took the median time to the target.
    Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(runs), 3.6), layout="constrained")
    for axes, (name, of_task) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        task = tasks[name]
        for entrant, done in of_task.items():
            points = sorted(done, key=lambda points: seconds_to_target(task, points))[(len(done) - 1) // 2]
            seconds, values = [point.seconds for point in points], [point.value for point in points]
            style = {"linewidth": 3, "color": "black"} if entrant == ADAPTIVE else {"linewidth": 1}
            axes.plot(seconds, values, label=entrant.name, **style)
        axes.axhline(task.target, color="grey", linestyle=":")
        metric = "accuracy" if task.by_accuracy else "loss"
        axes.set(title=name, xlabel="seconds of training", ylabel=f"validation {metric}", ylim=_limits(task))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file)


def _limits(task: Task) -> tuple[float, float]:
    """Around the target: what the first steps do is of no interest."""
    return (0.8, 1.0) if task.by_accuracy else (0.9 * task.target, 1.6 * task.target)
