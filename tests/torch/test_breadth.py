"""Whatever users train with, two replicas end where one does. Real gloo processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import adaptdl.torch as adl
from adaptdl.errors import UsageError
from tests.torch.breadth import CASES, WHOLE_ONLY, train_all
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ends() -> dict[int, list[dict[str, list[float]]]]:
    """Number of replicas → what each of them ends with, by case."""
    found = {}
    for num_replicas in (1, 2):
        with Trial(train_all, {}) as trial:
            trial.reallocate(num_replicas)
            found[num_replicas] = trial.finish()
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_end_where_one_does(case: str, ends: dict[int, list[dict[str, list[float]]]]) -> None:
    (alone,), (first, second) = ends[1], ends[2]
    assert first[case] == second[case]
    assert first[case] == pytest.approx(alone[case], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_steps_of_parts_end_where_whole_ones_do(
    num_replicas: int, ends: dict[int, list[dict[str, list[float]]]]
) -> None:
    cases = [case for case in CASES if case not in WHOLE_ONLY]
    with Trial(train_all, {"part": 3, "cases": cases}) as trial:
        trial.reallocate(num_replicas)
        for found in trial.finish():
            assert found == {case: pytest.approx(ends[1][0][case], rel=1e-9, abs=1e-12) for case in cases}


@pytest.mark.parametrize("layer", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_sparse_gradients_are_refused(layer: type[torch.nn.Embedding]) -> None:
    module = torch.nn.Sequential(layer(10, 4, sparse=True), torch.nn.Linear(4, 1))
    with adl.open_session(), pytest.raises(UsageError, match=r"sparse=True.*'0'"):
        adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_parameters_without_a_part_in_the_loss_are_named() -> None:
    with (
        adl.open_session(),
        pytest.raises(UsageError, match=r"find_unused_parameters=True; .* unused.weight, unused.bias had none"),
    ):
        _with_unused_parameters({})


@pytest.mark.distributed
def test_on_several_replicas_they_are_named_too_and_nobody_takes_it_for_a_lost_replica() -> None:
    with Trial(_with_unused_parameters, {}) as trial:
        trial.reallocate(2)
        with pytest.raises(AssertionError, match=r"UsageError: .* unused.weight, unused.bias had none"):
            trial.finish()


def _with_unused_parameters(config: dict[str, Any]) -> None:
    module = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "unused": torch.nn.Linear(2, 1)})
    module.forward = lambda inputs: module["used"](inputs)  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    loader = adl.AdaptiveDataLoader(torch.utils.data.TensorDataset(torch.randn(16, 2)), batch_size=4)
    for _ in adl.remaining_epochs_until(1):
        for (inputs,) in loader:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
