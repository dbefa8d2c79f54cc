from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GoodputModel, GradParams, PerfParams

quick = settings(max_examples=60, deadline=None)
times = st.floats(1e-5, 1.0)
perf_params = st.builds(
    PerfParams, alpha_c=times, beta_c=times, alpha_n=times, beta_n=times, alpha_r=times, beta_r=times,
    gamma=st.floats(1, 10),
)  # fmt: skip
grad_params = st.builds(GradParams, grad_sqr=st.floats(0, 1), grad_var=st.floats(0, 10))
PERF = PerfParams(alpha_c=0.1, beta_c=0.01, alpha_n=0.3, beta_n=0.02, alpha_r=0.1, beta_r=0.01, gamma=2.0)
GRAD = GradParams(grad_sqr=1.0, grad_var=20.0)


@st.composite
def bounds(draw: st.DrawFn) -> BatchSizeBounds:
    init = draw(st.integers(1, 60))
    largest = init + draw(st.integers(0, 100))
    local = draw(st.none() | st.tuples(st.integers(1, 30), st.integers(1, 80)).map(lambda pair: tuple(sorted(pair))))
    try:
        return BatchSizeBounds(
            init_batch_size=init,
            max_batch_size=largest,
            local_bsz_bounds=local,
            gradient_accumulation=draw(st.booleans()),
        )
    except UsageError:
        assume(False)
        raise


models = st.builds(GoodputModel, perf_params=perf_params, grad_params=grad_params, bounds=bounds())


def model(**limits: object) -> GoodputModel:
    return GoodputModel(perf_params=PERF, grad_params=GRAD, bounds=BatchSizeBounds(**limits))  # type: ignore[arg-type]


@quick
@given(models)
def test_batch_sizes_stay_within_all_bounds(model: GoodputModel) -> None:
    nodes, replicas = np.arange(5)[:, None], np.arange(80)[None, :]
    choice = model.best_batch_size(nodes, replicas)
    m, s, total = choice.atomic_batch_size, choice.accum_steps, choice.batch_size
    possible = choice.goodput > 0
    assert not (possible & ((nodes < 1) | (nodes > replicas))).any()
    assert (m[~possible] == 0).all()
    assert (s[~possible] == 0).all()
    assert (total[~possible] == 0).all()
    limits = model.bounds
    assert (total[possible] >= limits.init_batch_size).all()
    assert (total[possible] <= limits.max_batch_size).all()
    low, high = limits.local_bsz_bounds or (1, limits.max_batch_size)
    assert ((m >= low) & (m <= high))[possible].all()
    if not limits.gradient_accumulation:
        assert (s == 0).all()
    if not limits.fixed:
        assert (total == replicas * m * (s + 1))[possible].all()


@quick
@given(models, st.integers(1, 6), st.booleans())
def test_no_batch_size_within_the_bounds_is_better(model: GoodputModel, replicas: int, across: bool) -> None:
    limits = model.bounds
    assume(not limits.fixed)
    nodes = 1 + (across and replicas > 1)
    low, high = limits.local_bsz_bounds or (1, limits.max_batch_size)
    best = 0.0
    for m, s in product(range(low, high + 1), range(limits.max_batch_size if limits.gradient_accumulation else 1)):
        if limits.init_batch_size <= replicas * m * (s + 1) <= limits.max_batch_size:
            best = max(best, float(model.goodput(nodes, replicas, m, s)))
    assert model.best_batch_size(nodes, replicas).goodput == pytest.approx(best, rel=1e-12)


@quick
@given(models)
def test_one_replica_can_always_train(model: GoodputModel) -> None:
    assert model.best_batch_size(1, 1).goodput > 0


@quick
@given(models, st.integers(1, 20))
def test_the_chosen_sizes_have_the_goodput_they_are_said_to_have(model: GoodputModel, replicas: int) -> None:
    choice = model.best_batch_size(1, replicas)
    if choice.goodput > 0:
        again = model.goodput(1, replicas, choice.atomic_batch_size, choice.accum_steps)
        assert again == pytest.approx(choice.goodput)


def test_replicas_times_the_local_minimum_never_exceed_the_maximum() -> None:
    choice = model(init_batch_size=32, max_batch_size=100, local_bsz_bounds=(16, 64)).best_batch_size(1, np.arange(9))
    assert (choice.goodput[1:7] > 0).all()
    assert (choice.goodput[7:] == 0).all()
    assert (choice.batch_size <= 100).all()


def test_a_fixed_batch_is_shared_exactly() -> None:
    replicas = np.array([1, 2, 3, 5, 63, 64, 65])
    choice = model(init_batch_size=64, max_batch_size=64).best_batch_size(1, replicas)
    assert choice.atomic_batch_size.tolist() == [64, 32, 22, 13, 2, 1, 0]
    assert choice.batch_size.tolist() == [64] * 6 + [0]
    assert (choice.accum_steps == 0).all()
    step = PERF.alpha_c + PERF.beta_c * 64
    assert choice.goodput[0] == pytest.approx(64 / step)


def test_shares_of_a_fixed_batch_respect_local_bounds() -> None:
    limits = {"init_batch_size": 64, "max_batch_size": 64, "local_bsz_bounds": (10, 20), "gradient_accumulation": True}
    choice = model(**limits).best_batch_size(1, np.array([1, 3, 4, 6, 7]))
    assert choice.atomic_batch_size.tolist() == [16, 11, 16, 11, 0]
    assert choice.accum_steps.tolist() == [3, 1, 0, 0, 0]


def test_a_varying_batch_starts_at_the_smallest_multiple_of_the_replicas() -> None:
    noiseless = GoodputModel(
        perf_params=PERF,
        grad_params=GradParams(grad_sqr=1.0, grad_var=0.0),
        bounds=BatchSizeBounds(init_batch_size=64, max_batch_size=640),
    )
    assert noiseless.best_batch_size(1, np.array([1, 3, 4])).batch_size.tolist() == [64, 66, 64]


def test_passes_are_accumulated_only_where_a_replica_cannot_hold_its_share() -> None:
    noisy = GoodputModel(
        perf_params=PERF,
        grad_params=GradParams(grad_sqr=0.0, grad_var=1.0),
        bounds=BatchSizeBounds(
            init_batch_size=32, max_batch_size=1000, local_bsz_bounds=(1, 64), gradient_accumulation=True
        ),
    )
    choice = noisy.best_batch_size(2, np.array([2, 100]))
    assert choice.batch_size.tolist() == [896, 1000]  # 7 full passes of 2 × 64, and 8 passes of 2 × 62, are compared
    assert choice.accum_steps.tolist() == [6, 0]


def test_tables_are_broadcast_and_scalars_stay_scalars() -> None:
    table = model(init_batch_size=8, max_batch_size=800).best_batch_size(np.arange(4)[:, None], np.arange(7))
    assert table.goodput.shape == table.atomic_batch_size.shape == table.accum_steps.shape == (4, 7)
    single = model(init_batch_size=8, max_batch_size=800).best_batch_size(2, 5)
    assert single.goodput.shape == ()
    assert single.goodput == table.goodput[2, 5]


def test_narrow_local_bounds_do_not_make_the_search_long() -> None:
    limits = {"init_batch_size": 1000, "max_batch_size": 10**7, "local_bsz_bounds": (1, 2)}
    choice = model(**limits, gradient_accumulation=True).best_batch_size(1, np.arange(1, 100))
    assert (choice.goodput > 0).all()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"init_batch_size": 256, "max_batch_size": 128},
            r"`init_batch_size <= max_batch_size` must hold, but got \(init_batch_size=256, max_batch_size=128\)",
        ),
        ({"init_batch_size": 0, "max_batch_size": 128}, "init_batch_size >= 1"),
        ({"init_batch_size": 8, "max_batch_size": 128, "local_bsz_bounds": (9, 4)}, r"1 <= low <= high.*\(9, 4\)"),
        ({"init_batch_size": 8, "max_batch_size": 128, "local_bsz_bounds": (0, 4)}, r"1 <= low <= high.*\(0, 4\)"),
        ({"init_batch_size": 8, "max_batch_size": 128, "local_bsz_bounds": (1, 4)}, "gradient_accumulation=True"),
        ({"init_batch_size": 8, "max_batch_size": 128, "local_bsz_bounds": (16, 32)}, "must lie within"),
        (
            {
                "init_batch_size": 50, "max_batch_size": 55, "local_bsz_bounds": (30, 40),
                "gradient_accumulation": True,
            },
            "one replica must be able to train",
        ),
    ],
)  # fmt: skip
def test_contradicting_bounds_are_refused(limits: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BatchSizeBounds(**limits)  # type: ignore[arg-type]
