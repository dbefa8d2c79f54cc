"""How the learning rates of the tasks were chosen: at M₀, by the steps to the target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from findings import print_table

from learning.prediction import reached
from learning.running import Processes
from learning.tasks import Task
from learning.training import Run

__all__ = ["print_rates"]


def print_rates(processes: Processes, tasks: Mapping[str, Task], seeds: Iterable[int], *, timed: bool) -> None:
    """Median steps to the target by task and learning rate."""
    rows = [["", "learning rate", "steps", "seeds that reach the target"]]
    runs = [
        Run(task=name, timed=timed, batch_size=task.init_batch_size, seed=seed, rate=rate)
        for name, task in tasks.items()
        for rate in task.rates
        for seed in seeds
    ]
    steps: dict[tuple[str, float], list[float]] = {}
    for run, points in zip(runs, processes.each(runs), strict=True):
        assert run.rate is not None
        end = reached(run.definition, points)
        steps.setdefault((run.task, run.rate), []).append(float("inf") if end is None else end.steps)
    for (name, rate), found in steps.items():
        chosen = "  (the task's)" if rate == tasks[name].rate else ""
        number = sum(one < float("inf") for one in found)
        rows.append([name, f"{rate:g}{chosen}", f"{statistics.median(found):g}", f"{number} of {len(found)}"])
    print_table(rows)
