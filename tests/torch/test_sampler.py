"""One permutation per pass, divided without loss whatever the replicas and batch sizes along the way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.torch import ElasticSampler
from adaptdl.torch.layout import Layout
from adaptdl.torch.sampler import Step
from adaptdl.torch.tuning import Batch


def _shares(sampler: ElasticSampler, num_replicas: int, batch: Batch) -> list[list[Step]]:
    """The rest of the pass, by rank."""
    layouts = [Layout(sampler, rank=rank, num_replicas=num_replicas, batch=batch) for rank in range(num_replicas)]
    return [[step for _, step in layout] for layout in layouts]


history = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=8
)


@given(num_samples=st.integers(1, 120), segments=history, shuffle=st.booleans(), drop_last=st.booleans())
def test_a_pass_is_the_permutation_whatever_the_history(
    num_samples: int, segments: list[tuple[int, int, int, int]], shuffle: bool, drop_last: bool
) -> None:
    sampler = ElasticSampler(num_samples, shuffle=shuffle, seed=3, drop_last=drop_last)
    done: list[int] = []
    segments = [*segments, (1, segments[-1][1], 0, num_samples + 1)]  # the rest of the pass
    for num_replicas, batch_size, accum_steps, num_steps in segments:
        batch = Batch(batch_size=batch_size, atomic_batch_size=batch_size, accum_steps=accum_steps)
        shares = _shares(sampler, num_replicas, batch)
        for steps in list(zip(*shares, strict=True))[:num_steps]:
            assert len({(step.batch_size, len(step.parts), step.num_shares) for step in steps}) == 1
            sizes = [step.share for step in steps]
            assert max(sizes) - min(sizes) <= 1
            for step in steps:
                assert sum(map(len, step.parts)) == step.share
                assert step.share == 0 or all(step.parts)
                done += [index for part in step.parts for index in part]
            assert sum(sizes) == steps[0].batch_size
            sampler.position += steps[0].batch_size
    assert done == sampler.permutation()[: len(done)]
    if drop_last:
        assert num_samples - len(done) < segments[-1][1]
    else:
        assert sorted(done) == list(range(num_samples))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_global_batches_do_not_depend_on_the_replicas(n: int, batch_size: int, few: int, many: int) -> None:
    def batches(num_replicas: int) -> list[list[int]]:
        sampler = ElasticSampler(n, shuffle=True, seed=1)
        batch = Batch(batch_size=batch_size, atomic_batch_size=batch_size)
        shares = _shares(sampler, num_replicas, batch)
        return [[i for step in steps for part in step.parts for i in part] for steps in zip(*shares, strict=True)]

    assert batches(few) == batches(many)


@given(
    n=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    ahead=st.lists(st.integers(0, 6), min_size=2, max_size=2),
    every=st.integers(1, 5),
    drop_last=st.booleans(),
)
def test_batch_sizes_change_where_no_replica_has_laid_out(
    n: int, sizes: list[int], ahead: list[int], every: int, drop_last: bool
) -> None:
    """Two replicas run ahead by different numbers of steps; the batch size changes every few steps."""
    sampler = ElasticSampler(n, shuffle=True, seed=2, drop_last=drop_last)
    batches = [Batch(batch_size=size, atomic_batch_size=size) for size in sizes]
    layouts = [Layout(sampler, rank=rank, num_replicas=2, batch=batches[0]) for rank in range(2)]
    laid_out: list[list[tuple[Batch, Step]]] = [[], []]
    done: list[int] = []
    used: list[int] = []
    for number in range(n + 1):
        for layout, steps, more in zip(layouts, laid_out, ahead, strict=True):
            steps += itertools.islice(layout, max(0, number + 1 + more - len(steps)))
        if number == len(laid_out[0]):
            break
        (batch, first), (other, second) = laid_out[0][number], laid_out[1][number]
        assert batch == other
        assert first.batch_size == second.batch_size <= batch.batch_size
        assert second.begin == first.begin + first.share
        done += [index for step in (first, second) for part in step.parts for index in part]
        used.append(batch.batch_size)
        if (number + 1) % every == 0 and (number + 1) // every < len(batches):
            at = max(layout.num_steps for layout in layouts)
            for layout in layouts:
                layout.change(batches[(number + 1) // every], at=at)
                assert layout.newest_batch == batches[(number + 1) // every]
    assert len(laid_out[0]) == len(laid_out[1])
    assert done == sampler.permutation()[: len(done)]
    assert drop_last or len(done) == n
    assert used[:every] == [sizes[0]] * len(used[:every])
    assert set(used) <= set(sizes)
    if ahead == [0, 0]:
        assert used == [sizes[min(number // every, len(sizes) - 1)] for number in range(len(used))]


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    a, b = ElasticSampler(50, shuffle=True, seed=0), ElasticSampler(50, shuffle=True, seed=1)
    first = a.permutation()
    assert b.permutation() != first
    a.begin_pass()
    assert a.permutation() != first
    again = ElasticSampler(50, shuffle=True, seed=0)
    assert again.permutation() == first


def test_a_position_in_another_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the 50 samples"):
        ElasticSampler(49, shuffle=True).load_state_dict(ElasticSampler(50, shuffle=True).state_dict())
