"""Whether statistical efficiency predicts: steps to a target at M₀, 2·M₀, 4·M₀ and 8·M₀, measured and predicted.

    python benchmarks/efficiency.py
    python benchmarks/efficiency.py --task digits --seeds 1
    python benchmarks/efficiency.py --rates

Two tasks (digits by a ConvNet, text by a small transformer) are trained to a fixed validation loss, by SGD with momentum and
AdaScale and the transformer also by AdamW and its default rule, on one replica that makes each step of two parts. All that a
prediction knows is from the run at M₀ with the same seed: the gradient statistics along its progress, and the progress at which
it reached the target. Learning rates are the best ones of a grid at M₀ (`--rates` shows it), and its lowest ones ("slower"). The
batch size is M₀ for the first steps, as nothing is known of the noise before. It takes about 20 minutes, and exits with 1 if one
of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json
from learning.prediction import noise_scales, predicted_steps, reached
from learning.rates import print_rates
from learning.running import Processes, open_processes
from learning.tasks import PREDICTED, Task
from learning.training import Point, Run

_MAX_ERROR = 0.15


@dataclass(frozen=True, kw_only=True)
class Reached:
    """One run at M that reached the target."""

    seed: int
    scale: int
    """M / M₀."""
    measured: int
    """Steps."""
    predicted: float
    progress: float
    """By the session's own account."""
    init_progress: float
    """Of the run at M₀."""
    noise_scales: tuple[float, float]
    """Smallest and largest φ of the run."""

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__)
    print_machine(machine)
    tasks = {name: PREDICTED[name] for name in args.task}
    found: dict[str, list[Reached]] = {}
    with open_processes() as processes:
        if args.rates:
            print()
            print_rates(processes, tasks, range(args.seeds), timed=False)
            return 0
        for name, task in tasks.items():
            found[name] = list(compare(processes, task, range(args.seeds)))
            print_found(task, found[name])
    verdicts = list(bounds(found))
    runs = {name: [dataclasses.asdict(one) for one in ends] for name, ends in found.items()}
    write_json(args.json, {"run": machine, "reached": runs, "bounds": [vars(verdict) for verdict in verdicts]})
    return conclude(verdicts, check=args.check)


def scales(task: Task) -> list[int]:
    """M / M₀: 1, 2, 4, … up to the task's largest."""
    return [2**k for k in range(task.max_scale.bit_length())]


def compare(processes: Processes, task: Task, seeds: Iterable[int]) -> Iterator[Reached]:
    """Trains with each seed at each batch size. Raises SystemExit if a target is not reached."""
    runs = [
        Run(task=task.name, timed=False, batch_size=scale * task.init_batch_size, seed=seed)
        for seed in seeds
        for scale in scales(task)
    ]
    at_init: list[Point] = []
    for run, points in zip(runs, processes.each(runs), strict=True):
        assert run.batch_size is not None
        if run.batch_size == task.init_batch_size:
            at_init = points
        yield _reached(task, run, points, at_init)


def _reached(task: Task, run: Run, points: Sequence[Point], at_init: Sequence[Point]) -> Reached:
    end, init_end = reached(task, points), reached(task, at_init)
    if end is None or init_end is None:
        sys.exit(f"{task.name} did not reach its target: {run}")
    assert run.batch_size is not None
    seen = noise_scales(task, [point for point in points if point.steps <= end.steps])
    return Reached(
        seed=run.seed,
        scale=run.batch_size // task.init_batch_size,
        measured=end.steps,
        predicted=predicted_steps(task, at_init, run.batch_size),
        progress=end.progress,
        init_progress=init_end.progress,
        noise_scales=(min(seen), max(seen)),
    )


def print_found(task: Task, found: Sequence[Reached]) -> None:
    """Medians over the seeds, by batch size."""
    print(f"\n{task.name}: learning rate {task.rate:g} at M₀ = {task.init_batch_size}, validation loss {task.target:g}")
    rows = [["M", "steps (min–max)", "predicted", "ratio (min–max)", "progress / that at M₀", "φ"]]
    for scale in scales(task):
        runs = [one for one in found if one.scale == scale]
        measured, ratios = [one.measured for one in runs], [one.ratio for one in runs]
        lows, highs = zip(*(one.noise_scales for one in runs), strict=True)
        rows.append(
            [
                str(scale * task.init_batch_size),
                f"{statistics.median(measured):.0f} ({min(measured)}–{max(measured)})",
                f"{statistics.median(one.predicted for one in runs):.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                f"{statistics.median(one.progress / one.init_progress for one in runs):.2f}",
                f"{statistics.median(lows):.0f}–{statistics.median(highs):.0f}",
            ]
        )
    print_table(rows)
    sys.stdout.flush()


def bounds(found: Mapping[str, Sequence[Reached]]) -> Iterator[Bound]:
    """All that must hold."""
    for name, ends in found.items():
        for scale in sorted({one.scale for one in ends} - {1}):
            ratio = statistics.median(one.ratio for one in ends if one.scale == scale)
            text = f"{name}: steps at {scale}·M₀ within {_MAX_ERROR:.0%} of the prediction"
            yield Bound(text=text, value=ratio, holds=abs(ratio - 1) <= _MAX_ERROR)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task", action="append", choices=[*PREDICTED], help="only this one; may be given several times"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind, of which medians are taken")
    parser.add_argument("--rates", action="store_true", help="show instead how the learning rates were chosen")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there")
    args = parser.parse_args(arguments)
    args.task = args.task or [*PREDICTED]
    if args.seeds < 1:
        parser.error("--seeds must be ≥ 1")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
