"""Memory that runs out: what was added in the void step is not added twice."""

from __future__ import annotations

import pytest
import torch

import adaptdl.torch as adl
from tests.torch.functions import Numbers
from tests.torch.processes import Trial


class Greedy(torch.nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(inputs)


def count(config: dict[str, int]) -> float:
    loader = adl.AdaptiveDataLoader(Numbers(64), batch_size=8)
    module = Greedy(6, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    samples = adl.Accumulator()
    for _ in adl.remaining_epochs_until(1):
        for inputs, _, _ in loader:
            samples["seen"] += len(inputs)
            optimizer.zero_grad()
            model(inputs).mean().backward()
            optimizer.step()
        with samples.synchronized():
            seen: float = samples["seen"]
    return seen


@pytest.mark.distributed
def test_one_replica_adds_up_each_sample_once() -> None:
    with Trial(count, {}) as trial:
        trial.reallocate(1)
        assert trial.finish() == [64]
