"""`adaptdl simulate`, for real on small workloads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaptdl.cli import main
from adaptdl.sim import built_in_models, write_model_applications, write_workload
from tests.sim.test_pollux import folder
from tests.sim.test_tune_results import rows
from tests.sim.tune_folder import write_trial
from tests.sim.workloads import perfect, spec

assert folder  # a fixture

CLUSTER = ["simulate", "--nodes", "2", "--gpus", "2"]
TUNING = [*CLUSTER, "--tuning", "6", "--model", "convnet", "--epochs", "5"]


def figures(table: str) -> dict[str, list[str]]:
    """Row of the table → its cells."""
    return {line[:25].strip(): line[25:].split() for line in table.splitlines()[2:]}


def test_policies_are_compared_on_a_tuning_workload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "plot.png")]
    policies = ["optimal", "fair-share", "static:2", "tiresias", "optimus"]
    assert main([*TUNING, "--asha", "--policy", ",".join(policies), *output]) == 0
    printed = capsys.readouterr()
    assert printed.out.split()[: len(policies)] == policies
    assert figures(printed.out)["jobs"] == ["6"] * len(policies)
    assert printed.err == ""
    data = json.loads((tmp_path / "all.json").read_text())
    assert list(data["results"]) == policies
    assert (data["arguments"]["tuning"], data["arguments"]["plot"]) == (6, str(tmp_path / "plot.png"))
    for result in data["results"].values():
        assert result["summary"]["num_stopped"] > 0
        assert len(result["jobs"]) == 6
        assert {job["job_id"] for job in result["jobs"]} == {f"trial-{i}" for i in range(6)}
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(
        f"plot-{name.replace(':', '-')}.png" for name in policies
    )


def test_the_same_seed_prints_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for seed in ("1", "1", "2"):
        assert main([*TUNING, "--policy", "fair-share", "--failures", "200", "--away", "20", "--seed", seed]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] != tables[2]


def test_a_workload_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [spec("mine", 0.0), spec("theirs", 10.0, application=built_in_models()["convnet"].application())]
    write_workload(tmp_path / "jobs.csv", jobs)
    write_model_applications(tmp_path / "applications.json", [perfect()])
    files = ["--csv", str(tmp_path / "jobs.csv"), "--applications", str(tmp_path / "applications.json")]
    assert main([*CLUSTER, *files, "--policy", "static", "--start", "7", "--jobs"]) == 0
    out = capsys.readouterr().out
    line = next(line.split() for line in out.splitlines() if line.startswith("mine"))
    assert line == ["mine", "perfect", "0.0", "107.0", "107.0", "0.0", "0", "0.03", "complete"]


@pytest.mark.parametrize(
    ("more", "average"), [([], "94.0"), (["--pause", "0", "--start", "0", "--interval", "30"], "34.0")]
)
def test_the_published_data_runs_in_rounds_with_their_costs(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], more: list[str], average: str
) -> None:
    """Its first job takes 10 s; see test_pollux.py for the second, which takes 8 s."""
    traces = request.getfixturevalue("folder")
    assert main([*CLUSTER, "--traces", str(traces), "--workload", "1", "--policy", "static", *more]) == 0
    assert figures(capsys.readouterr().out)["average completion time"] == ["s", average]


def test_last_weeks_tuning_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("t1", "t2", "t3"):
        write_trial(tmp_path, rows(name, began_s={"t1": 10.0, "t2": 20.0, "t3": 30.0}[name]))
    arguments = ["--tune-results", str(tmp_path), "--metric", "accuracy", "--together", "--max-concurrent", "1"]
    assert main([*CLUSTER, *arguments, "--jobs"]) == 0
    out = capsys.readouterr().out
    times = [line.split()[2:4] for line in out.splitlines() if line.startswith("t")]
    assert [submitted for submitted, _ in times] == ["0.0", *(completed for _, completed in times[:2])]


def test_kinds_of_nodes_are_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--cluster", "1x2,2x1", "--tuning", "4", "--model", "convnet", "--epochs", "1"]
    assert main([*arguments, "--policy", "static", "--no-immediate", "--interval", "10"]) == 0
    assert figures(capsys.readouterr().out)["jobs waiting, average"] == ["0.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--tuning", "1"], "the cluster must be given as --nodes N --gpus G or as --cluster"),
        (["simulate", "--cluster", "4", "--tuning", "1"], "a kind of node must be given as NxG"),
        (["simulate", "--nodes", "0", "--tuning", "1"], "a kind of node must be given as NxG"),
        (CLUSTER, "the workload must be one of --traces DIR, --csv FILE, --tune-results DIR, --tuning N"),
        ([*TUNING, "--csv", "x.csv"], "the workload must be one of"),
        ([*TUNING, "--metric", "loss"], "--metric is for --tune-results only"),
        ([*CLUSTER, "--csv", "x.csv", "--asha"], "--asha is for --tuning only"),
        ([*TUNING, "--away", "5"], "--away is for --failures only"),
        ([*TUNING, "--policy", "best"], "`--policy` must be optimal, fair-share"),
        ([*TUNING, "--policy", "static:0"], "`--policy` must be optimal, fair-share"),
        ([*TUNING, "--fairness", "2"], "`0 <= fairness <= 1` must hold"),
        ([*TUNING, "--pause", "-1"], "`pause_s` must be finite and >= 0"),
        ([*TUNING, "--json", "/no/such/directory/x.json"], "there is no directory `/no/such/directory`"),
        ([*TUNING, "--plot", "x.txt"], "the name of a picture must end with"),
        ([*CLUSTER, "--csv", "x.csv"], "`x.csv` must be a CSV file of jobs, but cannot be read"),
        ([*CLUSTER, "--tuning", "1", "--model", "gpt"], "`model` must be one of convnet, resnet18, transformer"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("adaptdl: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_anything_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*TUNING, "--plot", str(tmp_path / "plot.png")]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


def test_help_is_quick_and_names_what_is_built_in() -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "adaptdl", "simulate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert time.monotonic() - began < 5
    assert all(name in done.stdout for name in built_in_models())
