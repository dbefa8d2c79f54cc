"""Whatever users train with, two replicas end where one does. Real gloo processes."""

from __future__ import annotations

import pytest
import torch

import adaptdl.torch as adl
from adaptdl.errors import UsageError
from tests.torch.breadth import CASES, train_all
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ends() -> dict[int, list[dict[str, list[float]]]]:
    """Number of replicas → what each of them ends with, by case."""
    found = {}
    for num_replicas in (1, 2):
        with Trial(train_all) as trial:
            trial.reallocate(num_replicas)
            found[num_replicas] = trial.finish()
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_end_where_one_does(case: str, ends: dict[int, list[dict[str, list[float]]]]) -> None:
    (alone,), (first, second) = ends[1], ends[2]
    assert first[case] == second[case]
    assert first[case] == pytest.approx(alone[case], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("layer", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_sparse_gradients_are_refused(layer: type[torch.nn.Embedding]) -> None:
    module = torch.nn.Sequential(layer(10, 4, sparse=True), torch.nn.Linear(4, 1))
    with adl.open_session(), pytest.raises(UsageError, match=r"sparse=True.*'0'"):
        adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))
