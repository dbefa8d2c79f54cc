"""Small models do without DistributedDataParallel, and with the same guarantees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import adaptdl.torch as adl
from adaptdl.errors import UsageError
from tests.torch.functions import Numbers, deep_network, network, wide_network
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed

NUM_STEPS = 8


def counting(config: dict[str, Any]) -> int:
    """How many of the forward passes of `NUM_STEPS` steps were made by DistributedDataParallel."""
    num_passes = 0
    forward = DistributedDataParallel.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_passes
        num_passes += 1
        return forward(*args, **kwargs)

    DistributedDataParallel.forward = counted  # type: ignore[method-assign]
    module = {"small": network, "wide": wide_network, "deep": deep_network}[config["model"]]()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(
        module, optimizer, find_unused_parameters=config.get("find_unused_parameters", False)
    )
    for inputs, targets, _ in adl.AdaptiveDataLoader(Numbers(4 * NUM_STEPS), batch_size=4):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return num_passes


@pytest.mark.parametrize(
    ("config", "num_passes"),
    [
        ({"model": "small"}, {1: 1, 2: 2}),  # replicas agree on the order of parameters in the second step
        ({"model": "small", "find_unused_parameters": True}, {1: NUM_STEPS, 2: NUM_STEPS}),
        ({"model": "wide"}, {1: 1, 2: NUM_STEPS}),  # only replicas make more than one bucket of it
        ({"model": "deep"}, {1: NUM_STEPS, 2: NUM_STEPS}),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_only_small_models_do_without(config: dict[str, Any], num_passes: dict[int, int], num_replicas: int) -> None:
    with Trial(counting, config) as trial:
        trial.reallocate(num_replicas)
        assert set(trial.finish()) == {num_passes[num_replicas]}


class TwoHeads(torch.nn.Module):
    """Uses one of its heads only after some calls."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 1, dtype=torch.float64) for _ in range(2))
        self.head, self.num_calls = head, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        heads = list(self.heads) if self.num_calls <= 4 else [self.heads[self.head]]
        return torch.stack([head(inputs) for head in heads]).sum(0)


@pytest.mark.parametrize("head", [0, 1])
def test_a_parameter_that_has_no_part_in_the_loss_any_more_is_named(head: int) -> None:
    with adl.open_session():
        module = TwoHeads(head)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        model = adl.AdaptiveDataParallel(module, optimizer)
        loader = adl.AdaptiveDataLoader(Numbers(40), batch_size=4)
        unused = f"heads.{1 - head}.weight, heads.{1 - head}.bias"

        def train() -> None:
            for inputs, targets, _ in loader:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()

        with pytest.raises(UsageError, match=f"find_unused_parameters=True; .* {unused} had none"):
            train()
        assert module.num_calls == 5


def test_what_is_computed_beside_the_training_is_not_summed() -> None:
    """Gradients of inputs, and passes that are not followed by a backward pass, or not by way of the wrapped model."""

    def end(*, has_more: bool) -> list[torch.Tensor]:
        with adl.open_session():
            module = network()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
            model = adl.AdaptiveDataParallel(module, optimizer)
            for inputs, targets, _ in adl.AdaptiveDataLoader(Numbers(40), batch_size=4):
                if has_more:
                    module(inputs).sum().backward()
                    model(inputs)
                    watched = inputs.clone().requires_grad_()
                    torch.autograd.grad(model(watched).sum(), watched)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
            assert adl.current_session().num_steps == 10
            return [parameter.detach() for parameter in module.parameters()]

    torch.testing.assert_close(end(has_more=True), end(has_more=False), rtol=0, atol=0)
