"""Replicas killed at scripted places: those that are left end with the state of an undisturbed run. Real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.scripted import WHERE, training_function
from tests.faults.survivors import SurvivingTrial

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EPOCHS = 3
STEPS = 8
"""Steps per epoch."""


def train(config: dict[str, Any]) -> dict[str, Any]:
    return training_function()(config)


def run(num_replicas: int, flags: Path, fail_at: list[tuple[int, int, str]], epochs: int = EPOCHS) -> SurvivingTrial:
    """The trial after its end, with what its members returned in `ended`."""
    with SurvivingTrial(train, {"epochs": epochs, "fail_at": fail_at, "flags": str(flags)}) as trial:
        trial.reallocate(num_replicas)
        trial.ended = trial.finish()  # type: ignore[attr-defined]
        trial.results = sorted(trial.messages("report"), key=lambda report: report[0]["epoch"])  # type: ignore[attr-defined]
    return trial


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(1, tmp_path_factory.mktemp("flags"), [])


def check(trial: Any, undisturbed: Any, epochs: int = EPOCHS) -> None:
    assert trial.ended[0]["steps"] == epochs * STEPS
    assert trial.ended[0]["lr"] == pytest.approx(undisturbed.ended[0]["lr"])
    for ended in trial.ended:
        assert ended["weights"] == pytest.approx(undisturbed.ended[0]["weights"], rel=1e-10)
    results: dict[int, dict[str, Any]] = {}
    for metrics, _, _ in trial.results:
        results.setdefault(metrics["epoch"], metrics)  # a result that was handed in again has the number of the first
    assert sorted(results) == list(range(epochs))
    for epoch, (metrics, _, _) in enumerate(undisturbed.results):
        assert results[epoch]["validated"] == 50
        assert results[epoch]["total"] == metrics["total"]
        assert results[epoch]["weights"] == pytest.approx(metrics["weights"], rel=1e-10)


def step_of(where: str) -> int:
    """A number of steps at which the function comes to `where`."""
    return {"forward": 11, "backward": 11, "all-reduce": 11, "optimizer.step": 11, "after step": 12}.get(
        where, 2 * STEPS
    )


@pytest.mark.parametrize("where", [where for where in WHERE if where != "end of validation"])
@pytest.mark.parametrize(("num_replicas", "rank"), [(2, 0), (2, 1), (3, 0), (3, 1)])
def test_survivors_go_on_from_the_last_step(
    where: str, num_replicas: int, rank: int, tmp_path: Path, undisturbed: Any
) -> None:
    trial = run(num_replicas, tmp_path, [(rank, step_of(where), where)])
    assert (tmp_path / "struck-0").exists()
    assert trial.num_recoveries >= 1
    check(trial, undisturbed)
