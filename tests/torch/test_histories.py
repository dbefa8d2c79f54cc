"""The loss curve and the order of data do not notice reallocations: real processes, real gloo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from adaptdl.torch.warm_up import warm_up
from tests.torch import functions
from tests.torch.processes import Trial

pytestmark = pytest.mark.distributed


def run(
    history: list[int], config: dict[str, Any], func: Callable[[Any], Any] = functions.regression
) -> tuple[Trial, list[Any]]:
    """Through `history` (replicas), with a change after each step in config["stops"]."""
    with Trial(func, config) as trial:
        for stop, num_replicas in zip([0, *config.get("stops", [])], history, strict=True):
            if stop:
                trial.reach(stop)
            trial.reallocate(num_replicas)
        return trial, trial.finish()


def assert_close(got: list[float], expected: list[float], bound: float) -> None:
    a, b = torch.tensor(got), torch.tensor(expected)
    assert torch.linalg.vector_norm(a - b) <= bound * torch.linalg.vector_norm(b)


@pytest.mark.parametrize(
    ("dtype", "is_wide", "bound"),
    [(torch.float64, False, 1e-10), (torch.float64, True, 1e-10), (torch.float32, False, 1e-5)],
)
def test_1_2_3_1_replicas_end_with_the_parameters_of_an_undisturbed_run(
    dtype: torch.dtype, is_wide: bool, bound: float
) -> None:
    config = {"dtype": dtype, "is_wide": is_wide, "epochs": 3}
    _, [undisturbed] = run([1], config)
    trial, [moved] = run([1, 2, 3, 1], {**config, "stops": [3, 9, 15]})
    assert moved["steps"] == undisturbed["steps"] == 21
    assert_close(moved["parameters"], undisturbed["parameters"], bound)
    assert [switched.num_replicas for switched in trial.switches] == [1, 2, 3, 1]
    assert all(switched.pause_s < 2 for switched in trial.switches)  # a matter of tenths; a restart would take more


@pytest.mark.timeout(400)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    history=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    num_samples=st.integers(13, 40),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    num_workers=st.sampled_from([0, 0, 2]),
    data=st.data(),
)
def test_every_pass_is_a_permutation_whatever_the_history(
    history: list[int], num_samples: int, batch_size: int, drop_last: bool, num_workers: int, data: st.DataObject
) -> None:
    per_pass = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
    assume(per_pass >= 3)
    epochs = 2 + 2 * len(history) // (per_pass - 2)
    # A plan that comes in one of the last two steps of a pass may find it over, and a newcomer that stands in it too late.
    # Nor in the step after another plan, which may not have been carried out yet.
    steps = [step for step in range(1, per_pass * epochs) if step % per_pass not in (0, per_pass - 1)]
    steps = [step for number, step in enumerate(steps) if number % 2 == 0]
    stops = sorted(data.draw(st.sets(st.sampled_from(steps), min_size=len(history), max_size=len(history))))
    config = {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "drop_last": drop_last,
        "num_workers": num_workers,
        "epochs": epochs,
        "stops": stops,
    }
    with Trial(functions.regression, config) as trial:
        for stop, num_replicas in zip([0, *stops], [1, *history], strict=True):
            if stop:
                trial.reach(stop)
            trial.reallocate(num_replicas)
        trial.finish()
        for replica in trial.all:
            trial.wait_for(f"the samples of {replica.member.replica_id}", lambda r=replica: r.has("samples"))
        passes: dict[int, list[int]] = {epoch: [] for epoch in range(epochs)}
        for replica in trial.all:
            for epoch, index in samples_of(replica):
                passes[epoch].append(index)
    for indices in passes.values():
        if drop_last:
            assert len(indices) == len(set(indices)) == per_pass * batch_size
        else:
            assert sorted(indices) == list(range(num_samples))


def samples_of(replica: Any) -> list[tuple[int, int]]:
    for kind, value in replica.messages:
        if kind == "samples":
            return value
    raise AssertionError(f"{replica.member.replica_id} did not tell its samples")


CASES = [
    "early_break",
    "two_loaders",
    "workers",
    "lr_scheduler",
    "accumulation",
    "adam",
    "clip",
    "zero_between",
    "wide",
]


@pytest.mark.parametrize("case", CASES)
def test_what_users_do_survives_reallocations(case: str) -> None:
    _, [undisturbed] = run([1], {"case": case}, functions.varied)
    _, moved = run([1, 3, 2], {"case": case, "stops": [2, 7]}, functions.varied)
    for result in moved:
        assert result["steps"] == undisturbed["steps"]
        assert result["lr"] == pytest.approx(undisturbed["lr"], rel=1e-12)
        assert_close(result["parameters"], undisturbed["parameters"], 1e-10)
    if case != "early_break":  # at the break, a batch of three replicas' shares is another number of samples
        for (_, error, count), (_, expected, expected_count) in zip(
            moved[0]["history"], undisturbed["history"], strict=True
        ):
            assert (error, count) == (pytest.approx(expected, rel=1e-9), expected_count)


def test_a_replica_that_returns_from_its_loop_before_the_others_does_not_stop_them() -> None:
    config = {"case": "early_return", "stops": [2], "epochs": 3}
    _, results = run([1, 3], config, functions.varied)
    assert results[0]["parameters"] == results[1]["parameters"] == results[2]["parameters"]
    assert [epoch for epoch, *_ in results[0]["history"]] == [0, 1, 2]


def test_autocast_survives_reallocations() -> None:
    _, [undisturbed] = run([1], {"case": "autocast"}, functions.varied)
    _, moved = run([1, 2], {"case": "autocast", "stops": [4]}, functions.varied)
    assert_close(moved[0]["parameters"], undisturbed["parameters"], 1e-2)
    assert moved[0]["parameters"] == moved[1]["parameters"]


def test_what_is_made_in_a_validation_loop_in_inference_mode_serves_the_training() -> None:
    _, [undisturbed] = run([1], {"epochs": 6}, functions.evaluates_first)
    trial, moved = run([1, 3, 2], {"epochs": 6, "stops": [6, 21]}, functions.evaluates_first)
    assert [switched.num_replicas for switched in trial.switches] == [1, 3, 2]
    for result in moved:
        assert result["steps"] == undisturbed["steps"] == 30
        assert_close(result["parameters"], undisturbed["parameters"], 1e-10)


def test_warming_up_does_not_mind_where_it_is_done() -> None:
    with torch.no_grad():
        warm_up.__wrapped__()
    with torch.inference_mode():
        warm_up.__wrapped__()


def test_a_trial_moves_to_other_nodes_without_a_survivor() -> None:
    _, [undisturbed] = run([1], {})
    with Trial(functions.regression, {"stops": [4, 10]}) as trial:
        trial.reallocate(2)
        trial.reach(4)
        trial.reallocate(2, nodes=["node-1", "node-2"], keep=[])
        trial.reach(10)
        switched = trial.reallocate(1, nodes=["node-0"], keep=[])
        [moved] = trial.finish()
        assert switched.num_nodes == 1
        assert [s.num_nodes for s in trial.switches] == [1, 2, 1]
    assert_close(moved["parameters"], undisturbed["parameters"], 1e-10)


def test_rank_0_can_leave_while_another_replica_stays() -> None:
    _, [undisturbed] = run([1], {})
    with Trial(functions.regression, {"stops": [5]}) as trial:
        trial.reallocate(2)
        trial.reach(5)
        trial.reallocate(1, keep=[trial.members[1]])
        [moved] = trial.finish()
    assert_close(moved["parameters"], undisturbed["parameters"], 1e-10)


def test_a_parked_replica_goes_on_where_it_was() -> None:
    _, [undisturbed] = run([1], {})
    with Trial(functions.regression, {"stops": [5]}) as trial:
        trial.reallocate(2)
        trial.reach(5)
        trial.reallocate(0, park=True)
        trial.wait_for("the snapshot of the pause", lambda: trial.messages("snapshot"))
        assert trial.reallocate(2).pause_s > 0
        results = trial.finish()
    assert_close(results[0]["parameters"], undisturbed["parameters"], 1e-10)
    assert results[0]["steps"] == 21


def test_a_paused_trial_goes_on_from_its_snapshot_elsewhere() -> None:
    _, [undisturbed] = run([1], {})
    with Trial(functions.regression, {"stops": [5]}) as trial:
        trial.reallocate(2)
        trial.reach(5)
        trial.reallocate(0)
        [(snapshot, steps)] = trial.wait_for("the snapshot of the pause", lambda: trial.messages("snapshot"))
    assert 4 <= steps <= 6
    with Trial(functions.regression, {}, snapshot=snapshot) as trial:
        trial.reallocate(2)
        results = trial.finish()
    assert_close(results[0]["parameters"], undisturbed["parameters"], 1e-10)


def test_a_newcomer_whose_code_does_not_like_skipped_loops_still_joins() -> None:
    config = {"epochs": 3}
    _, [undisturbed] = run([1], config, functions.divides_by_its_batches)
    with Trial(functions.divides_by_its_batches, {**config, "stops": [2, 8]}) as trial:
        trial.reallocate(1)
        trial.reach(2)
        late = trial.start()  # stands in epoch 0 ...
        trial.wait_for("the newcomer at its loop", lambda: late.take("ready"))
        trial.reallocate(1, keep=[], nodes=["node-1"])  # ... while the trial moves on to epoch 1
        trial.reach(8)
        trial.reallocate(2, joining=[late])
        results = trial.finish()
    assert results[0]["parameters"] == results[1]["parameters"]
    assert_close(results[0]["parameters"], undisturbed["parameters"], 1e-10)


def test_batch_sizes_follow_the_replicas_within_their_bounds() -> None:
    _, results = run([1, 3, 2], {"epochs": 3, "stops": [20, 60]}, functions.adaptive)
    for size, local, accum_steps, got in results[0]["sizes"]:
        assert 8 <= size <= 64
        assert 2 <= local <= 32
        assert got <= local
        assert size % (local * (accum_steps + 1)) == 0
    assert results[0]["progress"] == results[1]["progress"] >= 150


def test_training_in_eval_mode_makes_the_steps_of_one_replica_also_the_short_last_one() -> None:
    config = {"num_samples": 9, "batch_size": 4, "epochs": 2, "eval": True}
    _, [alone] = run([1], config)
    _, together = run([2], config)
    for replica in together:
        assert replica["steps"] == alone["steps"] == 6
        assert_close(replica["parameters"], alone["parameters"], 1e-10)
