"""What all benchmarks say in the same way: where they ran, what they found, and what must hold of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Bound",
    "conclude",
    "describe_machine",
    "parse_counted",
    "print_machine",
    "print_table",
    "working_directory",
    "write_json",
]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Something that must hold."""

    text: str
    value: float
    holds: bool | None
    """None: it cannot be told on this machine."""
    remark: str = ""

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILED", None: "not checked"}[self.holds]
        return f"{verdict:11} {self.text}: {self.value:.3g}{self.remark and f' ({self.remark})'}"


def describe_machine(**versions: str) -> dict[str, Any]:
    """What a reader has to know of a measurement; `versions` are those of the packages that matter."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = [f"{name} {version}" for name, version in versions.items()]
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {models[0].split(': ')[1] if models else platform.machine()}",
        "load before": round(os.getloadavg()[0], 1),
    }


def print_machine(machine: Mapping[str, Any]) -> None:
    """One line for each."""
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)


def parse_counted(
    description: str | None, arguments: Sequence[str] | None, *, counted: str, written: str
) -> argparse.Namespace:
    """Of a benchmark that does something `count` times, `counted`, and can write every single one of what is `written`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help=counted)
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write every single {written} there")
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error("--count must be ≥ 1")
    return args


def conclude(verdicts: Sequence[Bound], *, check: bool) -> int:
    """Prints the bounds, and says with which status to exit; `check`: whether they matter for it."""
    print("\nBounds")
    for verdict in verdicts:
        print(f"  {verdict}")
    return int(check and any(verdict.holds is False for verdict in verdicts))


def write_json(path: Path | None, content: Any) -> None:
    """Writes what was found, if there is somewhere to write it to."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def working_directory(keep: Path | None, *, prefix: str) -> Iterator[Path]:
    """A new directory: `keep`, or one that is removed afterwards."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix=prefix) as directory:
            yield Path(directory)
    else:
        keep.mkdir(parents=True)
        yield keep.resolve()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of as many cells each, in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
