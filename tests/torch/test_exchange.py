"""The step exchange, alone and at the end of the gradients: how many collectives a step takes, and that nobody waits forever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import adaptdl.torch as adl
from tests.torch.functions import Numbers, parameters
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed

NUM_REPLICAS = 3
STEPS_OF_A_PASS = 8


def counting(config: dict[str, Any]) -> dict[str, Any]:
    """Sums over the replicas in each step of three passes; says how many elements each sum had.

    Config: width and dtype of the network; breaks: rank → batch at which its loop ends; second: batch at which another model is
    made, from which on both are trained.
    """
    dtype = config.get("dtype", torch.float64)
    sums: list[int] = []
    reduce, gather = dist.all_reduce, dist.all_gather_single

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sums.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    def all_gather_single(tensors: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sums.append(tensor.numel())
        return gather(tensors, tensor, *args, **kwargs)

    dist.all_reduce, dist.all_gather_single = all_reduce, all_gather_single
    loader = adl.AdaptiveDataLoader(Numbers(8 * STEPS_OF_A_PASS, torch.float32), batch_size=8, shuffle=True)

    def make(name: str) -> tuple[adl.AdaptiveDataParallel, torch.optim.Optimizer]:
        torch.manual_seed(len(name))
        module = torch.nn.Sequential(torch.nn.Linear(6, config.get("width", 4)), torch.nn.LazyLinear(1))
        module(torch.zeros(1, 6))
        optimizer = torch.optim.SGD(module.to(dtype).parameters(), lr=0.08 / config.get("width", 4))
        return adl.AdaptiveDataParallel(module, optimizer, name=name), optimizer

    models = [make("first")]
    steps = []
    for epoch in adl.remaining_epochs_until(3):
        for batch, (inputs, targets, _) in enumerate(loader):
            if batch == config.get("breaks", {}).get(adl.current_session().rank):
                break
            if (epoch, batch) == config.get("second"):
                models.append(make("second one"))
            sums.clear()
            for model, optimizer in models:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(inputs.to(dtype)), targets.to(dtype)).backward()
                optimizer.step()
            steps.append(list(sums))
    return {
        "sums": steps,
        "num_steps": adl.current_session().num_steps,
        "parameters": [parameters(model.module) for model, _ in models],
    }


def ends(**config: Any) -> list[dict[str, Any]]:
    with Trial(counting, config) as trial:
        trial.reallocate(NUM_REPLICAS)
        found: list[dict[str, Any]] = trial.finish()
    return found


def alone(**config: Any) -> dict[str, Any]:
    with Trial(counting, config) as trial:
        trial.reallocate(1)
        (found,) = trial.finish()
    assert isinstance(found, dict)
    return found


def close_to(expected: list[list[float]]) -> Any:
    return [pytest.approx(values, rel=1e-9, abs=1e-12) for values in expected]


@pytest.mark.parametrize("width", [4, 10_000], ids=["gathered", "reduced"])
def test_a_tiny_model_has_one_collective_in_a_step(width: int) -> None:
    found = ends(width=width)
    for end in found:
        first, *others = [len(sums) for sums in end["sums"]]
        assert first == 2  # its replicas do not know of each other yet
        assert others == [1] * (3 * STEPS_OF_A_PASS - 1)
        assert end["parameters"] == close_to(alone(width=width)["parameters"])
        assert end["parameters"] == found[0]["parameters"]  # to the last bit


@pytest.mark.parametrize("config", [{"width": 40_000}, {"dtype": torch.bfloat16}], ids=["large", "bfloat16"])
def test_gradients_that_are_dear_to_copy_or_not_precise_carry_nothing(config: dict[str, Any]) -> None:
    for end in ends(**config):
        assert {len(sums) for sums in end["sums"]} <= {2, 3, 4}


@pytest.mark.parametrize("breaks", [{0: 5}, {1: 5}, {0: 5, 2: 5}, {1: 0}], ids=str)
def test_a_replica_that_leaves_its_loop_before_the_others_keeps_them_company(breaks: dict[int, int]) -> None:
    (batch,) = set(breaks.values())
    found = ends(breaks=breaks)
    expected = alone(breaks={0: batch})
    for end in found:
        assert end["num_steps"] == expected["num_steps"] == 3 * batch
        assert end["parameters"] == close_to(expected["parameters"])


@pytest.mark.parametrize("breaks", [{}, {1: 5}, {0: 5}], ids=str)
def test_a_second_model_may_be_made_while_gradients_of_the_first_carry(breaks: dict[int, int]) -> None:
    found = ends(breaks=breaks, second=(1, 4))
    assert [len(sums) for sums in found[2]["sums"]][1:4] == [1, 1, 1]
    assert len(found[2]["sums"][-1]) == 3
    expected = alone(breaks={0: min(breaks.values())} if breaks else {}, second=(1, 4))
    for end in found:
        assert end["num_steps"] == expected["num_steps"]
        for values, others in zip(end["parameters"], expected["parameters"], strict=False):
            assert values == pytest.approx(others, rel=1e-9, abs=1e-12)
