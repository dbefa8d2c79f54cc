"""One permutation per pass, divided without loss whatever the replicas and batch sizes along the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptdl.torch import ElasticSampler

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
        shares = [list(sampler.steps(rank, num_replicas, batch_size, accum_steps)) for rank in range(num_replicas)]
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
        shares = [sampler.steps(rank, num_replicas, batch_size, 0) for rank in range(num_replicas)]
        return [[i for step in steps for part in step.parts for i in part] for steps in zip(*shares, strict=True)]

    assert batches(few) == batches(many)


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
