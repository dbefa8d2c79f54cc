"""Tune's driver is killed: nothing of it stays on the cluster, and started again it goes on where its trials were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.clusters import connected_cluster
from tests.faults.driver import CONFIG, EPOCHS, NUM_TRIALS
from tests.faults.experiments import (
    NUM_CPUS,
    check_results,
    living_actors,
    living_groups,
    num_kept,
    undisturbed,
)
from tests.processes import is_alive
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster that outlives the drivers."""
    with connected_cluster(num_cpus=NUM_CPUS) as cluster:
        yield cluster.address


class Driver:
    """A driver in a process of its own."""

    def __init__(self, address: str, storage: Path, how: str, state_period_s: float) -> None:
        self.storage = storage
        self.log = storage / f"{how}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.driver", address, str(storage), how],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": str(state_period_s)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def seen(self) -> list[dict[str, Any]]:
        path = self.storage / "seen.jsonl"
        complete, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        return [json.loads(line) for line in complete.splitlines()]

    def has_seen(self, epoch: int) -> bool:
        """Whether all trials have reported this epoch."""
        assert self.process.poll() is None, self.log.read_text()
        return len({result["trial_id"] for result in self.seen() if result["epoch"] >= epoch}) == NUM_TRIALS

    def has_kept(self, number: int) -> bool:
        """Whether of all trials there are states with so many results."""
        vaults = list(self.storage.glob("experiment/*/.adaptdl"))
        return len(vaults) == NUM_TRIALS and all(num_kept(str(vault.parent)) >= number for vault in vaults)


def pids_of_actors() -> list[int]:
    actors = ray._private.state.actors().values()
    return [actor["Pid"] for actor in actors if actor["State"] == "ALIVE"]


@pytest.mark.parametrize(("how", "again", "state_period_s"), [("run", "resume", 1000.0), ("fit", "restore", 1.0)])
def test_every_trial_goes_on_from_its_newest_state(
    how: str, again: str, state_period_s: float, address: str, tmp_path: Path
) -> None:
    """Tune writes its own state now and then: the driver started again may have forgotten all results, or the last ones."""
    driver = Driver(address, tmp_path, how, state_period_s)
    try:
        wait_until(lambda: driver.has_seen(7), "both trials to report their eighth epoch", timeout_s=90)
        wait_until(lambda: driver.has_kept(6), "states of both trials with six results to be kept")
        pids = pids_of_actors()
        assert len(pids) == 2 * NUM_TRIALS
        groups = living_groups()
        assert len(groups) == 2 * NUM_TRIALS  # Tune's for the coordinators, and theirs
    finally:
        driver.process.kill()
        driver.process.wait(10)
    before = driver.seen()
    wait_until(lambda: living_actors() == [], "all actors to be gone")
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "all processes to be gone")
    # Ray itself may forget one that a coordinator asks for, having lost its replica, in the moment in which all of its
    # job is ended; the next run removes it.
    wait_until(lambda: not groups & living_groups(), "all reservations to be gone")
    assert not (tmp_path / "ended.json").exists()

    (tmp_path / "release").touch()
    driver = Driver(address, tmp_path, again, state_period_s)
    try:
        assert driver.process.wait(90) == 0, driver.log.read_text()
    finally:
        driver.process.kill()
    expected = undisturbed(CONFIG)
    ended = json.loads((tmp_path / "ended.json").read_text())
    after = driver.seen()[len(before) :]
    assert len(ended) == NUM_TRIALS
    for trial in ended:
        assert (trial["status"], trial["last"]) == ("TERMINATED", CONFIG["epochs"])
        log = Path(trial["path"], "result.json").read_text().splitlines()
        check_results([json.loads(line) for line in log], expected)
        was, now = ([r for r in results if r["trial_id"] == trial["trial_id"]] for results in (before, after))
        numbers = [result["training_iteration"] for result in now]
        assert numbers == list(range(numbers[0], len(expected) + 1))
        assert numbers[0] <= was[-1]["training_iteration"] + 1
        assert now[-1]["began_at"] >= 6  # and not all over again
        prefix, replicas, restarts, trial_id = trial["name"].split("_", 3)
        assert (prefix, replicas, trial_id) == ("AdaptDLTrainable", "1", trial["trial_id"])
        assert int(restarts) > int(was[-1]["name"].split("_")[2])
        assert not Path(trial["path"], ".adaptdl").exists()
    wait_until(lambda: living_actors() == [], "all actors to be gone")
    wait_until(lambda: living_groups() == set(), "all reservations to be gone")
    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs to be free")


@pytest.mark.timeout(240)
def test_a_trial_that_had_ended_is_not_trained_again(address: str, tmp_path: Path) -> None:
    """Tune has not written down that it ended, so that the driver started again goes on with it."""
    driver = Driver(address, tmp_path, "uneven", state_period_s=1000.0)
    complete = tmp_path / "complete"
    try:
        wait_until(
            lambda: complete.exists() and complete.read_text().endswith("\n"), "the first trial to end", timeout_s=90
        )
        (trial_id,) = complete.read_text().split()
        pids = {result["pid"] for result in driver.seen() if result["trial_id"] == trial_id}
        wait_until(lambda: not any(is_alive(pid) for pid in pids), "its coordinator to end, too")
    finally:
        driver.process.kill()
        driver.process.wait(10)
    before = driver.seen()
    wait_until(lambda: living_actors() == [], "all actors to be gone")

    driver = Driver(address, tmp_path, "resume-uneven", state_period_s=1000.0)
    try:
        assert driver.process.wait(120) == 0, driver.log.read_text()
    finally:
        driver.process.kill()
    ended = sorted(json.loads((tmp_path / "ended.json").read_text()), key=lambda trial: int(trial["last"]))
    assert [(trial["status"], trial["last"]) for trial in ended] == [("TERMINATED", epochs) for epochs in EPOCHS]
    assert ended[0]["trial_id"] == trial_id
    again = [result for result in driver.seen()[len(before) :] if result["trial_id"] == trial_id]
    replicas = {result["replica_pid"] for result in before}
    trained_again = [result for result in again if result["replica_pid"] not in replicas]
    assert all(result["began_at"] >= EPOCHS[0] - 3 for result in trained_again), again  # of 0.24 s each
    for trial in ended:
        assert not Path(trial["path"], ".adaptdl").exists()
