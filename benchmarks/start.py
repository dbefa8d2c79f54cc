"""What a replica's process computes from where Ray has it to where it can train: imports, and what torch does once.

    python benchmarks/start.py
    python benchmarks/start.py --count 3

CPU seconds of a process of its own, with and without `adaptdl.runtime.imports`, in turns; medians, and the median of the ratios
of pairs. Beside them what a full garbage collection takes afterwards, as one in mid-training would. It takes about two minutes,
and exits with 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

import ray
import torch
from findings import Bound, conclude, describe_machine, parse_counted, print_machine, print_table, write_json

_MAX_RATIO = 0.8
_MAX_COLLECTION_S = 0.01
_TIMEOUT_S = 120.0

_PROCESS = """
import gc
import json
import sys
import time

import ray

began = time.process_time()
if sys.argv[1] == "ours":
    from adaptdl.runtime.imports import import_all

    import_all()
import ray.tune
import torch

import adaptdl.torch.session
from adaptdl.torch.warm_up import warm_up

torch.set_num_threads(1)
warm_up()
ready = time.process_time()
gc.collect()
print(json.dumps([ready - began, time.process_time() - ready]))
"""

_Found = dict[str, list[tuple[float, float]]]
"""How → CPU seconds up to training, and of a collection then; of each process."""


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__, ray=ray.__version__)
    print_machine(machine)
    found: _Found = {"plain": [], "ours": []}
    for _ in range(args.count):
        for how, costs in found.items():
            costs.append(start(how))
    rows = [["imports", "n", "CPU to training (min–max)", "full collection"]]
    for how, costs in found.items():
        starts_s, collections_s = zip(*costs, strict=True)
        span = f"{statistics.median(starts_s):.2f} s ({min(starts_s):.2f}–{max(starts_s):.2f})"
        rows.append([how, str(len(costs)), span, f"{1e3 * statistics.median(collections_s):.1f} ms"])
    print_table(rows)
    verdicts = list(bounds(found))
    write_json(args.json, {"run": machine, "found": found, "bounds": [vars(verdict) for verdict in verdicts]})
    return conclude(verdicts, check=args.check)


def start(how: str) -> tuple[float, float]:
    """One process."""
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, how], stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S, check=True
    )
    start_s, collection_s = json.loads(done.stdout.splitlines()[-1])
    return start_s, collection_s


def bounds(found: _Found) -> Iterator[Bound]:
    """All that must hold."""
    ratio = statistics.median(ours / plain for (ours, _), (plain, _) in zip(found["ours"], found["plain"], strict=True))
    yield Bound(text=f"CPU to training ≤ {_MAX_RATIO:g} of what it is without", value=ratio, holds=ratio <= _MAX_RATIO)
    collection_s = statistics.median(collection_s for _, collection_s in found["ours"])
    yield Bound(
        text=f"a full collection afterwards ≤ {1e3 * _MAX_COLLECTION_S:g} ms, seconds",
        value=collection_s,
        holds=collection_s <= _MAX_COLLECTION_S,
    )


if __name__ == "__main__":
    sys.exit(main(parse_counted(__doc__, None, counted="processes of each kind", written="process")))
