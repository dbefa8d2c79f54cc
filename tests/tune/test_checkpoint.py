"""A checkpoint is read back as it was written, or refused with a clear error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptdl.errors import SnapshotError
from adaptdl.runtime.results import Results, Saved
from adaptdl.tune.checkpoint import (
    Descent,
    Record,
    SavedTrial,
    decode_manifest,
    encode_manifest,
    read_trial,
    write_trial,
)

SAVED = SavedTrial(
    record=Record(
        descent=Descent(trial_id="a1", line="f00d", parent="beef/3", ordinal=7),
        num_contained=5,
        num_seen=3,
        recent={4: {"loss": 0.5}, 5: {"loss": 0.25, "weights": [1.0, 2.0]}},
        num_restarts=3,
        pause_s=0.5,
        time_total_s=12.5,
    ),
    snapshot=b"the state",
    files={"model.pt": b"weights", "sub/notes.txt": b"n"},
)


@pytest.mark.parametrize("saved", [SAVED, SavedTrial()])
def test_what_was_written_is_read(saved: SavedTrial, tmp_path: Path) -> None:
    write_trial(saved, tmp_path)
    assert read_trial(tmp_path) == saved


def test_the_users_files_lie_where_the_user_expects_them(tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    assert (tmp_path / "sub" / "notes.txt").read_bytes() == b"n"


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    with pytest.raises(SnapshotError, match=r"no checkpoint of an AdaptDL trial.*resume it with the trainable"):
        read_trial(tmp_path)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / ".adaptdl" / "snapshot.pt").write_bytes(b"the sta")
    with pytest.raises(SnapshotError, match=r"snapshot\.pt of .* is damaged.*checksum"):
        read_trial(tmp_path)


def test_a_damaged_file_of_the_users_is_refused(tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / "model.pt").write_bytes(b"weighty")
    with pytest.raises(SnapshotError, match=r"model\.pt of .* is damaged"):
        read_trial(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(SnapshotError, match=r"lacks its file .*model\.pt"):
        read_trial(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest .* is damaged"),
        ("[]", "manifest .* is damaged"),
        ('{"version": 99}', r"but is of 99; resume it with the AdaptDL that wrote it"),
        ('{"version": 2}', "manifest .* is damaged"),
        ('{"version": 2, "sha256": "", "content": "{}"}', "manifest .* is damaged.*checksum"),
    ],
)
def test_another_version_or_half_a_manifest_is_refused(text: str, message: str, tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / ".adaptdl" / "manifest.json").write_text(text)
    with pytest.raises(SnapshotError, match=message):
        read_trial(tmp_path)


def test_no_digit_of_a_manifest_can_change_unnoticed() -> None:
    text = encode_manifest(SAVED)
    for index in range(len(text)):
        for character in "0x":
            changed = text[:index] + character + text[index + 1 :]
            if changed == text:
                continue
            try:
                decoded = decode_manifest(changed, "there")
            except SnapshotError:
                continue
            assert decoded == decode_manifest(text, "there")


@pytest.mark.parametrize("name", ["../escaped.pth", "/etc/escaped", "a/../../escaped", "..\\escaped", ""])
def test_a_checkpoint_from_elsewhere_reaches_no_file_outside_of_it(name: str, tmp_path: Path) -> None:
    manifest = encode_manifest(replace(SAVED, files={name: b"import os"}))
    with pytest.raises(SnapshotError, match="must lie inside of it"):
        decode_manifest(manifest, "there")


def test_metrics_survive_as_far_as_json_can_tell_them(tmp_path: Path) -> None:
    metrics = {"f": np.float32(0.5), "a": np.arange(2), "deep": {"n": [np.int64(3)]}, "nan": math.nan, "odd": object()}
    write_trial(SavedTrial(record=Record(num_contained=1, recent={1: metrics})), tmp_path)
    (read,) = read_trial(tmp_path).record.recent.values()
    assert math.isnan(read["nan"])
    assert {name: value for name, value in read.items() if name != "nan"} == {
        "f": 0.5,
        "a": [0, 1],
        "deep": {"n": [3]},
    }


def test_many_results_are_cut_at_the_old_end(tmp_path: Path) -> None:
    recent = {number: {"text": "x" * 20_000} for number in range(1, 101)}
    saved = SavedTrial(record=Record(num_contained=100, recent=recent))
    assert len(encode_manifest(saved)) < 1.1 * 2**20
    kept = decode_manifest(encode_manifest(saved), "there").record
    assert kept.least_seen == 100 - len(kept.recent)
    assert 40 < len(kept.recent) < 60


def test_what_tune_lacks_is_handed_out_and_what_it_has_is_dropped() -> None:
    assert SAVED.record.least_seen == 3
    assert not SAVED.record.leads_on_from(2)
    lacking = SAVED.saved(4)
    assert (lacking.num_ahead, [metrics["loss"] for metrics in lacking.unseen]) == (0, [0.25])
    assert SAVED.saved(8) == Saved(snapshot=b"the state", files=SAVED.files, num_ahead=3)
    assert SAVED.saved(5) == Saved(snapshot=b"the state", files=SAVED.files)


def test_a_manifest_is_json_all_through() -> None:
    outer = json.loads(encode_manifest(SAVED))
    assert json.loads(outer["content"])["num_contained"] == 5


def test_results_start_where_a_state_says() -> None:
    results = Results(SAVED.saved(4), num_seen=4, recent=SAVED.record.recent)
    assert results.num_taken == 4
    assert results.saved(4) == SAVED.saved(4)
    assert results.latest == SAVED.saved(4)
