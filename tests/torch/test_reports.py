"""Results that are reported within a training loop: each comes once, whatever happens in between."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import adaptdl.torch as adl
from tests.torch.functions import Numbers, network, parameters, stop_for_reallocations
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed

STEPS, EPOCHS = 10, 2


def train(config: dict[str, Any]) -> list[float]:
    """Reports every other step, and at the end of each epoch."""
    session = adl.current_session()
    loader = adl.AdaptiveDataLoader(Numbers(8 * STEPS), batch_size=8, shuffle=True)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for epoch in adl.remaining_epochs_until(EPOCHS):
        for inputs, targets, _ in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if session.num_steps % 2 == 0:
                session.report({"step": session.num_steps + 1}, {"file": b""} if config.get("files") else None)
            stop_for_reallocations(config)
            time.sleep(config.get("seconds", 0))
        session.report({"step": f"end of {epoch}"})
    return parameters(module)


EXPECTED = [1, 3, 5, 7, 9, "end of 0", 11, 13, 15, 17, 19, "end of 1"]


def steps(trial: Trial) -> list[Any]:
    return [metrics["step"] for metrics, _, _ in trial.messages("report")]


@pytest.mark.parametrize("stop", [3, 4, 15])
def test_results_of_a_loop_come_once_if_all_replicas_are_replaced(stop: int) -> None:
    with Trial(train, {"stops": [stop]}) as trial:
        trial.reallocate(1)
        trial.reach(stop)
        trial.reallocate(1, keep=[])
        trial.finish()
        assert steps(trial) == EXPECTED
        assert sorted(trial.messages("number")) == [*range(1, len(EXPECTED) + 1)]


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_job_goes_on_after_any_result_of_a_loop_as_if_undisturbed(num_replicas: int) -> None:
    with Trial(train, {"files": True, "seconds": 0.01}) as trial:
        trial.reallocate(num_replicas)
        expected = trial.finish()[0]
        assert steps(trial) == EXPECTED
        reports = trial.messages("report")
    snapshots = [(i, snapshot) for i, (_, _, snapshot) in enumerate(reports[:-2]) if snapshot is not None]
    assert len(snapshots) > 4
    for i, snapshot in snapshots[1::4]:
        with Trial(train, {}, snapshot=snapshot) as trial:
            trial.reallocate(1)
            assert trial.finish()[0] == pytest.approx(expected, rel=1e-10)
            assert steps(trial) == EXPECTED[i + 1 :]


def test_a_job_that_pauses_says_its_last_result_before() -> None:
    with Trial(train, {"stops": [3]}) as trial:
        trial.reallocate(1)
        trial.reach(3)
        trial.reallocate(0)
        assert steps(trial) == [1, 3]
        snapshot = trial.messages("report")[-1][2]
    with Trial(train, {}, snapshot=snapshot) as trial:
        trial.reallocate(1)
        trial.finish()
        assert steps(trial) == EXPECTED[2:]
