"""How good the optimal policy's allocations are, and how long it takes: on published instances, and at scale.

    python benchmarks/policy.py
    python benchmarks/policy.py --no-scale --instances DIR
    python benchmarks/policy.py --json policy.json --plot policy_scale.png

The first part needs a folder with `instances/*.json`, `recorded.json` (results of other searches) and `evaluate.py`
(which scores an answer). They are not in this repository; without them that part is skipped. Each instance is one round
of cluster scheduling; the policy maximises the published objective. CPU times include the making of the speedup tables;
before, one call imports the solver. The second part makes clusters of 64 to 10,000 GPUs, and times the policy from an
empty cluster and after 5 % of the jobs were replaced by new ones, each time from its own answer. All takes a few
minutes. Exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from allocations.plot import plot
from allocations.published import Answer, Collection
from allocations.scale import Case, Measured, measure
from allocations.verdict import answer_bounds, scale_bounds
from findings import Bound, conclude, describe_machine, print_machine, print_table

CASES = (
    *(Case(num_gpus=num_gpus) for num_gpus in (64, 256, 1_024, 2_048, 4_096, 10_000)),
    *(Case(num_gpus=10_000, fairness=fairness) for fairness in (0.0, 1.0)),
    *(Case(num_gpus=num_gpus, mixed=True) for num_gpus in (256, 1_000, 4_000)),
)


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(numpy=np.__version__, scipy=scipy.__version__)
    print_machine(machine)
    answers = ask_published(args.instances, args.count)
    if answers:
        print_answers(answers)
    rounds: list[Measured] = []
    if args.scale:
        for case in CASES:
            rounds += measure(case)
        print_rounds(rounds)
    verdicts = [*(answer_bounds(answers) if answers else ()), *(scale_bounds(rounds) if rounds else ())]
    status = conclude(verdicts, check=args.check)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(machine, answers, rounds, verdicts), indent=1) + "\n")
    if args.plot is not None:
        plot(rounds, args.plot)
    return status


def ask_published(folder: Path, count: int) -> list[Answer]:
    """All answers; none, with a line that says what is missing, if the folder is not there."""
    try:
        collection = Collection(folder)
    except FileNotFoundError as error:
        print(f"\nThe published instances are skipped: {error}. --instances says where they are.")
        return []
    collection.answer(next(iter(collection)), 1)  # imports the solver
    return [collection.answer(file, count) for file in collection]


def print_answers(answers: Sequence[Answer]) -> None:
    print("\nPublished instances (jobs x nodes x GPUs per node; -ff: every job runs on one GPU before)")
    rows = [["instance", "CPU ms", "of it tables", "genetic s", "ratio", "scaled", "recorded", "last", "recorded",
             "gap", "moved", "later"]]  # fmt: skip
    for a in answers:
        rows.append(
            [
                a.name,
                f"{a.cpu_s * 1e3:.0f}",
                f"{a.tables_s * 1e3:.0f}",
                f"{a.peer_cpu_s:.1f}",
                f"{a.peer_cpu_s / a.cpu_s:.0f}x",
                f"{a.scaled_first:.4f}",
                "" if a.peer_first is None else f"{a.peer_first:.4f}",
                f"{a.scaled_last:.4f}",
                "" if a.peer_last is None else f"{a.peer_last:.4f} {a.peer}",
                "none" if a.gap is None else f"{a.gap:.1e}",
                str(a.moved),
                str(a.changed_later),
            ]
        )
    print_table(rows)
    print(
        "  scaled: the published objective after one call, and the best recorded one; last: the same after three calls,\n"
        "  each from its own answer before. Moved: running jobs whose allocation the first call changed; later: jobs\n"
        "  that the second and third changed."
    )


def print_rounds(rounds: Sequence[Measured]) -> None:
    print("\nGenerated clusters (0.2 jobs per GPU; mixed: five kinds of nodes, some partly taken or draining)")
    rows = [["GPUs", "nodes", "jobs", "fairness", "round", "s", "CPU s", "gap", "moved", "MiB", "message"]]
    for r in rounds:
        rows.append(
            [
                f"{r.case.num_gpus:,}{' mixed' if r.case.mixed else ''}",
                str(r.num_nodes),
                str(r.num_jobs),
                f"{r.case.fairness:g}",
                f"churn {r.churn}" if r.churn else "empty",
                f"{r.wall_s:.2f}",
                f"{r.cpu_s:.2f}",
                "none" if r.gap is None else f"{r.gap:.1e}",
                str(r.moved),
                f"{r.peak_bytes / 2**20:.0f}",
                r.message,
            ]
        )
    print_table(rows)


def as_json(
    machine: dict[str, Any], answers: Sequence[Answer], rounds: Sequence[Measured], verdicts: Sequence[Bound]
) -> dict[str, Any]:
    """Every single decision."""
    return {
        "run": machine,
        "published": [asdict(answer) for answer in answers],
        "generated": [asdict(measured) for measured in rounds],
        "bounds": [asdict(verdict) for verdict in verdicts],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    default = Path(__file__).parents[1] / "../shared/policy"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, metavar="DIR", default=default, help="where the published ones are")
    parser.add_argument("--count", type=int, default=5, help="calls per published instance, of which the median counts")
    parser.add_argument("--no-scale", dest="scale", action="store_false", help="leave the generated clusters out")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single decision there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times by size there (needs matplotlib)")
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error("--count must be >= 1")
    if args.plot is not None and not args.scale:
        parser.error("--plot draws what --no-scale leaves out")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
