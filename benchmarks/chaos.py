"""Eight trials through a storm: replicas are killed, nodes lost and drained, allocations changed, all the time.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --minutes 2 --seed 7 --keep storm-7

A cluster of four nodes is simulated on this machine, with a head that survives. For 15 minutes, by a schedule drawn from
the seed: a replica of any rank is killed every 10 s on average; every minute a node is lost without notice or drained, in
turns, and replaced; every 5 s the policy moves a trial. Afterwards the same trials run undisturbed. What was redone or
lost is told from a log of the batches that were handed out. It takes about 20 minutes, and exits with 1 if one of the
bounds does not hold.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, working_directory, write_json
from storm.finding import Findings, TrialFindings, find
from storm.memory import growth_mb_per_min
from storm.processes import owned_processes
from storm.recovering import took_s
from storm.reference import run_undisturbed
from storm.running import NUM_TRIALS, StormRun, run_storm
from storm.schedule import Kind
from storm.training import NUM_SAMPLES, STEPS_PER_EPOCH
from storm.verdict import bounds

_STEP_S = 0.25
"""What a step lasts at least: slept, so that the processes of a whole cluster fit on a machine of two cores."""
_TRAINING_SHARE, _STARTING_S = 0.85, 60.0
"""The trials sleep in their steps for this share of the storm's duration, and for the minute that all of them take to start:
so they should end when the storm does, or soon after."""
_TRIAL_COLUMNS = (
    "trial",
    "status",
    "results",
    "accuracy",
    "undisturbed",
    "difference",
    "steps",
    "redone",
    "retried",
    "generations",
    "padding",
)


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__, Ray=ray.__version__)
    print_machine(machine)
    num_epochs = round((args.minutes * 60 * _TRAINING_SHARE + _STARTING_S) / (STEPS_PER_EPOCH * _STEP_S))
    with working_directory(args.keep, prefix="adaptdl-chaos-") as directory, owned_processes():
        storm, undisturbed = directory / "storm", directory / "undisturbed"
        config = {"directory": str(storm), "epochs": num_epochs, "lr": 0.02, "step_s": _STEP_S, "with_log": True}
        run = run_storm(config, seed=args.seed, duration_s=args.minutes * 60, directory=directory)
        run_undisturbed([{**config, "directory": str(undisturbed), "trial": trial} for trial in range(NUM_TRIALS)])
        found = find(run, num_epochs=num_epochs, storm=storm, undisturbed=undisturbed)
    verdicts = list(bounds(found))
    print_findings(run, found)
    write_json(args.json, as_json(machine, run, found, verdicts))
    return conclude(verdicts, check=args.check)


def print_findings(run: StormRun, found: Findings) -> None:
    ended = "the trials ended" if run.outcome is not None else "FAILED: the trials had not ended"
    late_s = max((strike.late_s for strike in run.strikes), default=0.0)
    print(
        f"\nThe storm: {len(run.strikes)} strikes, up to {late_s:.1f} s late ({run.num_missed} found nobody); "
        f"{ended} after {run.took_s:.0f} s"
    )
    print(f"\nTrials ({found.num_epochs} epochs of {STEPS_PER_EPOCH} steps)")
    print_table([_TRIAL_COLUMNS, *(_trial_row(trial) for trial in found.per_trial)])
    print(
        "  redone: steps that were completed, made again; retried: those in flight, begun again. Difference: of the final\n"
        "  parameters from the undisturbed trial's. Padding: samples computed with weight 0."
    )
    print("\nRecoveries: from a loss to the next batch that a new group of replicas was handed")
    print_table(
        [
            ["loss", "survivors", "n", "median", "p99", "steps redone", "most"],
            *(row for kind in Kind for survivors in (True, False) if (row := _recovery_row(found, kind, survivors))),
        ]
    )
    unhurt = sum(len({trial for trial, _ in strike.hit}) or 1 for strike in run.strikes) - len(found.recoveries)
    print(f"  {unhurt} losses disturbed nobody's training: newcomers, replicas that had left, and empty nodes.")
    print("\nMemory after warm-up")
    growths = found.coordinator_growths_mb_per_min()
    print_table(
        [
            ["process", "MB at the end", "MB/min"],
            ["driver", _last_mb(found.driver_memory), f"{growth_mb_per_min(found.driver_memory):.2f}"],
            [
                f"{len(growths)} coordinators, median (max)",
                _median_and_max([samples[-1][1] / 1e6 for samples in found.coordinators_memory.values()], digits=0),
                _median_and_max(growths, digits=2),
            ],
        ]
    )


def _trial_row(trial: TrialFindings) -> list[str]:
    history = trial.history
    generations = {batch.generation for batches in history.steps.values() for batch in batches}
    return [
        str(trial.trial),
        "not ended" if trial.outcome is None else trial.outcome.status,
        "" if trial.outcome is None else str(trial.outcome.num_results),
        f"{trial.accuracy:.4f}",
        f"{trial.undisturbed_accuracy:.4f}",
        f"{trial.difference:.1e}",
        str(len(history.steps)),
        str(history.num_redone),
        str(history.num_retried),
        str(len(generations)),
        str(history.num_padding),
    ]


def _recovery_row(found: Findings, kind: Kind, survivors: bool) -> list[str] | None:
    those = [one for one in found.recoveries if one.kind is kind and one.had_survivors is survivors]
    if not those:
        return None
    times = took_s(those)
    return [
        kind.value,
        "yes" if survivors else "no",
        str(len(those)),
        f"{np.median(times):.2f} s" if times else "",
        f"{np.percentile(times, 99):.2f} s" if times else "",
        str(sum(one.num_redone for one in those)),
        str(max(one.num_redone for one in those)),
    ]


def _last_mb(samples: Sequence[tuple[float, int]]) -> str:
    return f"{samples[-1][1] / 1e6:.0f}" if samples else ""


def _median_and_max(values: Sequence[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({max(values):.{digits}f})" if values else ""


def as_json(machine: Mapping[str, Any], run: StormRun, found: Findings, verdicts: Sequence[Bound]) -> dict[str, Any]:
    """Every trial, strike and recovery."""
    return {
        "run": machine,
        "took_s": run.took_s,
        "trials": [
            {
                "outcome": None if trial.outcome is None else asdict(trial.outcome),
                "accuracy": trial.accuracy,
                "undisturbed_accuracy": trial.undisturbed_accuracy,
                "difference": trial.difference,
                "steps": len(trial.history.steps),
                "rollbacks": [asdict(rollback) for rollback in trial.history.rollbacks],
                "retried": trial.history.num_retried,
                "skipped": trial.history.num_skipped,
                "strayed": trial.history.num_strayed,
                "padding": trial.history.num_padding,
                "lost_and_repeated": trial.history.lost_and_repeated(NUM_SAMPLES, found.num_epochs),
            }
            for trial in found.per_trial
        ],
        "strikes": [{**asdict(strike), "kind": strike.kind.value} for strike in run.strikes],
        "recoveries": [{**asdict(one), "kind": one.kind.value} for one in found.recoveries],
        "left_processes": found.left_processes,
        "left_placement_groups": found.left_placement_groups,
        "driver_growth_mb_per_min": growth_mb_per_min(found.driver_memory),
        "coordinator_growths_mb_per_min": found.coordinator_growths_mb_per_min(),
        "bounds": [asdict(verdict) for verdict in verdicts],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="how long the storm lasts")
    parser.add_argument("--seed", type=int, default=0, help="of the storm and of the policy")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and results in this new directory")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial, strike and recovery there")
    args = parser.parse_args(arguments)
    if not args.minutes >= 1:
        parser.error("--minutes must be ≥ 1")
    if args.keep is not None and args.keep.exists():
        parser.error("--keep must be a directory that does not exist yet")
    return args


if __name__ == "__main__":
    options = parse()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("storm").setLevel(logging.INFO)  # a line for each strike
    sys.exit(main(options))
