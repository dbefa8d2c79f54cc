"""A user's own workload, in files.

Jobs are a CSV file with a header, one row each:

  name            a name of its own
  time            when it is submitted, seconds from the start
  application     one of the applications
  num_replicas    optional: what its user would ask for; 1
  batch_size      optional: what its user would train with, samples; the application's M₀
  min_replicas    optional: it has nothing or at least so many; 1
  max_replicas    optional: more are not given; as many as the application can use

Applications are a JSON file: by name, the fields of :class:`~adaptdl.sim.ModelApplication`, with a name for each number:

  {"mine": {"perf_params": {"alpha_c": 0.02, "beta_c": 0.0007, "alpha_n": 0.1, "beta_n": 0.002, "alpha_r": 0.01,
                            "beta_r": 0.001, "gamma": 1.8},
            "bounds": {"init_batch_size": 128, "max_batch_size": 4096, "local_bsz_bounds": [32, 1024],
                       "gradient_accumulation": true},
            "num_epochs": 60, "epoch_progress": 390.6,
            "first_grad_params": {"grad_sqr": 1.0, "grad_var": 1.2},
            "last_grad_params": {"grad_sqr": 1.0, "grad_var": 40.0}}}
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams
from adaptdl.sim.application import Application, ModelApplication
from adaptdl.sim.job import JobSpec

__all__ = ["read_model_applications", "read_workload", "write_model_applications", "write_workload"]

T = TypeVar("T")

_COLUMNS = ("name", "time", "application", "num_replicas", "batch_size", "min_replicas", "max_replicas")
_NEEDED = _COLUMNS[:3]

_NESTED = {
    "perf_params": PerfParams,
    "bounds": BatchSizeBounds,
    "first_grad_params": GradParams,
    "last_grad_params": GradParams,
}
"""Fields of an application that have fields themselves."""


def read_workload(file: str | Path, applications: Mapping[str, Application]) -> list[JobSpec]:
    """The jobs of a CSV file, in its order.

    Raises:
        UsageError: the file cannot be read, or a row is not understood; the message says which.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` must be a CSV file of jobs, but cannot be read: {error}.") from error
    return [_job(f"{file}, row {number}", row, applications) for number, row in enumerate(rows, start=1)]


def write_workload(file: str | Path, jobs: Iterable[JobSpec]) -> None:
    """Writes what :func:`read_workload` reads. Applications, rungs and scores are not in it."""
    with open(file, "w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(_COLUMNS)
        for job in jobs:
            size = "" if job.requested_batch_size is None else job.requested_batch_size
            most = "" if job.max_replicas is None else job.max_replicas
            asked = (job.requested_replicas, size, job.min_replicas, most)
            writer.writerow((job.job_id, repr(job.submitted_s), job.application.name, *asked))


def read_model_applications(file: str | Path) -> dict[str, ModelApplication]:
    """The applications of a JSON file, by name. Raises UsageError if it cannot be read or a number is missing or wrong."""
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"`{file}` must be a JSON file of applications, but cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"`{file}` must hold an object with an application by name, but holds {data!r:.80}.")
    return {name: _application(f"{file}, application {name!r}", name, values) for name, values in data.items()}


def write_model_applications(file: str | Path, applications: Iterable[ModelApplication]) -> None:
    """Writes what :func:`read_model_applications` reads."""
    names = [field.name for field in dataclasses.fields(ModelApplication) if field.init and field.name != "name"]
    data = {}
    for application in applications:
        values = {name: getattr(application, name) for name in names}
        data[application.name] = {
            name: dataclasses.asdict(value) if name in _NESTED else value for name, value in values.items()
        }
    Path(file).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _job(where: str, row: Mapping[str | None, Any], applications: Mapping[str, Application]) -> JobSpec:
    missing = [column for column in _NEEDED if not row.get(column)]
    if missing or None in row:
        what = f"`{missing[0]}` is missing" if missing else "has more values than the header has names"
        raise UsageError(f"{where}: {what}; a job needs {', '.join(_NEEDED)}, and may have {', '.join(_COLUMNS[3:])}.")
    name = row["application"]
    if name not in applications:
        raise UsageError(f"{where}: `application` must be one of {', '.join(applications)}, but is {name!r}.")
    most = _whole(where, row, "max_replicas")
    least = _whole(where, row, "min_replicas") or 1
    if most is not None and most < least:
        raise UsageError(
            f"{where}: `min_replicas <= max_replicas` must hold, but got (min_replicas={least}, max_replicas={most})."
        )
    return JobSpec(
        job_id=row["name"],
        application=applications[name],
        submitted_s=_seconds(where, row["time"]),
        requested_replicas=_whole(where, row, "num_replicas") or 1,
        requested_batch_size=_whole(where, row, "batch_size"),
        min_replicas=least,
        max_replicas=most,
    )


def _seconds(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{where}: `time` must be seconds >= 0, but is {text!r}.")
    return value


def _whole(where: str, row: Mapping[str | None, Any], column: str) -> int | None:
    """A number >= 1; None if there is none."""
    text = row.get(column)
    if text is None or not text.strip():
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"{where}: `{column}` must be a whole number >= 1, but is {text!r}.")
    return int(text)


def _application(where: str, name: str, values: Any) -> ModelApplication:
    fields = _checked_fields(where, ModelApplication, {"name": name, **_object(where, values)})
    for field, kind in _NESTED.items():
        inner = _checked_fields(f"{where}, `{field}`", kind, _object(f"{where}, `{field}`", fields[field]))
        if inner.get("local_bsz_bounds") is not None:
            inner["local_bsz_bounds"] = tuple(inner["local_bsz_bounds"])
        fields[field] = _made(f"{where}, `{field}`", kind, inner)
    return _made(where, ModelApplication, fields)


def _object(where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UsageError(f"{where}: must be an object with named values, but is {values!r:.80}.")
    return dict(values)


def _checked_fields(where: str, kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, if they are those that `kind` takes."""
    fields = [field for field in dataclasses.fields(kind) if field.init]
    without_default = dataclasses.MISSING
    needed = [field.name for field in fields if field.default is without_default]
    missing = [field for field in needed if field not in values]
    unknown = sorted(set(values) - {field.name for field in fields})
    if missing or unknown:
        what = f"`{missing[0]}` is missing" if missing else f"`{unknown[0]}` is unknown"
        raise UsageError(f"{where}: {what}; it takes {', '.join(field.name for field in fields)}.")
    return values


def _made(where: str, kind: type[T], values: dict[str, Any]) -> T:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
