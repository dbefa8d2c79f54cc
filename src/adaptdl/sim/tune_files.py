"""The files of a Ray Tune experiment, read without Ray.

<experiment>/experiment_state-<date>.json   which trials belong to the run that began at that date
<experiment>/<trial>/result.json            a result per line; or
<experiment>/<trial>/progress.csv           the same as a table, if there is no result.json
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptdl.errors import UsageError

__all__ = ["TrialRecord", "TuneResult", "read_experiment"]


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """One result of one trial. Numbers that are missing or no numbers are NaN, or 0 where they count something."""

    iteration: int
    num_replicas: int
    num_nodes: int
    batch_size: int
    goodput: float
    """Useful samples per second."""
    efficiency: float
    progress: float
    """Steps at M₀."""
    ended_s: float
    """When, seconds since 1970."""
    total_s: float
    """Seconds that the trial has run for."""
    metrics: Mapping[str, float] = field(repr=False)
    """Everything else that is a finite number."""

    @property
    def step_time_s(self) -> float | None:
        """Seconds of an optimizer step; None if the result does not tell."""
        if not (self.goodput > 0 and self.efficiency > 0 and self.batch_size > 0 and self.num_replicas > 0):
            return None
        return self.batch_size * self.efficiency / self.goodput


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial."""

    trial_id: str
    results: Sequence[TuneResult]
    """At least one; of an iteration that was made again after a failure the last one, by iteration."""

    @property
    def began_s(self) -> float:
        """When it first ran, seconds since 1970."""
        return min(result.ended_s - result.total_s for result in self.results)


def read_experiment(folder: Path) -> list[TrialRecord]:
    """All trials of the newest run that have results with AdaptDL's columns.

    Raises:
        UsageError: the folder has no such trial, or a file in it is damaged.
    """
    files = {path.parent: path for name in ("progress.csv", "result.json") for path in folder.glob(f"*/{name}")}
    if not files:
        raise UsageError(
            f"`{folder}` must be the folder of a Ray Tune experiment (<trial>/result.json or <trial>/progress.csv), but "
            "has no such file."
        )
    wanted = _newest_run(folder)
    records = []
    for _, file in sorted(files.items()):
        rows = _json_lines(file) if file.suffix == ".json" else _csv_rows(file)
        rows = [row for row in rows if "adaptdl/progress" in row]
        if rows and (wanted is None or str(rows[-1].get("trial_id")) in wanted):
            by_iteration = {result.iteration: result for result in map(_result, rows)}
            results = [by_iteration[iteration] for iteration in sorted(by_iteration)]
            records.append(TrialRecord(trial_id=str(rows[-1].get("trial_id") or file.parent.name), results=results))
    if not records:
        raise UsageError(f"`{folder}` must hold results with AdaptDL's columns (adaptdl/progress, …), but holds none.")
    return records


def _newest_run(folder: Path) -> set[str] | None:
    """Ids of its trials; None if there is no telling."""
    states = sorted(folder.glob("experiment_state-*.json"))
    if not states:
        return None
    try:
        data = json.loads(states[-1].read_text(encoding="utf-8"))
        return {str(json.loads(trial[0])["trial_id"]) for trial in data["trial_data"]}
    except (ValueError, KeyError, TypeError, IndexError):  # another version of Ray's: all trials are taken then
        return None


def _json_lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # cut off when the experiment was
                break
            raise UsageError(f"{file}, line {number}: must be a result in JSON, but is not: {error}.") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return [{name: value for name, value in row.items() if name is not None} for row in csv.DictReader(lines)]


def _result(row: Mapping[str, Any]) -> TuneResult:
    numbers = {name: _number(value) for name, value in row.items()}

    def number(name: str, default: float = math.nan) -> float:
        value = numbers.get(name, math.nan)
        return value if math.isfinite(value) else default

    return TuneResult(
        iteration=int(number("training_iteration", 0)),
        num_replicas=max(int(number("adaptdl/num_replicas", 1)), 1),
        num_nodes=max(int(number("adaptdl/num_nodes", 1)), 1),
        batch_size=int(number("adaptdl/batch_size", 0)),
        goodput=number("adaptdl/goodput"),
        efficiency=number("adaptdl/efficiency"),
        progress=number("adaptdl/progress", 0.0),
        ended_s=number("timestamp", 0.0),
        total_s=number("time_total_s", 0.0),
        metrics={name: value for name, value in numbers.items() if math.isfinite(value)},
    )


def _number(value: Any) -> float:
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
