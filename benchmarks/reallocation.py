"""How long a trial pauses when its replicas change, beside Tune's own way of changing them, in one run.

    python benchmarks/reallocation.py
    python benchmarks/reallocation.py --count 3 --peer-count 1 --json reallocation.json

A multilayer perceptron of 5 M parameters is trained (gloo, one thread per replica) on a cluster simulated on this
machine: three nodes of two CPUs. A script changes its replicas 1→2, 2→2 on another node, 2→1 and 1→0→1. Then Tune's
`ResourceChangingScheduler` makes the changes 1→2 and 2→1 with DDP workers. Times are read from the steps that were
made, in one clock. It takes about ten minutes, and exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json
from pauses.ours import Ours, run_ours
from pauses.peer import run_peer
from pauses.step_log import Transition
from pauses.verdict import bounded_pauses_s, bounds, ratios
from ray.cluster_utils import Cluster

_NUM_NODES, _CPUS_PER_NODE = 3, 2


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__, Ray=ray.__version__)
    print_machine(machine)
    with tempfile.TemporaryDirectory(prefix="adaptdl-reallocation-") as directory, simulated_cluster():
        ours = run_ours(args.count, Path(directory, "ours"))
        peer = run_peer(args.peer_count, Path(directory, "peer")) if args.peer else {}
    verdicts = list(bounds(ours.changes, peer))
    print_ours(ours)
    if peer:
        print_peer(ours, peer)
    write_json(args.json, as_json(machine, ours, peer, verdicts))
    return conclude(verdicts, check=args.check)


@contextmanager
def simulated_cluster() -> Iterator[None]:
    """Connected to a head without CPUs and some nodes with; everything is gone afterwards."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(_NUM_NODES):
            cluster.add_node(num_cpus=_CPUS_PER_NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Ray's own handler aborts, and leaves files
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def print_ours(ours: Ours) -> None:
    steps = ", ".join(f"{step_s * 1e3:.0f} ms on {num_replicas}" for num_replicas, step_s in ours.step_s.items())
    print(f"\nAdaptDL (a step takes {steps} replicas)")
    rows = [["change", "n", "pause (max)", "step to step", "as logged", "redone", "share of steps", "newcomers took"]]
    for name, changes in ours.changes.items():
        shares = [change.share for change in changes if change.share is not None]
        rows.append(
            [
                name,
                str(len(changes)),
                _seconds(bounded_pauses_s(name, changes)),
                _seconds(change.extra_s for change in changes),
                _seconds(change.logged_s for change in changes),
                str(sum(change.redone for change in changes)),
                f"{statistics.median(shares):.2f} (min {min(shares):.2f})" if shares else "",
                _seconds((change.start_s for change in changes), digits=1) if shares else "",
            ]
        )
    print_table(rows)
    print(
        "  pause: from the end of the last step to the first batch handed out, median (max); step to step: to the end of\n"
        "  the first step, less a step; as logged: the library's own pause_s. Share: the rate of steps while newcomers\n"
        "  started, by the rate before."
    )
    whole = _seconds(change.pause_s for change in ours.changes["1→0→1"])
    print(
        "  1→0→1: the pause is what the library logs of its own work, to hand over the state and, from the new plan, to\n"
        "  go on; the bound is about it. Between the two the trial has no replicas for as long as the policy likes; with\n"
        f"  that and the scheduler's polling, from the last step to the next batch, it was {whole}."
    )


def print_peer(ours: Ours, peer: Mapping[str, Sequence[Transition]]) -> None:
    print("\nTune's ResourceChangingScheduler with DDP workers, a checkpoint at every result")
    rows = [["change", "n", "pause (max)", "step to step", "redone", "AdaptDL's is shorter by"]]
    for name, ratio in ratios(ours.changes, peer).items():
        changes = peer[name]
        rows.append(
            [
                name,
                str(len(changes)),
                _seconds(change.pause_s for change in changes),
                _seconds(change.extra_s for change in changes),
                str(sum(change.redone for change in changes)),
                f"{ratio:.0f}×",
            ]
        )
    print_table(rows)


def as_json(
    machine: Mapping[str, Any], ours: Ours, peer: Mapping[str, Sequence[Transition]], verdicts: Sequence[Bound]
) -> dict[str, Any]:
    """Every single change, in seconds."""
    return {
        "run": machine,
        "adaptdl": {
            "step_s": ours.step_s,
            "changes": {name: [asdict(change) for change in changes] for name, changes in ours.changes.items()},
        },
        "resource_changing_scheduler": {
            name: [
                {
                    "pause_s": change.pause_s,
                    "extra_s": change.extra_s,
                    "redone": change.redone,
                    "left_out": change.left_out,
                }
                for change in changes
            ]
            for name, changes in peer.items()
        },
        "ratios": ratios(ours.changes, peer),
        "bounds": [asdict(verdict) for verdict in verdicts],
    }


def _seconds(values: Iterable[float], digits: int = 3) -> str:
    found = list(values)
    return f"{statistics.median(found):.{digits}f} s ({max(found):.{digits}f})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="changes of each kind")
    parser.add_argument("--peer-count", type=int, default=3, help="changes in each direction by Tune's scheduler")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave Tune's scheduler out")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single change there")
    args = parser.parse_args(arguments)
    if args.count < 1 or args.peer_count < 1:
        parser.error("--count and --peer-count must be ≥ 1")
    return args


if __name__ == "__main__":
    options = parse()
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the one of Tune's outputs that can be turned off
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    for name_of_logger in ("adaptdl", "pauses"):
        logging.getLogger(name_of_logger).setLevel(logging.INFO)  # a line for each change
    sys.exit(main(options))
