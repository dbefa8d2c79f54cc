"""A checkpoint is read back as it was written, or refused with a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptdl.errors import SnapshotError
from adaptdl.runtime.results import Saved
from adaptdl.tune.checkpoint import SavedTrial, read_trial, write_trial

SAVED = SavedTrial(
    saved=Saved(snapshot=b"the state", files={"model.pt": b"weights", "sub/notes.txt": b"n"}, num_ahead=2),
    num_restarts=3,
    pause_s=0.5,
)


@pytest.mark.parametrize("saved", [SAVED, SavedTrial(saved=Saved())])
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
    with pytest.raises(SnapshotError, match="checksum"):
        read_trial(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(SnapshotError, match=r"lacks its file .*model\.pt"):
        read_trial(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "manifest .* is damaged"), ('{"version": 99}', "but is of 99")])
def test_another_version_or_half_a_manifest_is_refused(text: str, message: str, tmp_path: Path) -> None:
    write_trial(SAVED, tmp_path)
    (tmp_path / ".adaptdl" / "manifest.json").write_text(text)
    with pytest.raises(SnapshotError, match=message):
        read_trial(tmp_path)
