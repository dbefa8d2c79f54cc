"""What replicas take over from each other, and from snapshots: real processes, real gloo."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import adaptdl.torch as adl
from adaptdl.torch.ambient import current_session
from adaptdl.torch.rng import rng_state, set_rng_state
from adaptdl.torch.transfer import _MESSAGE_BYTES, _messages, _Meta
from tests.torch.functions import stop_for_reallocations
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed


def dice(config: dict[str, Any]) -> dict[int, tuple[float, float, float]]:
    """Trains, and returns what this replica has drawn in each step, from three generators that are seeded with its rank."""
    session = current_session()
    data = torch.utils.data.TensorDataset(torch.ones(48, 1))
    loader = adl.AdaptiveDataLoader(data, batch_size=4, shuffle=True)
    network = torch.nn.Linear(1, 1)
    model = adl.AdaptiveDataParallel(network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9))
    drawn = {}
    for _ in adl.remaining_epochs_until(2):
        for (x,) in loader:
            if session.num_steps == 0:
                for seed in (torch.manual_seed, random.seed, np.random.seed):
                    seed(session.rank)
            model._optimizer.zero_grad()
            model(x).sum().backward()
            model._optimizer.step()
            drawn[session.num_steps] = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
            session.reports.wait()  # so that there is a snapshot after each step
    return drawn


def test_random_numbers_of_all_replicas_go_on_where_they_were() -> None:
    with Trial(dice, snapshot_interval_s=0.0) as trial:
        trial.reallocate(2)
        drawn = trial.finish()
        snapshots = trial.messages("snapshot")
    assert drawn[0].keys() == drawn[1].keys()
    assert not set(drawn[0].values()) & set(drawn[1].values())
    data, steps = next((data, steps) for data, steps in snapshots if steps > 14)  # in the second pass
    with Trial(dice, snapshot=data) as trial:
        trial.reallocate(2)
        again = trial.finish()
    for before, after in zip(drawn, again, strict=True):
        assert after == {step: numbers for step, numbers in before.items() if step >= steps}


def test_the_state_of_a_generator_may_be_a_part_of_a_larger_tensor() -> None:
    before = rng_state()
    try:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        expected = torch.rand(3)
        set_rng_state({**before, "torch": torch.cat([torch.zeros_like(state), state])[len(state) :]})
        assert torch.equal(torch.rand(3), expected)
    finally:
        set_rng_state(before)


def memory_of_states(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Of each tensor of the model and its optimizer: the bytes it has, and those of the memory that it keeps alive."""
    data = torch.utils.data.TensorDataset(torch.ones(64, 1))
    loader = adl.AdaptiveDataLoader(data, batch_size=4)
    network = torch.nn.Sequential(torch.nn.Linear(1, 300), torch.nn.Linear(300, 1), torch.nn.BatchNorm1d(1))
    optimizer = torch.optim.Adam(network.parameters())
    model = adl.AdaptiveDataParallel(network, optimizer)
    found = []
    for _ in adl.remaining_epochs_until(1):
        for (x,) in loader:
            if not found and optimizer.state:
                tensors = [*network.parameters(), *network.buffers()]
                tensors += [value for state in optimizer.state.values() for value in state.values()]
                found = [(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors]
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            stop_for_reallocations(config)
    return found


def test_a_newcomer_keeps_no_more_memory_than_its_states_have() -> None:
    with Trial(memory_of_states, {"stops": [3]}) as trial:
        trial.reallocate(1)
        trial.reach(3)
        trial.reallocate(2)
        old, new = trial.finish()
    assert len(old) == len(new) == 6 + 3 + 6 * 3
    assert all(kept == size for size, kept in new)


def test_large_tensors_travel_alone_and_small_ones_together() -> None:
    some, large = 100, _MESSAGE_BYTES // 4 + 1
    sizes = [some, large, some, _MESSAGE_BYTES // 4 - some, some]
    metas = [_Meta(torch.float32, (size,), "cpu") for size in sizes] + [_Meta(torch.int64, (), "cpu")]
    assert _messages(metas) == [[0], [1], [2, 3], [4], [5]]
