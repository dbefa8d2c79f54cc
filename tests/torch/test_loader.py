"""Bad input gets one clear error; what is good comes out as with torch's DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, SequentialSampler, TensorDataset

import adaptdl.torch as adl
from adaptdl.errors import UsageError


@pytest.fixture(autouse=True)
def session() -> Iterator[adl.ElasticSession]:
    with adl.open_session() as session:
        yield session


def numbers(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_an_iterable_dataset_is_refused() -> None:
    with pytest.raises(UsageError, match=r"map-style Dataset.*got the IterableDataset Stream"):
        adl.AdaptiveDataLoader(Stream(), batch_size=2)


def test_a_sampler_of_the_user_is_refused() -> None:
    data = numbers(8)
    with pytest.raises(UsageError, match=r"cannot follow sampler=.*shuffle=True"):
        adl.AdaptiveDataLoader(data, batch_size=2, sampler=SequentialSampler(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "8"])
def test_a_batch_size_that_is_none_is_refused(batch_size: Any) -> None:
    with pytest.raises(UsageError, match="batch_size must be a whole number of samples ≥ 1, but got"):
        adl.AdaptiveDataLoader(numbers(8), batch_size=batch_size)


def test_a_batch_size_from_a_search_algorithm_is_taken() -> None:
    assert adl.AdaptiveDataLoader(numbers(8), batch_size=np.int64(4)).batch_size == 4  # type: ignore[arg-type]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        adl.AdaptiveDataLoader(numbers(0), batch_size=1)


@pytest.mark.parametrize(
    ("largest", "local", "message"),
    [
        (32, None, r"init_batch_size <= max_batch_size.*64.*32"),
        (128, (64, 16), r"low <= high.*\(64, 16\)"),
        (128, (128, 256), r"local_bsz_bounds.*64"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(largest: int, local: Any, message: str) -> None:
    loader = adl.AdaptiveDataLoader(numbers(100), batch_size=64)
    with pytest.raises(UsageError, match=message):
        loader.autoscale_batch_size(largest, local_bsz_bounds=local)


@pytest.mark.parametrize(
    ("largest", "local", "message"),
    [
        ("128", None, r"max_batch_size must be a whole number.*'128'"),
        (1e3, None, r"max_batch_size must be a whole number.*1000\.0"),
        (128, (4.0, 64.0), r"local_bsz_bounds must be two whole numbers.*\(4\.0, 64\.0\)"),
        (128, (4, 32, 64), r"local_bsz_bounds must be two whole numbers"),
        (128, 64, r"local_bsz_bounds must be two whole numbers.*64"),
    ],
)
def test_bounds_that_are_no_whole_numbers_are_refused(largest: Any, local: Any, message: str) -> None:
    loader = adl.AdaptiveDataLoader(numbers(100), batch_size=64)
    with pytest.raises(UsageError, match=message):
        loader.autoscale_batch_size(largest, local_bsz_bounds=local)


class Endless(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


def test_a_data_set_without_a_length_is_refused() -> None:
    with pytest.raises(UsageError, match="the Endless has no __len__"):
        adl.AdaptiveDataLoader(Endless(), batch_size=2)


def test_nested_loops_are_refused_and_the_outer_one_can_be_left() -> None:
    first, second = adl.AdaptiveDataLoader(numbers(8), batch_size=2), adl.AdaptiveDataLoader(numbers(8), batch_size=2)
    with pytest.raises(UsageError, match="cannot be nested"):  # noqa: PT012
        for _ in first:
            for _ in second:
                pass
    assert len(list(second)) == 4


def test_nested_epoch_loops_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be nested"):  # noqa: PT012
        for _ in adl.remaining_epochs_until(2):
            for _ in adl.remaining_epochs_until(2):
                pass


@pytest.mark.parametrize("epochs", [-1, 1.5, True])
def test_a_number_of_epochs_that_is_none_is_refused(epochs: Any) -> None:
    with pytest.raises(UsageError, match="number of epochs"):
        adl.remaining_epochs_until(epochs)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_every_pass_gives_each_sample_once_in_a_new_order(num_workers: int, persistent_workers: bool) -> None:
    loader = adl.AdaptiveDataLoader(
        numbers(23), 5, shuffle=True, num_workers=num_workers, persistent_workers=persistent_workers
    )
    passes = [[int(i) for (batch,) in loader for i in batch] for _ in range(3)]
    assert [sorted(indices) for indices in passes] == [list(range(23))] * 3
    assert len({tuple(indices) for indices in passes}) == 3


def test_a_loop_that_was_left_early_begins_anew_next_time() -> None:
    loader = adl.AdaptiveDataLoader(numbers(20), batch_size=4, num_workers=2)
    for _ in range(2):
        assert next(iter(loader))[0].tolist() == [0, 1, 2, 3]
    assert [int(i) for (batch,) in loader for i in batch] == list(range(20))


def test_drop_last_and_collate_fn_are_as_in_torch() -> None:
    loader = adl.AdaptiveDataLoader(numbers(10), batch_size=4, drop_last=True, collate_fn=lambda items: len(items))
    assert list(loader) == [4, 4]
    assert len(loader) == 2


def test_a_loop_does_not_touch_the_random_numbers_of_the_user() -> None:
    loader = adl.AdaptiveDataLoader(numbers(10), batch_size=4, shuffle=True)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    for _ in loader:
        pass
    assert torch.equal(torch.rand(3), expected)


def test_a_training_loop_without_steps_is_one_pass() -> None:
    loader = adl.AdaptiveDataLoader(numbers(10), batch_size=4)
    loader.autoscale_batch_size(8)
    module = torch.nn.Linear(1, 1)
    model = adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert model.training
    for _ in range(2):
        batches = list(itertools.islice(loader, 9))
        assert [int(i) for (batch,) in batches for i in batch] == list(range(10))
