"""How long the first batch takes after the batch size or the number of replicas has changed, in the middle of a pass.

    python benchmarks/first_batch.py
    python benchmarks/first_batch.py --count 3

A sample takes 1 ms of sleep, M₀ is 32, and a step sleeps for 40 ms (data is ahead), or not at all (data is waited for). The batch
size changes 32→48→32, told as the library itself tells it; a second replica, a process of its own with gloo, comes and goes.
Beside it, in the same process between two changes: what a DataLoader takes for its first batch of as many samples when it is
made anew, as a script would do that changes its batch size. Medians. It takes about three minutes, and exits with 1 if one of the
bounds does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from findings import Bound, conclude, describe_machine, parse_counted, print_machine, print_table, write_json
from first_batches.changes import Change
from first_batches.running import change_batch_size, reallocate

_SETTINGS = ((0, 0.04), (2, 0.04), (2, 0.0))
"""(workers, seconds that a step sleeps)."""
_MAX_RATIO = 1.0
_COLUMNS = [
    "data (max)",
    "newcomer's",
    "new DataLoader",
    "ratio",
    "step to batch",
    "no change",
    "thrown away",
    "forked",
]

_Found = Mapping[tuple[int, float, str], Sequence[Change]]
"""(workers, seconds, name of the change) → all of its kind."""


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__)
    print_machine(machine)
    found: dict[tuple[int, float, str], list[Change]] = {}
    for num_workers, step_s in _SETTINGS:
        for run in (change_batch_size, reallocate):
            for change in run(num_workers, step_s, args.count):
                found.setdefault((num_workers, step_s, change.name), []).append(change)
            print(f"{run.__name__}: {num_workers} workers, steps of {1e3 * step_s:g} ms: done", flush=True)
    print_changes(found)
    verdicts = list(bounds(found))
    content = [
        {"num_workers": num_workers, "step_s": step_s, "changes": [vars(change) for change in changes]}
        for (num_workers, step_s, _), changes in found.items()
    ]
    write_json(args.json, {"run": machine, "found": content, "bounds": [vars(verdict) for verdict in verdicts]})
    return conclude(verdicts, check=args.check)


def print_changes(found: _Found) -> None:
    """*data*: what was waited for data, from the last step (of a reallocation: from when the new group stood) to the first batch;
    *step to batch*: all of it; *no change*: the same between two other steps; *thrown away*: samples per change that were fetched
    once more than they were handed out; *forked*: workers that were not there before."""
    rows = [["workers", "step", "change", "n", *_COLUMNS]]
    for (num_workers, step_s, name), changes in found.items():
        newcomers = [change.newcomer_s for change in changes if change.newcomer_s is not None]
        rows.append(
            [
                str(num_workers),
                f"{1e3 * step_s:g} ms",
                name,
                str(len(changes)),
                f"{_ms(change.data_s for change in changes)} ({1e3 * max(change.data_s for change in changes):.0f})",
                _ms(newcomers) if newcomers else "",
                _ms(change.peer_s for change in changes),
                f"{_ratio(changes):.2f}",
                _ms(change.delay_s for change in changes),
                _ms(change.step_delay_s for change in changes),
                f"{statistics.fmean(change.num_thrown for change in changes):.1f}",
                str(sum(change.num_forked for change in changes)),
            ]
        )
    print()
    print_table(rows)


def _ms(values: Iterator[float] | Sequence[float]) -> str:
    return f"{1e3 * statistics.median(values):.0f} ms"


def _ratio(changes: Sequence[Change]) -> float:
    """Of the median wait for the first batch to the peer's."""
    data_s, peer_s = ([getattr(change, name) for change in changes] for name in ("data_s", "peer_s"))
    return statistics.median(data_s) / statistics.median(peer_s)


def bounds(found: _Found) -> Iterator[Bound]:
    """All that must hold."""
    for (num_workers, step_s, name), changes in found.items():
        if num_workers:
            text = f"{num_workers} workers, steps of {1e3 * step_s:g} ms, {name}"
            ratio, num_forked = _ratio(changes), sum(change.num_forked for change in changes)
            yield Bound(
                text=f"{text}: first batch ≤ {_MAX_RATIO:g} of a new DataLoader's",
                value=ratio,
                holds=ratio <= _MAX_RATIO,
            )
            yield Bound(text=f"{text}: workers forked anew", value=num_forked, holds=num_forked == 0)


if __name__ == "__main__":
    sys.exit(main(parse_counted(__doc__, None, counted="changes of each kind", written="change")))
