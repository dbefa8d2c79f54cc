"""How long training stands still when a worker or its node is lost, beside Ray Train's elastic mode, in one run.

    python benchmarks/recovery.py
    python benchmarks/recovery.py --count 1 --peer-count 0

A trial runs on two replicas, on two nodes of one CPU each that are simulated on this machine. The process of rank 1 or of
rank 0 is killed, then a whole node without notice, and a new node comes. Then the same happens to a `TorchTrainer` with
`num_workers=(1, 2)` and a checkpoint every 40 steps. Steps of both sleep for 75 ms. Times and steps are read from a log of
the batches that were handed out. It takes about 15 minutes, and exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, working_directory, write_json
from recoveries.measuring import Loss, Recovered
from recoveries.ours import run_ours
from recoveries.peer import run_peer
from recoveries.verdict import bounds, ratios
from storm.cluster import started_nodes
from storm.processes import owned_processes

_NUM_NODES, _CPUS_PER_NODE = 2, 1


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__, Ray=ray.__version__)
    print_machine(machine)
    with working_directory(args.keep, prefix="adaptdl-recovery-") as directory, owned_processes():
        with started_nodes(_NUM_NODES, _CPUS_PER_NODE) as nodes:
            ours = run_ours(nodes, args.count, directory / "ours")
        peer = {}
        if args.peer_count:
            with started_nodes(_NUM_NODES, _CPUS_PER_NODE) as nodes:
                peer = run_peer(nodes, args.peer_count, directory / "peer")
    verdicts = list(bounds(ours, peer))
    print_recoveries(ours, peer)
    write_json(args.json, as_json(machine, ours, peer, verdicts))
    return conclude(verdicts, check=args.check)


def print_recoveries(ours: Mapping[Loss, Sequence[Recovered]], peer: Mapping[Loss, Sequence[Recovered]]) -> None:
    shorter = ratios(ours, peer)
    rows = [["", "loss", "n", "to the next step (min–max)", "on replicas", "steps redone", "AdaptDL's is shorter by"]]
    for name, found in (("AdaptDL", ours), ("Ray Train", peer)):
        for loss, recovered in found.items():
            times = [one.took_s for one in recovered]
            rows.append(
                [
                    name,
                    loss.value,
                    str(len(recovered)),
                    f"{statistics.median(times):.2f} s ({min(times):.2f}–{max(times):.2f})",
                    ", ".join(str(number) for number in sorted({one.num_replicas for one in recovered})),
                    ", ".join(str(one.num_redone) for one in recovered),
                    f"{shorter[loss]:.0f}×" if found is ours and loss in shorter else "",
                ]
            )
    print()
    print_table(rows)
    print(
        "  To the next step: from the loss to the first batch that a later group of replicas was handed. Redone: steps that\n"
        "  were completed, made again; the one in flight does not count."
    )


def as_json(
    machine: Mapping[str, Any],
    ours: Mapping[Loss, Sequence[Recovered]],
    peer: Mapping[Loss, Sequence[Recovered]],
    verdicts: Sequence[Bound],
) -> dict[str, Any]:
    """Every single recovery."""
    return {
        "run": machine,
        "adaptdl": {loss.value: [asdict(one) for one in found] for loss, found in ours.items()},
        "ray_train": {loss.value: [asdict(one) for one in found] for loss, found in peer.items()},
        "ratios": {loss.value: ratio for loss, ratio in ratios(ours, peer).items()},
        "bounds": [asdict(verdict) for verdict in verdicts],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="losses of each kind")
    parser.add_argument(
        "--peer-count", type=int, default=2, help="losses of each kind under Ray Train; 0 leaves it out"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and results in this new directory")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single recovery there")
    args = parser.parse_args(arguments)
    if args.count < 1 or args.peer_count < 0:
        parser.error("--count must be ≥ 1, and --peer-count ≥ 0")
    if args.keep is not None and args.keep.exists():
        parser.error("--keep must be a directory that does not exist yet")
    return args


if __name__ == "__main__":
    options = parse()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name_of_logger in ("recoveries", "storm"):
        logging.getLogger(name_of_logger).setLevel(logging.INFO)  # a line for each loss
    sys.exit(main(options))
