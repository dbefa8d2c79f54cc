"""What a replica's process computes from where Ray has it to where it can train: imports, and what torch does once.

    python benchmarks/start.py
    python benchmarks/start.py --count 3

CPU seconds of a process of its own, with and without `adaptdl.runtime.imports`, in turns; medians, and the median of the ratios
of pairs. Beside them what a full garbage collection takes afterwards, as one in mid-training would. Then the same by way of
Ray, from asking for an actor until it could train: started anew, and forked (`adaptdl.forking`), in turns; seconds, and what the
whole machine computed meanwhile. It takes about four minutes, and exits with 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from findings import Bound, conclude, describe_machine, parse_counted, print_machine, print_table, write_json

from adaptdl.forking import worker_command
from adaptdl.runtime.imports import WITHOUT_RAY, import_all

_MAX_RATIO = 0.8
_MAX_FORKED_RATIO = 0.5
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
"""How → CPU seconds up to training, and of a collection then; of each process. Or seconds, and the machine's CPU seconds."""


class _Trainer:
    """An actor that is about to train."""

    def ready(self) -> None:
        import_all()
        from adaptdl.torch.warm_up import warm_up

        warm_up()


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
        rows.append([how, str(len(costs)), _span(starts_s), f"{1e3 * statistics.median(collections_s):.1f} ms"])
    print_table(rows)
    on_ray = start_on_ray(args.count)
    rows = [["on Ray", "n", "seconds (min–max)", "CPU (min–max)"]]
    for how, costs in on_ray.items():
        rows.append([how, str(len(costs)), *map(_span, zip(*costs, strict=True))])
    print()
    print_table(rows)
    verdicts = [*bounds(found), *bounds_on_ray(on_ray)]
    written = {"run": machine, "found": found, "on_ray": on_ray, "bounds": [vars(verdict) for verdict in verdicts]}
    write_json(args.json, written)
    return conclude(verdicts, check=args.check)


def _span(times_s: Sequence[float]) -> str:
    return f"{statistics.median(times_s):.2f} s ({min(times_s):.2f}–{max(times_s):.2f})"


def start_on_ray(count: int) -> _Found:
    """In turns; the first one of each kind, which has to wait for the server, is left out."""
    command = worker_command(WITHOUT_RAY, 1)
    if command is None:
        raise SystemExit("replicas are forked on Linux only")
    environments: dict[str, dict[str, Any]] = {"anew": {}, "forked": {"py_executable": command}}
    found: _Found = {how: [] for how in environments}
    ray.init(num_cpus=0, address="local", include_dashboard=False, log_to_driver=False)
    try:
        for turn in range(count + 1):
            for how, environment in environments.items():
                began, busy_s = time.monotonic(), _busy_s()
                actor = ray.remote(_Trainer).options(num_cpus=0, runtime_env=environment).remote()
                ray.get(actor.ready.remote(), timeout=_TIMEOUT_S)
                if turn:
                    found[how].append((time.monotonic() - began, _busy_s() - busy_s))
                ray.kill(actor)
                time.sleep(1.0)  # Ray clears away behind it
    finally:
        ray.shutdown()
    return found


def _busy_s() -> float:
    """CPU seconds that this machine has computed since it runs, of all processes."""
    user, nice, system, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


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


def bounds_on_ray(found: _Found) -> Iterator[Bound]:
    """All that must hold by way of Ray."""
    for index, what in enumerate(["seconds", "CPU"]):
        ratio = statistics.median(
            forked[index] / anew[index] for forked, anew in zip(found["forked"], found["anew"], strict=True)
        )
        text = f"forked: {what} to training ≤ {_MAX_FORKED_RATIO:g} of a process that is started anew"
        yield Bound(text=text, value=ratio, holds=ratio <= _MAX_FORKED_RATIO)


if __name__ == "__main__":
    sys.exit(main(parse_counted(__doc__, None, counted="processes of each kind", written="process")))
