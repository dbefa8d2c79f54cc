"""Gradients that are not finite, and batches that do not fit into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.survivors import EPOCHS, STEPS, SurvivingTrial, check, run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_step_whose_gradients_are_not_finite_is_skipped_and_counted_on_any_replicas(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = run(1, tmp_path / "one", [(0, 11, "nan")])
    together = run(2, tmp_path / "two", [(1, 11, "nan")])  # on one of two replicas
    for trial in (alone, together):
        assert [result["adaptdl/num_skipped_steps"] for result in trial.results] == [0, 1, 1]
        assert trial.ended[0]["steps"] == EPOCHS * STEPS
        assert trial.num_recoveries == 0
    for ended in together.ended:
        assert ended["weights"] == pytest.approx(alone.ended[0]["weights"], rel=1e-10)


@pytest.mark.parametrize(("num_replicas", "fits", "local_bsz", "passes"), [(1, 7, 6, 2), (2, 5, 3, 2), (3, 1, 1, 4)])
def test_a_batch_that_does_not_fit_is_made_of_smaller_passes(
    num_replicas: int, fits: int, local_bsz: int, passes: int, tmp_path: Path, undisturbed: SurvivingTrial
) -> None:
    trial = run(num_replicas, tmp_path, [], fits=fits)
    check(trial, undisturbed)
    assert len(trial.ended) == num_replicas
    for ended in trial.ended:
        assert ended["accumulation_steps"] == passes - 1


def test_a_batch_that_cannot_be_smaller_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="out of memory: 1 samples"):
        run(1, tmp_path, [], fits=0)
