"""What a step costs with everything adaptive on, beside DistributedDataParallel and DataLoader, in one run.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --case ConvNet --replicas 1 --seconds 20

Each process trains the same model in both ways, in turns of a quarter of a second: adaptive, plain, plain, adaptive, and so
on. Adaptive means that the noise scale is measured, the step is profiled, and reallocations and batch sizes are listened for.
One thread per process. The median of the ratios of the turns is what the bounds are about; the ratio of the sums counts
everything, what comes in a few steps only and what the machine did meanwhile, too. Memory is measured in runs of
their own: the most that tensors held. It takes about 15 minutes, and exits with 1 if one of the bounds does not hold. Where
convolutions in bf16 are not computed by the CPU itself, "ResNet-18, bf16" takes an hour more: it is measured if it is named.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json
from steps.cases import CASES
from steps.running import run_memory, run_time
from steps.worker import Timed

_MAX_MEMORY = 0.02


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__)
    print_machine(machine)
    print()
    times: dict[tuple[str, int], Timed] = {}
    for name in args.case:
        for num_replicas in args.replicas:
            times[name, num_replicas] = run_time(name, num_replicas, args.seconds)
            print_time(name, num_replicas, times[name, num_replicas])
    memory: dict[tuple[str, int], float] = {}
    if args.memory:
        for name in args.case:
            if CASES[name].variant == "plain":
                for num_replicas in args.replicas:
                    memory[name, num_replicas] = run_memory(name, num_replicas)
    verdicts = bounds(times, memory)
    rows = [["", "replicas", "plain step", "turns", "ratio", "middle half", "of sums"]]
    for (name, num_replicas), timed in times.items():
        rows.append([name, str(num_replicas), *_cells(timed)])
    print()
    print_table(rows)
    write_json(args.json, as_json(machine, times, memory, verdicts))
    return conclude(verdicts, check=args.check)


def ratios(timed: Timed) -> list[float]:
    """Of an adaptive step to a plain one, for each turn."""
    return [adaptive / plain for adaptive, plain in timed.rounds]


def _cells(timed: Timed) -> list[str]:
    found = ratios(timed)
    low, middle, high = statistics.quantiles(found, n=4)
    plain_s = statistics.median(plain for _, plain in timed.rounds)
    turns = f"{len(found)} of {timed.steps_per_round}"
    of_sums = sum(adaptive for adaptive, _ in timed.rounds) / sum(plain for _, plain in timed.rounds)
    return [f"{1e3 * plain_s:.2f} ms", turns, f"{middle:.3f}", f"{low:.3f}–{high:.3f}", f"{of_sums:.3f}"]


def print_time(name: str, num_replicas: int, timed: Timed) -> None:
    """One line, as soon as it is known."""
    print(f"{name} × {num_replicas}: {', '.join(_cells(timed))}", flush=True)


def bounds(times: Mapping[tuple[str, int], Timed], memory: Mapping[tuple[str, int], float]) -> list[Bound]:
    """All that must hold."""
    found = []
    for (name, num_replicas), timed in times.items():
        ratio, most = statistics.median(ratios(timed)), CASES[name].max_ratio
        found.append(Bound(text=f"{name} × {num_replicas}: step ≤ {most} of plain", value=ratio, holds=ratio <= most))
    for (name, num_replicas), share in memory.items():
        text = f"{name} × {num_replicas}: memory above plain ≤ {_MAX_MEMORY} of parameters and gradients"
        found.append(Bound(text=text, value=share, holds=share <= _MAX_MEMORY))
    return found


def as_json(
    machine: Mapping[str, Any],
    times: Mapping[tuple[str, int], Timed],
    memory: Mapping[tuple[str, int], float],
    verdicts: Sequence[Bound],
) -> dict[str, Any]:
    """Every single turn."""
    return {
        "run": machine,
        "seconds_per_step": {f"{name} x {number}": timed.rounds for (name, number), timed in times.items()},
        "memory_share": {f"{name} x {number}": share for (name, number), share in memory.items()},
        "bounds": [vars(verdict) for verdict in verdicts],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[*CASES], help="only this one; may be given several times")
    parser.add_argument("--replicas", type=int, action="append", help="only on so many processes (default: 1, then 2)")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each case and number of processes")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave memory out")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single turn there")
    args = parser.parse_args(arguments)
    args.case = args.case or [name for name, case in CASES.items() if not case.is_long]
    args.replicas = args.replicas or [1, 2]
    if args.seconds <= 0 or min(args.replicas) < 1:
        parser.error("--seconds must be > 0, and --replicas ≥ 1")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
