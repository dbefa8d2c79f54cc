"""Replicas that leave a loop at different steps: nobody hangs, and afterwards all of them have the same of everything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import adaptdl.torch as adl
from tests.torch.functions import Numbers, network, parameters, stop_for_reallocations
from tests.torch.processes import TIMEOUT_S, Replica, Trial

pytestmark = pytest.mark.distributed


def uneven(config: dict[str, Any]) -> dict[str, Any]:
    """Three loops; replica 1 breaks out of the first one after `breaks_at` batches.

    Config: breaks_at; adaptive: a loop is of several passes, at four times the batch size; snapshot_at: batch of the first
    loop in which a snapshot becomes due; stops: see `stop_for_reallocations`; hangs: where rank 0 waits for a file, in the
    first loop's batch after the break; directory: of that file.
    """
    session = adl.current_session()
    loader = adl.AdaptiveDataLoader(Numbers(32), batch_size=4, shuffle=True)
    if config.get("adaptive"):
        loader.autoscale_batch_size(16)
        loader.batch = adl.Batch(batch_size=16, atomic_batch_size=8)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    model = adl.AdaptiveDataParallel(module, optimizer, scheduler, scaler)
    hangs: list[str] = []

    def hang(where: str) -> None:
        if where in hangs:
            (Path(config["directory"]) / "hangs").touch()
            _wait_for(Path(config["directory"]) / "go on")
            hangs.clear()

    module[0].weight.register_hook(lambda _: hang("backward"))
    passes = []
    for loop in range(3):
        samples: list[int] = []
        for batch, (inputs, targets, indices) in enumerate(loader):
            stop_for_reallocations(config)
            if loop == 0 and batch == config.get("snapshot_at") and session.rank == 0:
                session.snapshot_interval_s = 0.0
                assert session.loop is not None
                session.loop.quiet_until = float("-inf")
            if session.rank == 0 and loop == 0 and batch == config["breaks_at"] + 1 and "hangs" in config:
                hangs.append(config["hangs"])
            hang("loop")
            optimizer.zero_grad()
            scaler.scale(torch.nn.functional.mse_loss(model(inputs), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            samples += indices.tolist()
            if loop == 0 and batch == config["breaks_at"] and session.rank == 1:
                break
            if loop == 2 and batch == 1:
                break
        session.snapshot_interval_s = None
        passes.append((session.num_steps, samples))
    params = model.grad_params(session)
    return {
        "parameters": parameters(module),
        "lr": scheduler.get_last_lr(),
        "scale": scaler.get_scale(),
        "num_passes": loader.sampler.num_passes,
        "noise": None if params is None else (params.grad_sqr, params.grad_var),
        "progress": session.progress,
        "num_steps": session.num_steps,
        "passes": passes,
    }


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come within {TIMEOUT_S} s"
        time.sleep(0.005)


def ends(**config: Any) -> list[dict[str, Any]]:
    with Trial(uneven, config) as trial:
        trial.reallocate(2)
        found: list[dict[str, Any]] = trial.finish()
    return found


def common(end: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in end.items() if name != "passes"}


@pytest.mark.parametrize("breaks_at", [3, 7])
def test_all_have_the_same_of_everything(breaks_at: int) -> None:
    first, second = ends(breaks_at=breaks_at)
    assert common(first) == common(second)
    assert first["num_steps"] == breaks_at + 1 + 8 + 2
    assert first["lr"] == [pytest.approx(0.05 * 0.9 ** first["num_steps"])]
    assert first["scale"] == 4.0 * 2 ** first["num_steps"]
    assert sorted(first["passes"][1][1] + second["passes"][1][1]) == list(range(32))


def test_who_has_begun_another_pass_already_draws_from_the_same_one_as_the_others() -> None:
    first, second = ends(breaks_at=1, adaptive=True)  # a pass is of two steps
    assert common(first) == common(second)
    assert len({*first["passes"][2][1], *second["passes"][2][1]}) == 32


def test_a_snapshot_that_is_due_in_the_step_after_which_one_leaves_is_taken_by_all() -> None:
    with Trial(uneven, {"breaks_at": 3, "snapshot_at": 3}) as trial:
        trial.reallocate(2)
        first, second = trial.finish()
        assert trial.messages("snapshot")
    assert common(first) == common(second)


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_so_is_a_reallocation(num_replicas: int) -> None:
    """To one replica it is the leaving one that must go, and hears of it where nothing can be raised."""
    with Trial(uneven, {"breaks_at": 3, "stops": [4]}) as trial:
        trial.reallocate(2)
        trial.reach(4)
        trial.reallocate(num_replicas)
        first, *others = trial.finish()
        if num_replicas == 1:
            trial.wait_for("the other one to leave", lambda: trial.all[1].has("left") and trial.all[1].has("done"))
            assert ("done", None) in trial.all[1].messages
    for other in others:
        assert common(other) == common(first)
    if num_replicas == 3:
        assert first["num_steps"] == 4 + 8 + 2


@pytest.mark.parametrize("where", ["loop", "backward"])
def test_who_waits_for_others_can_be_told_from_who_hangs(where: str, tmp_path: Path) -> None:
    with Trial(uneven, {"breaks_at": 3, "hangs": where, "directory": str(tmp_path)}) as trial:
        trial.reallocate(2)
        trial.wait_for("replica 0 to hang", (tmp_path / "hangs").exists)
        hanging, waiting = trial.members
        trial.wait_for("the other one to wait for a while", lambda: (_waited_s(waiting) or 0.0) > 0.2)
        assert _waited_s(hanging) is None
        (tmp_path / "go on").touch()
        first, second = trial.finish()
    assert common(first) == common(second)


def _waited_s(replica: Replica) -> float | None:
    found: float | None = replica.call("pulse").waited_s
    return found
