"""Seconds to a target with a batch size that adapts, beside the best of all that are held.

    python benchmarks/time_to_accuracy.py
    python benchmarks/time_to_accuracy.py --task digits --seeds 1 --no-check
    python benchmarks/time_to_accuracy.py --plot time_to_accuracy.png

Two tasks (digits by a ConvNet with SGD, text by a small transformer with AdamW) are trained on two replicas of one thread each,
with gloo between them, until a smoothed validation is at its target. Batch sizes are held at M₀, 2·M₀, … 8·M₀, each with the
rule for the learning rate that was first at the target with a seed of its own: the optimizer's default rule, linear, or none.
The adaptive run starts at M₀ with the default rule. Seconds are those of training: models are kept while the clock runs, and
validated while it stands. It takes about 25 minutes, and exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json
from learning.contest import (
    ADAPTIVE,
    Entrant,
    batch_sizes,
    best_held,
    choose_rules,
    compete,
    median_s,
    seconds_to_target,
)
from learning.plot import plot
from learning.rates import print_rates
from learning.running import open_processes
from learning.tasks import TIMED, Task
from learning.training import Point

Runs: TypeAlias = Mapping[Entrant, Sequence[Sequence[Point]]]
"""Of one task, by seed."""

_MAX_RATIO = 1.1


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__)
    print_machine(machine)
    tasks = {name: TIMED[name] for name in args.task}
    found: dict[str, Runs] = {}
    with open_processes() as processes:
        if args.rates:
            print()
            print_rates(processes, tasks, range(args.seeds), timed=True)
            return 0
        for name, task in tasks.items():
            held, took = choose_rules(processes, task, seed=args.seeds)
            print_rules(task, took)
            found[name] = compete(processes, task, held, range(args.seeds))
            print_runs(task, found[name])
    verdicts = list(bounds(tasks, found))
    write_json(args.json, as_json(machine, found, verdicts))
    if args.plot is not None:
        plot(found, tasks, args.plot)
    return conclude(verdicts, check=args.check)


def print_rules(task: Task, took: Mapping[Entrant, float]) -> None:
    """Seconds to the target by batch size and rule, with one seed."""
    print(f"\n{task.name}, which rule for the learning rate (one seed)")
    rows = [["M", "rule", "seconds"]]
    print_table([*rows, *([str(entrant.batch_size), entrant.rule, f"{s:.1f}"] for entrant, s in took.items())])
    sys.stdout.flush()


def print_runs(task: Task, runs: Runs) -> None:
    """All entrants, medians over the seeds."""
    metric = "accuracy" if task.by_accuracy else "loss"
    print(f"\n{task.name}, seconds to a validation {metric} of {task.target:g}")
    rows = [["", "median (min–max)", "adaptive / this", "batch sizes of the first run"]]
    for entrant, done in runs.items():
        took = [seconds_to_target(task, points) for points in done]
        cells = [f"{median_s(task, done):.1f} ({min(took):.1f}–{max(took):.1f})", f"{ratio(task, runs, entrant):.2f}"]
        rows.append([entrant.name, *cells, " ".join(map(str, batch_sizes(done[0])))])
    print_table(rows)
    sys.stdout.flush()


def ratio(task: Task, runs: Runs, entrant: Entrant) -> float:
    """Adaptive seconds to the target over those of `entrant`, median over the seeds."""
    pairs = zip(runs[ADAPTIVE], runs[entrant], strict=True)
    return statistics.median(seconds_to_target(task, one) / seconds_to_target(task, other) for one, other in pairs)


def bounds(tasks: Mapping[str, Task], found: Mapping[str, Runs]) -> Iterator[Bound]:
    """All that must hold."""
    for name, runs in found.items():
        task, best = tasks[name], best_held(tasks[name], runs)
        to_best = ratio(task, runs, best)
        text = f"{name}: seconds to the target ≤ {_MAX_RATIO} of the best that is held"
        yield Bound(text=text, value=to_best, holds=to_best <= _MAX_RATIO, remark=best.name)
        at_init = next(entrant for entrant in runs if entrant.batch_size == task.init_batch_size)
        to_init = ratio(task, runs, at_init)
        yield Bound(text=f"{name}: seconds to the target < those at M₀", value=to_init, holds=to_init < 1)


def as_json(machine: Mapping[str, Any], found: Mapping[str, Runs], verdicts: Sequence[Bound]) -> dict[str, Any]:
    """Every single validation."""
    runs = {
        name: {
            entrant.name: [[dataclasses.asdict(point) for point in points] for points in done]
            for entrant, done in of_task.items()
        }
        for name, of_task in found.items()
    }
    return {"run": machine, "validations": runs, "bounds": [vars(verdict) for verdict in verdicts]}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=[*TIMED], help="only this one; may be given several times")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind, of which medians are taken")
    parser.add_argument("--rates", action="store_true", help="show instead how the learning rates were chosen")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there (needs matplotlib)")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single validation there")
    args = parser.parse_args(arguments)
    args.task = args.task or [*TIMED]
    if args.seeds < 1:
        parser.error("--seeds must be ≥ 1")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
