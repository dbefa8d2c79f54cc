"""A trial goes on from its best state, and Tune receives every result once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint

from adaptdl.errors import SnapshotError
from adaptdl.tune.checkpoint import Descent, Record, SavedTrial, write_trial
from adaptdl.tune.resume import Known, Start, find_start
from adaptdl.tune.vault import VaultPlace


def state(contained: int, ordinal: int, *, line: str = "a", seen: int | None = None, **more: Any) -> SavedTrial:
    """A state that says in its snapshot which one it is; all results up to it are still there."""
    seen = contained if seen is None else seen
    descent = Descent(trial_id=more.pop("trial_id", "mine"), line=line, ordinal=ordinal, parent=more.pop("parent", ""))
    recent = {number: {"n": number} for number in range(more.pop("oldest", 1), contained + 1)}
    record = Record(descent=descent, num_contained=contained, num_seen=seen, recent=recent, **more)
    return SavedTrial(record=record, snapshot=f"{line}{contained}.{ordinal}".encode())


@dataclass
class Disk:
    """The storage of one trial, named ``mine``."""

    storage: StorageContext
    vault: VaultPlace

    def keep(self, state: SavedTrial) -> Path:
        name = f"snapshot_{state.record.descent.ordinal:08d}.zip"
        self.vault.write(state, name)
        return Path(self.vault.path, name)

    def checkpoint(self, state: SavedTrial, index: int = 0, trial: str = "mine") -> Checkpoint:
        path = Path(self.storage.experiment_fs_path, trial, f"checkpoint_{index:06d}")
        write_trial(state, path)
        return Checkpoint(str(path), self.storage.storage_filesystem)

    def start(self, checkpoint: Checkpoint | None = None, known: Known | None = None, at: int = 0) -> Start:
        metrics = {"training_iteration": at, "time_total_s": 10.0 * at}
        return find_start(
            trial_id="mine",
            checkpoint=checkpoint,
            metrics=metrics,
            storage=self.storage,
            vault=self.vault,
            known=known,
        )


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="e", trial_dir_name="mine")
    vault = VaultPlace.of(storage, None)
    assert vault is not None
    return Disk(storage=storage, vault=vault)


def known(number: int, **more: Any) -> Known:
    return Known(
        last_result={"training_iteration": number, "time_total_s": 100.0 + number}, **{"interrupted": True, **more}
    )


def which(start: Start) -> str:
    return (start.state.snapshot or b"").decode()


def test_a_trial_of_which_nothing_is_there_begins_anew(disk: Disk) -> None:
    start = disk.start(known=Known(interrupted=True))
    assert (start.restored, start.num_seen, which(start)) == (False, 0, "")
    assert start.descent.trial_id == "mine"
    assert start.descent.line


def test_results_that_were_seen_before_anything_was_kept_are_not_reported_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    start = disk.start(known=known(2))
    assert (start.num_seen, start.time_total_s) == (2, 102.0)
    assert start.state.saved(2).num_ahead == 2
    assert "begins anew, and its first 2 results" in caplog.text


def test_without_a_checkpoint_the_newest_of_the_vault_is_taken(disk: Disk) -> None:
    disk.keep(state(3, 4))
    disk.keep(state(5, 6, num_restarts=2))
    start = disk.start(known=known(6, num_restarts=1, pause_s=0.5))
    assert (which(start), start.num_seen, start.num_restarts, start.pause_s) == ("a5.6", 6, 2, 0.5)
    assert start.state.saved(6).num_ahead == 1
    assert (start.descent.line, start.descent.ordinal) == ("a", 6)


@pytest.mark.parametrize(
    ("contained", "ordinal", "taken"), [(5, 9, "a5.9"), (4, 9, "a4.9"), (4, 2, "a4.3"), (3, 9, "a4.3")]
)
def test_of_the_vault_and_tunes_checkpoint_the_one_that_came_further_is_taken(
    contained: int, ordinal: int, taken: str, disk: Disk
) -> None:
    disk.keep(state(contained, ordinal))
    start = disk.start(disk.checkpoint(state(4, 3)), known(5), at=4)
    assert (which(start), start.num_seen, start.time_total_s) == (taken, 5, 105.0)
    assert start.descent.ordinal == max(3, ordinal)


def test_a_driver_that_has_forgotten_results_receives_them_again(disk: Disk) -> None:
    disk.keep(state(9, 9, seen=9))
    start = disk.start(disk.checkpoint(state(5, 3)), known(6), at=5)
    assert (which(start), start.num_seen) == ("a9.9", 6)
    assert [metrics["n"] for metrics in start.state.saved(6).unseen] == [7, 8, 9]


def test_a_state_that_has_outrun_what_is_remembered_gives_way_to_one_that_has_not(disk: Disk) -> None:
    disk.keep(state(900, 9, oldest=800))
    start = disk.start(disk.checkpoint(state(500, 3)), known(600), at=500)
    assert (which(start), start.num_seen) == ("a500.3", 600)


def test_if_there_is_no_other_the_gap_is_told(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.keep(state(900, 9, oldest=800))
    start = disk.start(known=known(600))
    assert (which(start), start.num_seen, len(start.state.saved(799).unseen)) == ("a900.9", 799, 101)
    assert "those in between are missing" in caplog.text


def test_without_the_drivers_word_the_states_own_count(disk: Disk) -> None:
    disk.keep(state(5, 9, seen=4))
    assert disk.start().num_seen == 4
    start = disk.start(disk.checkpoint(state(6, 7)), at=6)
    assert (which(start), start.num_seen, start.time_total_s) == ("a6.7", 6, 60.0)


def test_a_user_who_numbers_results_does_not_mislead_us(disk: Disk) -> None:
    numbered = state(5, 9, seen=4)
    recent = {number: {"training_iteration": 1000 * number} for number in range(1, 6)}
    disk.keep(replace(numbered, record=replace(numbered.record, recent=recent)))
    assert disk.start(known=known(4000)).num_seen == 4


# -- another trial's state ----------------------------------------------------------------------------------------------


def test_an_exploited_trial_forgets_its_own_states_however_far_they_came(disk: Disk) -> None:
    disk.keep(state(50, 50))
    donor = disk.checkpoint(state(7, 30, line="d", trial_id="donor"), trial="donor")
    for interrupted in (False, True):
        start = disk.start(donor, known(50, interrupted=interrupted), at=7)
        assert (which(start), start.num_seen, start.time_total_s) == ("d7.30", 7, 70.0)
        assert (start.descent.trial_id, start.descent.parent, start.descent.ordinal) == ("mine", "d/30", 50)
        assert start.descent.line not in ("a", "d")


def test_after_an_exploit_it_goes_on_from_its_states_since(disk: Disk) -> None:
    donor = disk.checkpoint(state(7, 30, line="d", trial_id="donor"), trial="donor")
    disk.keep(state(50, 50))
    disk.keep(state(7, 51, line="b", parent="d/30"))
    start = disk.start(donor, known(8), at=7)
    assert (which(start), start.num_seen) == ("b7.51", 8)


def test_what_was_seen_since_an_exploit_and_not_kept_is_made_again_and_not_reported_again(disk: Disk) -> None:
    donor = disk.checkpoint(state(7, 30, line="d", trial_id="donor"), trial="donor")
    disk.keep(state(50, 50))
    start = disk.start(donor, known(9, is_current=True), at=7)
    assert (which(start), start.num_seen, start.time_total_s) == ("d7.30", 9, 109.0)
    assert start.state.saved(9).num_ahead == 2
    assert (start.descent.trial_id, start.descent.parent, start.descent.ordinal) == ("mine", "d/30", 50)


def test_taking_over_the_same_state_twice_begins_another_line(disk: Disk) -> None:
    donor = disk.checkpoint(state(7, 30, line="d", trial_id="donor"), trial="donor")
    disk.keep(state(9, 51, line="b", parent="d/30"))
    start = disk.start(donor, known(9, interrupted=False), at=7)
    assert (which(start), start.num_seen) == ("d7.30", 7)


def test_an_older_line_of_its_own_does_not_count_either(disk: Disk) -> None:
    """Tune's own state may be from before an exploit."""
    disk.keep(state(9, 51, line="b", parent="d/30"))
    start = disk.start(disk.checkpoint(state(5, 30)), known(5), at=5)
    assert which(start) == "a5.30"


# -- damage -------------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_state_of_the_vault_is_passed_over_with_a_warning(
    damage: Callable[[Path], None], disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.keep(state(3, 4))
    damage(disk.keep(state(5, 6)))
    start = disk.start(known=known(5))
    assert (which(start), start.num_seen, start.descent.ordinal) == ("a3.4", 5, 6)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "snapshot_00000006.zip" in warning
    assert "damaged" in warning
    assert "goes on from " in warning
    assert "snapshot_00000004.zip instead" in warning


@pytest.mark.parametrize("what", [".adaptdl/manifest.json", ".adaptdl/snapshot.pt", ""])
def test_a_damaged_or_missing_checkpoint_gives_way_to_the_next_best(
    what: str, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.checkpoint(state(2, 1), index=0)
    disk.checkpoint(state(3, 2), index=1)
    newest = disk.checkpoint(state(5, 3), index=2)
    if what:
        truncate(Path(newest.path, what))
    else:
        shutil.rmtree(newest.path)
    start = disk.start(newest, known(6), at=5)
    assert (which(start), start.num_seen) == ("a3.2", 6)
    assert "checkpoint_000002" in caplog.text
    disk.keep(state(4, 4))
    assert which(disk.start(newest, known(6), at=5)) == "a4.4"
    assert disk.start(newest, at=5).num_seen == 5


def test_if_nothing_can_be_read_that_is_an_error_and_no_new_beginning(disk: Disk) -> None:
    truncate(disk.keep(state(3, 4)))
    truncate(disk.keep(state(5, 6)))
    with pytest.raises(SnapshotError, match=r"no saved state of trial mine can be read.*00000006.*00000004.*remove "):
        disk.start(known=known(5))


def test_a_damaged_state_of_another_trial_is_not_replaced_by_our_own(disk: Disk) -> None:
    disk.keep(state(50, 50))
    donor = disk.checkpoint(state(7, 30, line="d", trial_id="donor"), trial="donor")
    truncate(Path(donor.path, ".adaptdl", "manifest.json"))
    with pytest.raises(SnapshotError, match="donor/checkpoint_000000 is damaged"):
        disk.start(donor, known(50), at=7)


def test_a_checkpoint_of_a_later_version_is_passed_over_with_its_reason(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.checkpoint(state(3, 2), index=1)
    newest = disk.checkpoint(state(5, 3), index=2)
    Path(newest.path, ".adaptdl", "manifest.json").write_text('{"version": 3}')
    assert which(disk.start(newest, known(5), at=5)) == "a3.2"
    assert "must be of version 2 to be read here, but is of 3" in caplog.text


def test_a_checkpoint_that_would_run_code_does_not(disk: Disk, tmp_path: Path) -> None:
    """Tune's own `restore` would unpickle this file."""
    checkpoint = disk.checkpoint(state(3, 2))
    ran = tmp_path / "ran"
    Path(checkpoint.path, "_dict_checkpoint.pkl").write_bytes(f"cos\nsystem\n(S'touch {ran}'\ntR.".encode())
    assert which(disk.start(checkpoint, at=3)) == "a3.2"
    assert not ran.exists()
