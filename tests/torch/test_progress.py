"""Progress: at the same progress a trial is as good, whatever its replicas and batch sizes were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import adaptdl.torch as adl
from tests.torch.functions import Numbers, network, parameters
from tests.torch.processes import Trial

INIT_BATCH_SIZE, NUM_SAMPLES, NUM_DIMENSIONS, EPOCHS = 8, 1024, 20, 24


def test_ada_scale_at_scale_1_is_plain_training_exactly() -> None:
    data = Numbers(50, torch.float32)
    order: list[torch.Tensor] = []
    with adl.open_session() as session:
        adaptive = network(torch.float32)
        optimizer = torch.optim.SGD(adaptive.parameters(), lr=0.05, momentum=0.9)
        model = adl.AdaptiveDataParallel(adaptive, optimizer, scaling_rule=adl.AdaScale())
        loader = adl.AdaptiveDataLoader(data, batch_size=8, shuffle=True)
        for _ in adl.remaining_epochs_until(5):
            for inputs, targets, indices in loader:
                order.append(indices)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
        assert session.progress == session.num_steps * 1.0 - 5 * (1 - 2 / 8)  # the last batch of a pass has two samples

    plain = network(torch.float32)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for indices in order:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(plain(data.inputs[indices]), data.targets[indices]).backward()
        optimizer.step()
    assert parameters(adaptive) == parameters(plain)


def learn(config: dict[str, Any]) -> dict[str, Any]:
    """Linear regression with noise; the excess of the loss over the least one, after each epoch's worth of progress.

    Config: most (samples of a step at most; None: M₀ throughout).
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_SAMPLES, NUM_DIMENSIONS, generator=generator, dtype=torch.float64)
    weights = torch.randn(NUM_DIMENSIONS, 1, generator=generator, dtype=torch.float64)
    targets = inputs @ weights + 2.0 * torch.randn(NUM_SAMPLES, 1, generator=generator, dtype=torch.float64)
    least = (inputs @ torch.linalg.lstsq(inputs, targets).solution - targets).square().mean()
    loader = adl.AdaptiveDataLoader(TensorDataset(inputs, targets), batch_size=INIT_BATCH_SIZE, shuffle=True)
    if config["most"] is not None:
        loader.autoscale_batch_size(config["most"], local_bsz_bounds=(2, config["most"]))
    module = torch.nn.Linear(NUM_DIMENSIONS, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=2e-4)
    model = adl.AdaptiveDataParallel(module, optimizer)
    excess, sizes = [], set()
    for _ in adl.remaining_epochs_until(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            sizes.add(loader.current_batch_size)
        with torch.no_grad():
            excess.append(float((module(inputs) - targets).square().mean() - least))
    return {"excess": excess, "sizes": sizes, "steps": adl.current_session().num_steps}


@pytest.mark.distributed
@pytest.mark.slow
def test_reallocations_and_batch_sizes_do_not_change_what_is_reached_at_the_same_progress() -> None:
    with adl.open_session():
        expected = learn({"most": None})
    with Trial(learn, {"most": 64}) as trial:
        for num_replicas in (2, 1, 2):
            trial.reallocate(num_replicas)
            trial.reach(trial.members[0].call("place").steps + 200)
        found = trial.finish()[0]
    assert len(trial.switches) == 3
    assert max(found["sizes"]) > 2 * INIT_BATCH_SIZE
    assert found["steps"] < 0.8 * expected["steps"]
    whole = expected["excess"][0] - expected["excess"][-1]
    for after_this, after_that in zip(found["excess"], expected["excess"], strict=True):
        assert after_this == pytest.approx(after_that, abs=0.05 * whole)
