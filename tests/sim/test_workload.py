from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptdl.errors import UsageError
from adaptdl.sim import (
    built_in_models,
    read_model_applications,
    read_workload,
    tuning_workload,
    write_model_applications,
    write_workload,
)
from tests.sim.workloads import perfect, spec

APPLICATIONS = {"perfect": perfect()}


def test_jobs_are_read_as_they_were_written(tmp_path: Path) -> None:
    jobs = [
        spec("a", 0.1 + 0.2, 3),
        spec("b, the second", 1e7, requested_batch_size=24, min_replicas=2, max_replicas=8),
    ]
    write_workload(tmp_path / "jobs.csv", jobs)
    assert read_workload(tmp_path / "jobs.csv", APPLICATIONS) == jobs


def test_only_three_columns_are_needed_and_others_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "jobs.csv"
    file.write_text("owner,application,time,name\nme,perfect,5,a\nyou,perfect,6,b\n")
    assert read_workload(file, APPLICATIONS) == [spec("a", 5.0), spec("b", 6.0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0,unknown,1,12,,", "row 2: `application` must be one of perfect, but is 'unknown'"),
        ("a,soon,perfect,1,12,,", "row 2: `time` must be seconds >= 0, but is 'soon'"),
        ("a,-1,perfect,1,12,,", "row 2: `time` must be seconds >= 0"),
        ("a,0,perfect,0,12,,", "row 2: `num_replicas` must be a whole number >= 1, but is '0'"),
        ("a,0,perfect,1,1.5,,", "row 2: `batch_size` must be a whole number >= 1, but is '1.5'"),
        ("a,0,perfect,1,12,4,2", "row 2: `min_replicas <= max_replicas` must hold"),
        (",0,perfect,1,12,,", "row 2: `name` is missing; a job needs name, time, application"),
        ("a,0,perfect,1,12,,,,", "row 2: has more values than the header has names"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(tmp_path: Path, row: str, message: str) -> None:
    file = tmp_path / "jobs.csv"
    write_workload(file, [spec("first")])
    with open(file, "a") as lines:
        lines.write(row + "\n")
    with pytest.raises(UsageError, match=message):
        read_workload(file, APPLICATIONS)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing.csv` must be a CSV file of jobs, but cannot be read"):
        read_workload(tmp_path / "nothing.csv", APPLICATIONS)


def test_applications_are_read_as_they_were_written(tmp_path: Path) -> None:
    models = [model.application() for model in built_in_models().values()]
    write_model_applications(tmp_path / "applications.json", [*models, perfect()])
    read = read_model_applications(tmp_path / "applications.json")
    assert read == {application.name: application for application in [*models, perfect()]}


def test_a_whole_tuning_workload_goes_through_files(tmp_path: Path) -> None:
    (job,) = tuning_workload(1, model="convnet")
    write_model_applications(tmp_path / "applications.json", [job.application])  # type: ignore[list-item]
    write_workload(tmp_path / "jobs.csv", [job])
    (read,) = read_workload(tmp_path / "jobs.csv", read_model_applications(tmp_path / "applications.json"))
    assert (read.application, read.requested_batch_size) == (job.application, job.requested_batch_size)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("perf_params", "gamma"), 20, "'perfect', `perf_params`: `1 <= gamma <= 10` must hold"),
        (("perf_params", "gamma"), None, "'perfect', `perf_params`: `gamma` is missing; it takes alpha_c"),
        (("bounds",), 12, "'perfect', `bounds`: must be an object with named values, but is 12"),
        (("epochs",), 3, "'perfect': `epochs` is unknown; it takes name, perf_params"),
        (("num_epochs",), 0, "`num_epochs >= 1` and `epoch_progress > 0` must hold"),
        (("bounds", "max_batch_size"), 1, "`init_batch_size <= max_batch_size` must hold"),
    ],
)
def test_an_application_that_makes_no_sense_is_named(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    file = tmp_path / "applications.json"
    write_model_applications(file, [perfect()])
    data = json.loads(file.read_text())
    inner = data["perfect"]
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    if value is None:
        del inner[path[-1]]
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message):
        read_model_applications(file)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "applications.json").write_text(text)
    with pytest.raises(UsageError, match=r"applications\.json` must"):
        read_model_applications(tmp_path / "applications.json")
