from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from adaptdl.errors import UsageError
from adaptdl.goodput import noise_scale
from adaptdl.sim import ModelApplication, built_in_models, tuning_workload

names = pytest.mark.parametrize("name", built_in_models())


def application(job: object) -> ModelApplication:
    made = job.application  # type: ignore[attr-defined]
    assert isinstance(made, ModelApplication)
    return made


@names
def test_the_same_seed_gives_the_same_trials_and_another_one_others(name: str) -> None:
    assert tuning_workload(8, model=name, seed=1) == tuning_workload(8, model=name, seed=1)
    assert tuning_workload(8, model=name, seed=1) != tuning_workload(8, model=name, seed=2)


def test_more_trials_leave_the_first_ones_as_they_are() -> None:
    assert tuning_workload(8, seed=1) == tuning_workload(10, seed=1)[:8]


@names
def test_trials_differ_in_batch_size_noise_and_score(name: str) -> None:
    model, jobs = built_in_models()[name], tuning_workload(64, model=name)
    sizes = {job.requested_batch_size for job in jobs}
    assert len(sizes) > 2
    assert (min(sizes), max(sizes)) == model.batch_sizes  # type: ignore[type-var]
    scores = [job.score for job in jobs]
    assert model.chance - 0.02 < min(scores) < 0.8 * max(scores)
    assert model.best_score - 0.05 < max(scores) < 1
    last = [float(noise_scale(application(job).last_grad_params, application(job).init_batch_size)) for job in jobs]
    assert np.corrcoef(scores, np.log(last))[0, 1] > 0.9  # what learns better is noisier in the end
    assert max(last) <= model.last_noise_scale * 1.001


@names
def test_whatever_the_batch_size_an_epoch_has_the_same_samples(name: str) -> None:
    for job in tuning_workload(8, model=name):
        made = application(job)
        assert made.epoch_progress * made.init_batch_size == pytest.approx(built_in_models()[name].num_samples)


def test_rungs_hold_what_a_learning_curve_has_reached_by_then() -> None:
    jobs = tuning_workload(64, num_epochs=30, grace_epochs=2, reduction_factor=3)
    assert {tuple(epochs for epochs, _ in job.rungs) for job in jobs} == {(2, 6, 18)}
    curves = np.array([[*(score for _, score in job.rungs), job.score] for job in jobs])
    assert np.all(np.diff(np.mean(curves, axis=0)) > 0)
    assert np.corrcoef(curves[:, 0], curves[:, -1])[0, 1] > 0.7  # an early score tells something of the last one


def test_trials_come_together_or_one_after_another() -> None:
    assert {job.submitted_s for job in tuning_workload(3)} == {0.0}
    assert [job.submitted_s for job in tuning_workload(3, every_s=20.0)] == [0.0, 20.0, 40.0]


def test_a_model_of_ones_own() -> None:
    mine = dataclasses.replace(built_in_models()["convnet"], name="mine", batch_sizes=(48, 48), num_epochs=2)
    (job,) = tuning_workload(1, model=mine, requested_replicas=4)
    assert (job.requested_batch_size, job.requested_replicas, application(job).num_epochs) == (48, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_trials": 0}, "`num_trials >= 1`"),
        ({"model": "resnet"}, "must be one of convnet, resnet18, transformer, but is 'resnet'"),
        ({"num_epochs": 0}, "`num_epochs >= 1`"),
        ({"reduction_factor": 1.0}, "`reduction_factor > 1`"),
    ],
)
def test_numbers_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tuning_workload(**{"num_trials": 1, **arguments})  # type: ignore[arg-type]
