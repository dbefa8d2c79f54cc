"""What the default policy is worth, in simulated time: on published workloads, on tuning workloads, and with failures.

    python benchmarks/simulation.py
    python benchmarks/simulation.py --traces DIR --json simulation.json
    python benchmarks/simulation.py --no-published

The published workloads (Pollux, OSDI 2021 artifact: 160 jobs on 16 nodes of 4 GPUs) need a folder with `traces/` and
`workloads/`, which are not in this repository: docs/simulator.md says where they are from. Without them they are left
out. All is deterministic; only the time it takes, about ten minutes on two cores, depends on the machine. Exits with 1
if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from simulations.runs import OUR_COSTS, Figures, Run, perform

PUBLISHED_S = {
    "Tiresias": (2473.65, 5144.96, 3876.26, 3280.26),
    "Optimus": (4087.1, 6913.9, 3944.0, 5967.8),
    "Pollux": (2088.8, 3322.9, 2188.5, 2721.0),
}
"""Average completion times published with the artifact, by workload, seconds."""

WORKLOADS = (1, 2, 3, 4)
LEAST_GAIN = 0.10
MOST_OPTIMUS_OFF = 0.005


def published_runs() -> list[Run]:
    runs = [
        Run(name=f"workload {k}", policy=policy, workload=k)
        for policy in ("Tiresias", "Optimus", "optimal", "published objective")
        for k in WORKLOADS
    ]
    runs += [
        Run(name=f"workload {k}, our pauses", policy="optimal", workload=k, costs=OUR_COSTS, immediate=True)
        for k in WORKLOADS
    ]
    runs.append(Run(name="workload 1, failures", policy="optimal", workload=1, mean_between_failures_s=6 * 3600.0))
    return runs


def tuning_runs() -> list[Run]:
    entrants = (("optimal", 1), ("fair share", 1), ("static", 1), ("static", 4))
    return [
        Run(
            name=f"{model}, {'ASHA' if asha else 'no early stopping'}",
            policy=policy,
            model=model,
            asha=asha,
            requested_replicas=replicas,
            costs=OUR_COSTS,
            immediate=True,
        )
        for model in ("resnet18", "transformer")
        for asha in (False, True)
        for policy, replicas in entrants
    ]


def print_published(found: Mapping[Run, Figures]) -> None:
    print("\nPublished workloads: 16 nodes of 4 GPUs, 160 jobs")
    print(f"  {'':34}{'average':>10}{'published':>11}{'median':>9}{'p99':>9}{'makespan':>10}{'restarts':>10}")
    for run, figures in found.items():
        if run.workload is None:
            continue
        s = figures.summary
        published = PUBLISHED_S.get(run.policy, ())
        known = f"{published[run.workload - 1]:.2f}" if published else ""
        lost = f"  {figures.lost_share:.4%} of training lost" if run.mean_between_failures_s else ""
        print(
            f"  {run.policy + ', ' + run.name:34}{s['average_completion_time_s']:10.2f}{known:>11}"
            f"{s['median_completion_time_s']:9.0f}{s['p99_completion_time_s']:9.0f}{s['makespan_s']:10.0f}"
            f"{s['average_restarts']:10.2f}{lost}"
        )


def print_tuning(found: Mapping[Run, Figures]) -> None:
    print("\nTuning: 64 trials on 8 nodes of 4 GPUs, all submitted at once")
    print(f"  {'':44}{'all complete':>13}{'best complete':>15}{'GPU-hours':>11}{'average':>9}")
    for run, figures in found.items():
        if run.workload is None:
            s = figures.summary
            size = f":{run.requested_replicas}" if run.policy == "static" else ""
            print(
                f"  {run.name + ', ' + run.policy + size:44}{s['makespan_s']:11.0f} s{figures.best_completed_s:13.0f} s"
                f"{s['service_hours']:11.1f}{s['average_completion_time_s']:7.0f} s"
            )


def mean(found: Mapping[Run, Figures], policy: str, figure: str, *, immediate: bool = False) -> float:
    """Over the published workloads without failures."""
    return float(
        np.mean(
            [
                figures.summary[figure]
                for run, figures in found.items()
                if (run.policy, run.immediate) == (policy, immediate)
                and run.workload is not None
                and run.mean_between_failures_s is None
            ]
        )
    )


def bounds(found: Mapping[Run, Figures]) -> Iterator[tuple[bool, str]]:
    """What must hold of the published workloads, and whether it does."""
    for run, figures in found.items():
        if run.policy in ("Tiresias", "Optimus"):
            assert run.workload is not None
            published = PUBLISHED_S[run.policy][run.workload - 1]
            off = figures.summary["average_completion_time_s"] - published
            allowed = 0.0051 if run.policy == "Tiresias" else MOST_OPTIMUS_OFF * published
            yield abs(off) <= allowed, f"{run.policy}, {run.name}: as published: {off:+.2f} s ({off / published:+.2%})"
    pollux = float(np.mean(PUBLISHED_S["Pollux"]))
    for immediate, text in ((False, "published costs"), (True, "our pauses, asked at events")):
        ours = mean(found, "optimal", "average_completion_time_s", immediate=immediate)
        gain = 1 - ours / pollux
        holds = gain >= LEAST_GAIN
        yield holds, f"{text}: average completion time below Pollux's {pollux:.0f} s by 10 %: {ours:.0f} s, {gain:.1%}"
    for figure in ("p99_completion_time_s", "makespan_s"):
        ours, peer = mean(found, "optimal", figure), mean(found, "published objective", figure)
        yield ours <= peer, f"{figure}: not above that of the published objective: {ours:.0f} s, {peer:.0f} s"


def main(args: argparse.Namespace) -> int:
    traces = args.traces if args.published and (args.traces / "traces").is_dir() else None
    if args.published and traces is None:
        print(f"The published workloads are left out: `{args.traces}` does not hold traces/ and workloads/.")
    runs = [*(published_runs() if traces else ()), *tuning_runs()]
    found = perform(runs, traces, args.processes)
    if traces:
        print_published(found)
    print_tuning(found)
    verdicts = list(bounds(found)) if traces else []
    print("\nBounds")
    for holds, text in verdicts:
        print(f"  {'holds' if holds else 'FAILED':7} {text}")
    if args.json:
        args.json.write_text(json.dumps([{**asdict(run), **asdict(found[run])} for run in runs], indent=1) + "\n")
    return 0 if args.no_check or all(holds for holds, _ in verdicts) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "../shared/traces/pollux"
    parser.add_argument("--traces", type=Path, default=default, help="folder of the published data")
    parser.add_argument("--no-published", dest="published", action="store_false", help="tuning workloads only")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="simulations at a time")
    parser.add_argument("--no-check", action="store_true", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, help="write every run's figures there")
    sys.exit(main(parser.parse_args()))
