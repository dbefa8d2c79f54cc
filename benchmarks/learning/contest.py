"""The runs of `time_to_accuracy.py`: at batch sizes that are held, each with its best scaling rule, and at one that adapts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from learning.prediction import reached
from learning.running import Processes
from learning.tasks import Task
from learning.training import RULES, Point, Run

__all__ = [
    "ADAPTIVE",
    "Entrant",
    "batch_sizes",
    "best_held",
    "choose_rules",
    "compete",
    "median_s",
    "seconds_to_target",
]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One way to train a task."""

    batch_size: int | None
    """M, held; None: it follows the goodput."""
    rule: str

    @property
    def name(self) -> str:
        return "adaptive" if self.batch_size is None else f"{self.batch_size}, {self.rule}"


ADAPTIVE = Entrant(batch_size=None, rule="default")


def seconds_to_target(task: Task, points: Sequence[Point]) -> float:
    """Of training; infinite if the target was not reached."""
    end = reached(task, points)
    return math.inf if end is None else end.seconds


def median_s(task: Task, runs: Sequence[Sequence[Point]]) -> float:
    """Median seconds to the target."""
    return statistics.median(seconds_to_target(task, points) for points in runs)


def batch_sizes(points: Sequence[Point]) -> list[int]:
    """Those that a run was at, in their order."""
    return [size for size, _ in itertools.groupby(point.batch_size for point in points)]


def choose_rules(processes: Processes, task: Task, seed: int) -> tuple[list[Entrant], dict[Entrant, float]]:
    """For each M the scaling rule that is first at the target; and the seconds of all that were tried."""
    took: dict[Entrant, float] = {}
    chosen = []
    for scale in (2**k for k in range(task.max_scale.bit_length())):
        rules = RULES if scale > 1 else ["default"]
        entrants = [Entrant(batch_size=scale * task.init_batch_size, rule=rule) for rule in rules]
        for entrant in entrants:
            took[entrant] = seconds_to_target(task, _train(processes, task, entrant, seed))
        chosen.append(min(entrants, key=lambda entrant: took[entrant]))
    return chosen, took


def compete(
    processes: Processes, task: Task, held: Iterable[Entrant], seeds: Iterable[int]
) -> dict[Entrant, list[list[Point]]]:
    """All entrants with each seed, seed by seed, so that whatever else the machine does meets all of them."""
    runs: dict[Entrant, list[list[Point]]] = {entrant: [] for entrant in (ADAPTIVE, *held)}
    for seed in seeds:
        for entrant, done in runs.items():
            done.append(_train(processes, task, entrant, seed))
    return runs


def _train(processes: Processes, task: Task, entrant: Entrant, seed: int) -> list[Point]:
    return processes.together(
        Run(task=task.name, timed=True, batch_size=entrant.batch_size, seed=seed, rule=entrant.rule)
    )


def best_held(task: Task, runs: Mapping[Entrant, Sequence[Sequence[Point]]]) -> Entrant:
    """The batch size that was the best one, as is known afterwards."""
    return min((entrant for entrant in runs if entrant != ADAPTIVE), key=lambda entrant: median_s(task, runs[entrant]))
