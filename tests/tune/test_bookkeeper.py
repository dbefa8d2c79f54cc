"""Tune's log of a trial that goes on ends with the last result that its driver knows of."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from adaptdl.tune.bookkeeper import Bookkeeper, _csv_rows, _cut, _json_rows
from adaptdl.tune.resume import Known

RESULTS = [{"training_iteration": number, "timestamp": 1000 + number, "text": 'a, "b"'} for number in range(1, 6)]


def as_json(results: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(result) + "\n" for result in results).encode()


def as_csv(results: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "training_iteration", "timestamp"])
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue().encode()


@pytest.mark.parametrize(("write", "rows"), [(as_json, _json_rows), (as_csv, _csv_rows)])
def test_what_will_come_again_is_cut_off(write: Any, rows: Any) -> None:
    assert _cut(write(RESULTS), rows, RESULTS[2]) == write(RESULTS[:3])
    assert _cut(write(RESULTS), rows, RESULTS[-1]) == write(RESULTS)
    assert _cut(write(RESULTS)[:-5], rows, RESULTS[3]) == write(RESULTS[:4])  # half a line at the end


@pytest.mark.parametrize(("write", "rows"), [(as_json, _json_rows), (as_csv, _csv_rows)])
def test_a_log_without_the_last_result_is_not_taken(write: Any, rows: Any) -> None:
    assert _cut(write(RESULTS[:2]), rows, RESULTS[2]) == b""
    assert _cut(b"", rows, RESULTS[2]) == b""


def test_of_a_trial_that_took_over_anothers_state_the_later_of_two_equal_numbers_counts() -> None:
    again = [{**result, "timestamp": 2000 + result["training_iteration"]} for result in RESULTS[1:4]]
    log = as_json([*RESULTS, *again])
    assert _cut(log, _json_rows, again[1]) == as_json([*RESULTS, *again[:2]])
    assert _cut(log, _json_rows, RESULTS[2]) == as_json(RESULTS[:3])


@pytest.mark.parametrize(("write", "rows"), [(as_json, _json_rows), (as_csv, _csv_rows)])
def test_of_a_long_log_only_the_end_is_read(write: Any, rows: Any) -> None:
    results = [{**RESULTS[0], "training_iteration": number} for number in range(1000)]
    num_read = 0

    def counted(lines: Iterable[str]) -> Iterable[Any]:
        nonlocal num_read
        for row in rows(lines):
            num_read += 1
            yield row

    assert _cut(write(results), counted, results[-3]) == write(results[:-2])
    assert num_read <= 4


def test_the_header_of_a_log_may_follow_empty_lines() -> None:
    assert _cut(b"\r\n" + as_csv(RESULTS), _csv_rows, RESULTS[2]) == b"\r\n" + as_csv(RESULTS[:3])


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As far as the log goes."""
    monkeypatch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path / "session"))
    storage = StorageContext(storage_path=str(tmp_path / "s"), experiment_dir_name="e", trial_dir_name="t")
    for path in (storage.trial_driver_staging_path, storage.trial_fs_path):
        Path(path).mkdir(parents=True)
    return SimpleNamespace(
        trial_id="t",
        storage=storage,
        run_metadata=SimpleNamespace(last_result=RESULTS[2]),
        is_finished=lambda: False,
    )


@pytest.mark.parametrize(("here", "there"), [(5, 4), (5, None), (None, 4), (0, 4), (3, 3)])
def test_a_new_driver_has_the_log_that_it_knows_of_here_and_on_the_storage(
    trial: Any, here: int | None, there: int | None
) -> None:
    places = (Path(trial.storage.trial_driver_staging_path), here), (Path(trial.storage.trial_fs_path), there)
    for folder, number in places:
        if number is not None:
            (folder / "result.json").write_bytes(as_json(RESULTS[:number]))
            (folder / "progress.csv").write_bytes(as_csv(RESULTS[:number]) if number else b"")
    bookkeeper = Bookkeeper(lambda: 0.0)
    bookkeeper.on_step_begin(iteration=0, trials=[trial])
    for folder, _ in places:
        assert (folder / "result.json").read_bytes() == as_json(RESULTS[:3])
        assert (folder / "progress.csv").read_bytes() == as_csv(RESULTS[:3])


@pytest.mark.parametrize(("here", "there", "num_uploads"), [(3, 3, 0), (3, 2, 1), (3, 4, 1), (2, 2, 0)])
def test_a_log_that_needs_no_mending_is_left_alone(
    trial: Any, here: int, there: int, num_uploads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = (
        Path(folder, "result.json") for folder in (trial.storage.trial_driver_staging_path, trial.storage.trial_fs_path)
    )
    path.write_bytes(as_json(RESULTS[:here]))
    copy.write_bytes(as_json(RESULTS[:there]))
    uploaded: list[str] = []
    monkeypatch.setattr("adaptdl.tune.bookkeeper._upload_to_fs_path", lambda path, *_: uploaded.append(path))
    os.utime(path, (1, 1))
    Bookkeeper(lambda: 0.0).on_step_begin(iteration=0, trials=[trial])
    assert uploaded == [str(path)] * num_uploads
    assert path.stat().st_mtime == 1


def test_a_driver_that_knows_of_no_result_has_an_empty_log(trial: Any) -> None:
    trial.run_metadata.last_result = {}
    path = Path(trial.storage.trial_driver_staging_path, "result.json")
    bookkeeper = Bookkeeper(lambda: 0.0)
    path.write_bytes(as_json(RESULTS))
    bookkeeper.on_step_begin(iteration=0, trials=[trial])
    assert path.read_bytes() == b""
    path.write_bytes(as_json(RESULTS[:1]))
    bookkeeper.on_step_begin(iteration=1, trials=[trial])
    assert path.read_bytes() == as_json(RESULTS[:1])


def test_a_trial_that_has_no_folder_yet_is_left_alone(trial: Any) -> None:
    trial.run_metadata.last_result, trial.storage.trial_dir_name = {}, None
    Bookkeeper(lambda: 0.0).on_step_begin(iteration=0, trials=[trial])


class Trials(list[Any]):
    """Counts how many are looked at."""

    num_read = 0

    def __iter__(self) -> Iterator[Any]:
        for trial in super().__iter__():
            self.num_read += 1
            yield trial

    def __reversed__(self) -> Iterator[Any]:
        for trial in super().__reversed__():
            self.num_read += 1
            yield trial


def simple_trial(name: str, status: str = Trial.RUNNING) -> Any:
    """Without a log."""
    trial = SimpleNamespace(
        trial_id=name,
        status=status,
        storage=SimpleNamespace(trial_dir_name=None),
        config={"lr": 0.1},
        run_metadata=SimpleNamespace(last_result={}),
        latest_checkpoint_result=None,
        temporary_state=SimpleNamespace(ray_actor=None),
        is_restoring=False,
        num_asked=0,
    )

    def is_finished() -> bool:
        trial.num_asked += 1
        return trial.status in (Trial.ERROR, Trial.TERMINATED)

    trial.is_finished = is_finished
    return trial


def step(bookkeeper: Bookkeeper, trials: list[Any]) -> None:
    bookkeeper.on_step_begin(iteration=0, trials=trials)
    bookkeeper.on_step_end(iteration=0, trials=trials)


def test_trials_that_have_ended_are_not_looked_at_in_each_step() -> None:
    trials = Trials(simple_trial(str(number), Trial.TERMINATED) for number in range(100))
    trials.append(simple_trial("runs"))
    bookkeeper = Bookkeeper(lambda: 0.0)
    step(bookkeeper, trials)
    num_asked, trials.num_read = trials[0].num_asked, 0
    for _ in range(5):
        step(bookkeeper, trials)
    assert (trials[0].num_asked, trials.num_read) == (num_asked, 0)
    trials.append(simple_trial("new"))
    step(bookkeeper, trials)
    assert trials.num_read == 1
    assert bookkeeper._unfinished == {"runs", "new"}


def test_a_new_trial_is_seen_though_another_moved_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mended: list[str] = []
    monkeypatch.setattr("adaptdl.tune.bookkeeper._mend_log", lambda trial: mended.append(trial.trial_id))
    a, b, c = (simple_trial(name) for name in "abc")
    bookkeeper = Bookkeeper(lambda: 0.0)
    step(bookkeeper, [a, b])
    step(bookkeeper, [b, c, a])
    assert mended == ["a", "b", "c"]
    assert bookkeeper._unfinished == {"a", "b", "c"}


def test_a_trial_that_had_ended_and_goes_on_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    monkeypatch.setattr("adaptdl.tune.bookkeeper._save_log", lambda trial: saved.append(trial.trial_id))
    trials = [simple_trial(name, Trial.ERROR) for name in ("started", "recovered")]
    bookkeeper = Bookkeeper(lambda: 0.0)
    step(bookkeeper, trials)
    assert bookkeeper._unfinished == set()
    trials[0].status = trials[1].status = Trial.PENDING
    bookkeeper.on_trial_start(iteration=1, trials=trials, trial=trials[0])
    bookkeeper.on_trial_recover(iteration=1, trials=trials, trial=trials[1])
    step(bookkeeper, trials)
    assert bookkeeper._unfinished == {"started", "recovered"}
    trials[0].status = Trial.PAUSED
    step(bookkeeper, trials)
    assert saved == ["recovered", "started"]


def test_a_coordinator_is_told_what_tune_has_seen_since_the_trial_took_over_anothers_state() -> None:
    """The config may be the same: a categorical value that was drawn again."""
    trial = simple_trial("exploits")
    trial.storage.trial_fs_path = "/storage/exploits"
    bookkeeper = Bookkeeper(lambda: 0.0)

    def told() -> Known:
        trial.temporary_state.ray_actor = MagicMock()
        bookkeeper.on_trial_start(iteration=0, trials=[trial], trial=trial)
        (known,) = trial.temporary_state.ray_actor.know.remote.call_args.args
        return known

    def result(number: int) -> dict[str, Any]:
        return {"training_iteration": number, "timestamp": 1000 + number, "config": {"lr": 0.1}}

    told()
    trial.run_metadata.last_result = result(8)
    donors = SimpleNamespace(checkpoint=SimpleNamespace(path="/storage/donor/checkpoint_000001"), metrics=result(3))
    trial.latest_checkpoint_result, trial.status = donors, Trial.PAUSED
    step(bookkeeper, [trial])
    trial.status = Trial.RUNNING
    assert told() == Known(last_result=result(3), interrupted=False, is_current=True)
    bookkeeper.on_trial_recover(iteration=0, trials=[trial], trial=trial)  # before anything was reported
    assert told() == Known(last_result=result(3), interrupted=True, is_current=True)
    trial.run_metadata.last_result = again = {**result(4), "timestamp": 2000}
    bookkeeper.on_trial_recover(iteration=0, trials=[trial], trial=trial)
    assert told() == Known(last_result=again, interrupted=True, is_current=True)


def test_what_was_kept_of_a_trial_is_removed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def remove(trial: Any) -> bool:
        tried.append(trial.trial_id)
        return bool(trial.trial_id != "fails" or tried.count("fails") > 1)

    monkeypatch.setattr("adaptdl.tune.bookkeeper._remove_vault", remove)
    monkeypatch.setattr("ray.wait", lambda answers, **_: (answers, []))
    before, once, fails, again = trials = [simple_trial(name) for name in ("before", "once", "fails", "again")]
    before.status = Trial.TERMINATED
    bookkeeper = Bookkeeper(lambda: math.inf)
    for trial in (once, fails, again):
        trial.temporary_state.ray_actor = MagicMock()
        bookkeeper.on_trial_complete(iteration=0, trials=trials, trial=trial)
        trial.status = Trial.TERMINATED
    step(bookkeeper, trials)
    assert tried == ["once", "fails", "again"]
    bookkeeper.on_trial_start(iteration=1, trials=trials, trial=again)
    bookkeeper.on_experiment_end(trials=trials)
    assert tried == ["once", "fails", "again", "before", "fails", "again"]
