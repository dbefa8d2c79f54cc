"""The vault keeps the newest states whatever happens to the disk, and never hands out a damaged one."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from adaptdl.errors import SnapshotError
from adaptdl.tune.checkpoint import Descent, Record, SavedTrial
from adaptdl.tune.vault import Found, Vault, VaultPlace
from tests.waiting import wait_until


def state(ordinal: int, size: int = 1000) -> SavedTrial:
    return SavedTrial(
        record=Record(
            descent=Descent(trial_id="t", line="l", ordinal=ordinal), num_contained=ordinal, num_seen=ordinal
        ),
        snapshot=random.Random(ordinal).randbytes(size),
        files={"sub/notes.txt": b"n"},
    )


@pytest.fixture
def place(tmp_path: Path) -> VaultPlace:
    return VaultPlace(filesystem=LocalFileSystem(), path=str(tmp_path / "vault"))


@pytest.fixture
def vault(place: VaultPlace) -> Iterator[Vault]:
    vault = Vault(place, trial="t", min_interval_s=0, retry_s=0.05)
    yield vault
    vault.close(timeout_s=10)


def loaded(found: Found) -> SavedTrial | str:
    try:
        if isinstance(found.manifest, SnapshotError):
            raise found.manifest
        return found.load()
    except SnapshotError as error:
        return str(error)


def test_the_newest_two_are_kept_and_read_back(place: VaultPlace, vault: Vault) -> None:
    for ordinal in range(1, 5):
        vault.offer(state(ordinal))
        wait_until(lambda n=ordinal: place.names()[:1] == [f"snapshot_{n:08d}.zip"], f"state {ordinal}")
    vault.close(timeout_s=10)
    assert [loaded(found) for found in place.find()] == [state(4), state(3)]
    assert sorted(os.listdir(place.path)) == ["snapshot_00000003.zip", "snapshot_00000004.zip"]


def test_an_archive_is_one_that_every_tool_opens(place: VaultPlace) -> None:
    place.write(state(1), "snapshot_00000001.zip")
    with zipfile.ZipFile(f"{place.path}/snapshot_00000001.zip") as archive:
        assert archive.namelist() == ["snapshot.pt", "files/sub/notes.txt", "manifest.json"]
        assert archive.testzip() is None


def test_any_file_system_of_pyarrow_will_do(tmp_path: Path) -> None:
    place = VaultPlace(filesystem=SubTreeFileSystem(str(tmp_path), LocalFileSystem()), path="bucket/trial/.adaptdl")
    place.write(state(1), "snapshot_00000001.zip")
    assert [loaded(found) for found in place.find()] == [state(1)]
    place.remove()
    assert os.listdir(tmp_path / "bucket" / "trial") == []


def test_states_that_come_faster_than_the_disk_are_skipped(place: VaultPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, written = threading.Event(), []

    def write(self: VaultPlace, state: SavedTrial, name: str) -> None:
        assert may_write.wait(10)
        written.append(state.record.descent.ordinal)

    monkeypatch.setattr(VaultPlace, "write", write)
    monkeypatch.setattr(VaultPlace, "remove_all_but", lambda self, names: None)
    vault = Vault(place, trial="t", min_interval_s=0)
    began = time.monotonic()
    for ordinal in range(1, 101):
        vault.offer(state(ordinal))
    assert time.monotonic() - began < 1
    may_write.set()
    vault.close(timeout_s=10)
    assert written[-1] == 100
    assert len(written) <= 2


def test_many_states_a_second_do_not_wear_out_the_storage(place: VaultPlace) -> None:
    vault = Vault(place, trial="t", min_interval_s=60)
    vault.offer(state(1))
    wait_until(place.names, "the first state, which need not wait")
    vault.offer(state(2))
    vault.offer(state(3))
    time.sleep(0.1)
    assert place.names() == ["snapshot_00000001.zip"]
    vault.close(timeout_s=10)
    assert [loaded(found) for found in place.find()] == [state(3), state(1)]


def test_what_is_removed_is_gone_and_nothing_is_written_after_the_end(place: VaultPlace, vault: Vault) -> None:
    vault.offer(state(1))
    vault.close(timeout_s=10)
    place.remove()
    vault.offer(state(2))
    assert not os.path.exists(place.path)


def test_a_slow_storage_does_not_hold_up_the_end(
    place: VaultPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(VaultPlace, "write", lambda self, state, name: go_on.wait(10))
    vault = Vault(place, trial="t")
    vault.offer(state(1))
    began = time.monotonic()
    vault.close(timeout_s=0.1)
    go_on.set()
    assert time.monotonic() - began < 5
    assert "is not yet in" in caplog.text


# -- damage -------------------------------------------------------------------------------------------------------------


def test_every_flipped_or_missing_byte_is_noticed(place: VaultPlace) -> None:
    place.write(state(1, size=100), "snapshot_00000001.zip")
    path = Path(place.path, "snapshot_00000001.zip")
    whole = path.read_bytes()
    unnoticed = 0
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x55]) + whole[index + 1 :])
        (found,) = place.find()
        read = loaded(found)
        assert read == state(1, size=100) or re.search("is damaged|must be of version|lacks its file", str(read)), read
        unnoticed += read == state(1, size=100)
    assert unnoticed < len(whole) / 5  # dates and the like
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        (found,) = place.find()
        assert "is damaged" in str(loaded(found))


def test_a_later_version_is_named(place: VaultPlace) -> None:
    os.makedirs(place.path)
    with zipfile.ZipFile(f"{place.path}/snapshot_00000001.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"version": 3}))
    (found,) = place.find()
    assert "snapshot_00000001.zip must be of version 2 to be read here, but is of 3" in str(found.manifest)


def test_a_damaged_one_is_not_among_the_two_that_are_kept(place: VaultPlace) -> None:
    for ordinal in (6, 7):
        place.write(state(ordinal), f"snapshot_{ordinal:08d}.zip")
    Path(place.path, "snapshot_00000007.zip").write_bytes(b"")
    Path(place.path, "1234.half").write_bytes(b"half")
    vault = Vault(place, trial="t", good=f"{place.path}/snapshot_00000006.zip")
    vault.offer(state(8))
    vault.close(timeout_s=10)
    assert sorted(os.listdir(place.path)) == ["snapshot_00000006.zip", "snapshot_00000008.zip"]


# -- a disk that fails --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_costs_one_warning_and_nothing_else(
    place: VaultPlace, vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="adaptdl")
    for ordinal in (1, 2):
        vault.offer(state(ordinal))
        wait_until(lambda n=ordinal: place.names()[:1] == [f"snapshot_{n:08d}.zip"], f"state {ordinal}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system itself refuses what goes beyond
    try:
        for ordinal in range(3, 8):
            vault.offer(state(ordinal, size=200_000))
            wait_until(lambda n=ordinal: num_failures(caplog) >= n - 2, f"failure {ordinal - 2}")
        assert [loaded(found) for found in place.find()] == [state(2), state(1)]
        wait_until(lambda: len(os.listdir(place.path)) <= 3, "half files to be removed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    wait_until(lambda: place.names()[:1] == ["snapshot_00000007.zip"], "the newest state")
    wait_until(lambda: "is kept again" in caplog.text, "a word about it")
    newest, before = (loaded(found) for found in place.find())
    assert newest == state(7, size=200_000)
    assert before == state(2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "cannot keep the state of trial t" in warnings[0]
    assert "File too large" in warnings[0]
    assert "resumes from snapshot_00000002.zip" in warnings[0]


def num_failures(caplog: pytest.LogCaptureFixture) -> int:
    return sum("cannot keep" in record.getMessage() for record in caplog.records)


def test_a_node_that_does_not_see_the_storage_writes_nothing_there(
    place: VaultPlace, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    elsewhere = VaultPlace(filesystem=place.filesystem, path=place.path, marker=str(tmp_path / "marker"))
    vault = Vault(elsewhere, trial="t")
    vault.offer(state(1))
    vault.close(timeout_s=10)
    assert not os.path.exists(place.path)
    assert "use a `storage_path` that all nodes share" in caplog.text


KILLED = """
import sys
from pyarrow.fs import LocalFileSystem
from adaptdl.tune.vault import Vault, VaultPlace
from tests.tune.test_vault import state
vault = Vault(VaultPlace(filesystem=LocalFileSystem(), path=sys.argv[1]), trial="t", min_interval_s=0)
ordinal = 0
while True:
    ordinal += 1
    vault.offer(state(ordinal, size=5_000_000))
    if ordinal == 1:
        print("writes", flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_good_states_only(place: VaultPlace) -> None:
    newest: list[SavedTrial | str] = []
    for delay_s in (0.3, 0.35, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, place.path], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        wait_until(place.names, "the first state")
        time.sleep(delay_s)  # no condition: it is to be killed at any time
        process.kill()
        process.communicate(timeout=10)
        states = [loaded(found) for found in place.find()]
        assert states
        assert all(isinstance(found, SavedTrial) for found in states), states
        newest += states[:1]
    assert len(newest) == 3
