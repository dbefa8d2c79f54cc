"""``tune.report``, ``tune.get_checkpoint`` and ``tune.get_context`` as the user's function finds them in a replica."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune

from adaptdl.errors import UsageError
from adaptdl.plan import Member
from adaptdl.runtime import JobInfo
from adaptdl.runtime.messages import ReplicaSpec
from adaptdl.runtime.reporting import ReportingSession, installed


class Recorder:
    """Stands for the elastic session."""

    def __init__(self) -> None:
        self.reports: list[tuple[dict[str, Any], Mapping[str, bytes] | None]] = []

    def report(self, metrics: dict[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        self.reports.append((metrics, files))


SPEC = ReplicaSpec(
    member=Member(replica_id="r", node_id="n"),
    job=JobInfo(job_id="abc", name="AdaptDLTrainable_abc", experiment="mine", directory="/somewhere"),
    alone=True,
    generation=1,
    num_threads=1,
    resources={"CPU": 1.0},
    start=None,
    snapshot_interval_s=30.0,
    join_timeout_s=30.0,
)


@pytest.fixture
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    recorder = Recorder()
    files = getattr(request, "param", None)
    with installed(ReportingSession(recorder, SPEC, files)):  # type: ignore[arg-type]
        yield recorder


def test_a_report_goes_to_the_session(recorder: Recorder) -> None:
    tune.report({"score": 1.0})
    assert recorder.reports == [({"score": 1.0}, None)]


def test_a_checkpoint_is_taken_as_its_files(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.pt").write_bytes(b"weights")
    tune.report({"score": 1.0}, checkpoint=tune.Checkpoint.from_directory(str(tmp_path)))
    assert recorder.reports[0][1] == {"sub/model.pt": b"weights"}
    assert tune.get_checkpoint() is not None


@pytest.mark.parametrize("recorder", [{"sub/model.pt": b"weights"}], indirect=True)
def test_the_files_the_job_goes_on_from_are_a_checkpoint(recorder: Recorder) -> None:
    checkpoint = tune.get_checkpoint()
    assert checkpoint is not None
    with checkpoint.as_directory() as directory:
        assert Path(directory, "sub", "model.pt").read_bytes() == b"weights"


def test_there_is_no_checkpoint_to_begin_with(recorder: Recorder) -> None:
    assert tune.get_checkpoint() is None


def test_the_context_is_the_trials(recorder: Recorder) -> None:
    context = tune.get_context()
    assert context.get_trial_id() == "abc"
    assert context.get_trial_name() == "AdaptDLTrainable_abc"
    assert context.get_experiment_name() == "mine"
    assert context.get_trial_dir() == "/somewhere"
    assert context.get_trial_resources().required_resources == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"good": 1.0, "loss": torch.zeros(1)}, r"\['loss'\] hold tensors of torch: report `value.item\(\)`"),
        (3, "takes a dict"),
    ],
)
def test_what_cannot_be_reported_is_refused(recorder: Recorder, metrics: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tune.report(metrics)
    assert recorder.reports == []


def test_tune_has_no_session_of_ours_afterwards() -> None:
    with installed(ReportingSession(Recorder(), SPEC, None)):  # type: ignore[arg-type]
        pass
    with pytest.warns(UserWarning, match="meant to only be"):
        assert tune.get_checkpoint() is None


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("adaptdl-checkpoint-*"))


def test_a_checkpoint_is_written_when_it_is_asked_for_and_goes_with_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.pt").write_bytes(b"newer")
    of_another_trial = tmp_path / "adaptdl-checkpoint-abcd-999999999-x"
    of_a_killed_process = tmp_path / "adaptdl-checkpoint-abc-999999999-x"
    of_this_process = tmp_path / f"adaptdl-checkpoint-abc-{os.getpid()}-x"
    for folder in (of_another_trial, of_a_killed_process, of_this_process):
        folder.mkdir()
    others = sorted([of_another_trial, of_this_process])
    with installed(ReportingSession(Recorder(), SPEC, {"model.pt": b"weights"})):  # type: ignore[arg-type]
        assert of_a_killed_process in copies(tmp_path)
        assert len(copies(tmp_path)) == 3  # nothing was written yet
        for content in (b"weights", b"newer"):
            checkpoint = tune.get_checkpoint()
            assert checkpoint is not None
            assert Path(checkpoint.path, "model.pt").read_bytes() == content
            assert copies(tmp_path) == sorted([*others, Path(checkpoint.path)])
            tune.report({"score": 1.0}, checkpoint=tune.Checkpoint.from_directory(str(tmp_path / "mine")))
    assert copies(tmp_path) == others
