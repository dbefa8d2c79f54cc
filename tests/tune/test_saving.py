"""What a coordinator answers when Tune asks it to save: a checkpoint, or that there is none; never an error."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.result import TRIAL_INFO

from adaptdl.runtime import ElasticConfig
from adaptdl.runtime.results import Results, Saved
from adaptdl.tune import AdaptDLTrainable
from adaptdl.tune.checkpoint import read_trial
from adaptdl.tune.resume import Known


class Info:
    """What Tune tells a trainable of its trial."""

    trial_id, trial_name, experiment_name = "t1", "trial", "e"


@pytest.fixture
def trainable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdaptDLTrainable:
    storage = StorageContext(storage_path=str(tmp_path / "s"), experiment_dir_name="e", trial_dir_name="t1")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    monkeypatch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path / "session"))
    return AdaptDLTrainable({TRIAL_INFO: Info()}, storage=storage)


async def with_state(trainable: AdaptDLTrainable) -> None:
    await trainable._resume(None, {})
    trainable._results = Results(Saved(snapshot=b"the state"), num_seen=3, on_news=trainable._keep)
    trainable._num_seen, trainable._last_result = 3, {"training_iteration": 3}


def test_a_checkpoint_goes_with_the_results_that_tune_has_seen(trainable: AdaptDLTrainable) -> None:
    async def main() -> Any:
        await with_state(trainable)
        return await trainable.save()

    result = asyncio.run(main())
    assert result.metrics["training_iteration"] == 3
    state = read_trial(Path(result.checkpoint.path))
    assert (state.snapshot, state.record.num_seen, state.record.num_contained) == (b"the state", 3, 3)
    assert os.path.basename(result.checkpoint.path) == "checkpoint_000000"


def test_without_room_there_is_no_checkpoint_one_warning_and_no_trace(
    trainable: AdaptDLTrainable, caplog: pytest.LogCaptureFixture
) -> None:
    storage = trainable._storage
    assert storage is not None
    folder = Path(storage.trial_fs_path)

    async def main() -> list[Any]:
        await with_state(trainable)
        results = [await trainable.save()]
        blocked = folder / "checkpoint_000001"
        blocked.write_text("in the way")
        results += [await trainable.save(), await trainable.save()]
        blocked.unlink()
        return [*results, await trainable.save()]

    results = asyncio.run(main())
    assert [result.checkpoint and os.path.basename(result.checkpoint.path) for result in results] == [
        "checkpoint_000000",
        None,
        None,
        "checkpoint_000001",
    ]
    assert all(result.metrics["training_iteration"] == 3 for result in results)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "cannot write a checkpoint of trial t1" in warning
    assert "Training goes on" in warning
    assert read_trial(folder / "checkpoint_000001").snapshot == b"the state"


def test_a_trial_goes_on_from_what_was_kept_when_nothing_was_saved(trainable: AdaptDLTrainable, tmp_path: Path) -> None:
    async def first() -> None:
        await with_state(trainable)
        assert trainable._results is not None
        trainable._results.keep_snapshot(b"newer")
        await trainable.stop()

    async def second() -> Any:
        again = AdaptDLTrainable({TRIAL_INFO: Info()}, storage=trainable._storage)
        return await again._resume(None, {}), again

    asyncio.run(first())
    results, again = asyncio.run(second())
    assert (results.newest.snapshot, results.num_taken, again._iteration) == (b"newer", 3, 3)


@pytest.mark.parametrize("order", ["finish, stop", "stop, finish"])
def test_a_trial_that_has_ended_is_kept_and_nothing_is_written_once_it_has_said_so(
    trainable: AdaptDLTrainable, order: str
) -> None:
    """The driver removes it, once Tune has written down that the trial has ended."""
    storage = trainable._storage
    assert storage is not None
    kept = Path(storage.trial_fs_path, ".adaptdl")

    async def main() -> None:
        await with_state(trainable)
        assert trainable._results is not None
        trainable._results.keep_snapshot(b"newer")
        for call in order.split(", "):
            await getattr(trainable, call)()
        assert list(kept.glob("*.zip"))
        shutil.rmtree(kept)
        trainable._results.keep_snapshot(b"newer still")

    asyncio.run(main())
    assert not kept.exists()


def test_the_first_result_waits_for_what_the_driver_knows(trainable: AdaptDLTrainable) -> None:
    """Ray may hand a coordinator calls in another order than they were made in."""

    async def main() -> int:
        first, second = asyncio.ensure_future(trainable._resumed()), asyncio.ensure_future(trainable._resumed())
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not first.done()
        await trainable.know(Known(last_result={"training_iteration": 5}))
        results = await asyncio.wait_for(first, 5)
        assert await asyncio.wait_for(second, 5) is results
        return results.num_taken

    assert asyncio.run(main()) == 5


def test_of_two_allocations_the_later_one_counts_whatever_comes_first(trainable: AdaptDLTrainable) -> None:
    async def main() -> None:
        await trainable.set_allocation(2, {"node": 2}, ElasticConfig(), "second")
        await trainable.set_allocation(1, {"node": 1}, ElasticConfig(), "first")

    asyncio.run(main())
    assert trainable._allocation is not None
    assert trainable._allocation[2] == "second"
