"""Another batch size in mid-pass throws nothing away, and all replicas take it at the same step."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import adaptdl.torch as adl
from adaptdl.torch.tuning import Batch
from tests.torch.processes import Trial

NUM_SAMPLES, INIT_BATCH_SIZE = 1200, 12
SIZES = (24, 12, 36, 12, 48)
STEPS_BETWEEN_CHANGES = 3


class Counted(Dataset[tuple[torch.Tensor, int]]):
    """Counts how often each sample was read, in whatever process."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times_read = multiprocessing.Array("i", NUM_SAMPLES)
        self._seconds = seconds

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with self.times_read.get_lock():
            self.times_read[index] += 1
        time.sleep(self._seconds)
        return torch.randn(3), index


def train(config: dict[str, Any]) -> tuple[list[int], list[list[int]], list[int]]:
    """One pass. Returns how often this replica has read each sample, the samples of its batches, and M in each of its steps."""
    session = adl.current_session()
    data = Counted()
    loader = adl.AdaptiveDataLoader(data, INIT_BATCH_SIZE, shuffle=True, num_workers=config["num_workers"])
    loader.autoscale_batch_size(max(SIZES), (INIT_BATCH_SIZE // 2, max(SIZES)))
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    model = adl.AdaptiveDataParallel(module, optimizer)
    changes = itertools.cycle(SIZES)
    batches, sizes = [], []
    for _ in adl.remaining_epochs_until(1):
        for inputs, indices in loader:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            batches.append(indices.tolist())
            if session.is_accumulating:
                continue
            sizes.append(loader.current_batch_size)
            if sum(sizes) >= NUM_SAMPLES:
                break  # before a second pass is begun to make up for what large batches are worth less
            if len(sizes) % STEPS_BETWEEN_CHANGES == 0 and session.rank == 0:
                assert session.loop is not None
                size = next(changes)
                session.loop.better_batch = Batch(
                    batch_size=size, atomic_batch_size=size // session.num_replicas, accum_steps=0
                )
    return list(data.times_read), batches, sizes


@pytest.mark.distributed
@pytest.mark.parametrize(("num_replicas", "num_workers"), [(1, 0), (1, 3), (2, 0), (2, 2)])
def test_every_sample_is_read_and_used_once(num_replicas: int, num_workers: int) -> None:
    with Trial(train, {"num_workers": num_workers}) as trial:
        trial.reallocate(num_replicas)
        found = trial.finish()
    times_read = [sum(times) for times in zip(*(times for times, _, _ in found), strict=True)]
    used = [index for _, batches, _ in found for batch in batches for index in batch]
    assert sorted(used) == list(range(NUM_SAMPLES))
    assert times_read == [1] * NUM_SAMPLES
    sizes = [sizes for _, _, sizes in found]
    assert all(other == sizes[0] for other in sizes)
    assert {*SIZES} <= {*sizes[0]}


@pytest.mark.parametrize(("age_s", "expected_s"), [(0.0, 0.1), (3.0, 0.6), (20.0, 4.0), (1e6, 30.0)])
def test_it_is_thought_over_less_and_less_often(age_s: float, expected_s: float) -> None:
    with adl.open_session() as session:
        now = session.began_at + age_s
        assert session.share_of_age_s(0.1, 30.0, now) == pytest.approx(expected_s)


def test_the_first_batch_waits_only_for_what_workers_have_begun() -> None:
    data, prefetch_factor, num_workers = Counted(seconds=0.005), 6, 2
    with adl.open_session():
        loader = adl.AdaptiveDataLoader(
            data, INIT_BATCH_SIZE, num_workers=num_workers, prefetch_factor=prefetch_factor, persistent_workers=True
        )
        for _ in range(3):
            for _ in loader:
                break
        num_read = sum(data.times_read) / INIT_BATCH_SIZE
    # In each loop: the first batch, as many as there are workers, and those begun until the next loop asks.
    assert num_read <= 3 * 3 * num_workers < 3 * prefetch_factor * num_workers
