"""Made-up hyperparameter tuning: trials of one model that differ in learning rate and batch size.

  M₀          ``init_batch_size`` of a trial: a power of two                             samples
  lr          learning rate of a trial, log-uniform
  lr*         the best one for M₀: ``best_learning_rate``·√(M₀ / ``usual_batch_size``)
  d           log₁₀(lr / lr*), orders of magnitude from the best
  f           score reached in the end: best − slope·d², and no better than chance beyond `_DIVERGES`
  score(e)    f − (f − chance)·(1 + e/τ)^(−p) after e epochs, a power law; τ is longer for a small lr
  φ           gradient noise scale, from `first_noise_scale` to the last one, which is the larger the better the trial
              learns: what is left of the gradient's signal shrinks with the loss        samples

The step times of the built-in models are near those of one NVIDIA T4 per replica, four to a node, with 10 Gbit/s between nodes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams
from adaptdl.sim.application import ModelApplication
from adaptdl.sim.asha import asha_rungs
from adaptdl.sim.job import JobSpec

__all__ = ["TunedModel", "built_in_models", "tuning_workload"]

_SLOPE = 0.25
"""Part of (best − chance) that is lost one order of magnitude from the best learning rate."""

_DIVERGES = 1.0
"""Orders of magnitude above the best learning rate at which training does not converge any more."""

_FIRST_EPOCHS, _POWER = 1.0, 1.2
"""τ at the best learning rate and p."""


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """A model whose hyperparameters are tuned. Raises UsageError if its numbers contradict each other."""

    name: str
    perf_params: PerfParams
    num_samples: int
    """Samples of one epoch."""
    num_epochs: int
    """Of a trial that is not stopped."""
    batch_sizes: tuple[int, int]
    """Smallest and largest M₀."""
    usual_batch_size: int
    """The M₀ that `best_learning_rate` is for."""
    learning_rates: tuple[float, float]
    """Smallest and largest lr."""
    best_learning_rate: float
    max_batch_size: int
    """What the user lets a batch grow to, whatever M₀."""
    max_local_batch_size: int
    """What the memory of one device holds."""
    first_noise_scale: float
    """φ of the first epoch, samples."""
    last_noise_scale: float
    """φ of the last epoch of the best trial, samples."""
    chance: float
    """Score of a model that has learnt nothing."""
    best_score: float
    """Score of the best trial when complete, but for chance."""
    score_noise: float = 0.01
    """Standard deviation of f between trials of the same hyperparameters; of one measurement a third of it."""

    def __post_init__(self) -> None:
        (low, high), (slow, fast) = self.batch_sizes, self.learning_rates
        if not 1 <= low <= high <= self.max_batch_size:
            raise UsageError(
                f"model {self.name!r}: `1 <= low <= high <= max_batch_size` must hold for `batch_sizes`, but got "
                f"(batch_sizes={self.batch_sizes}, max_batch_size={self.max_batch_size})."
            )
        if not 0 < slow <= fast or self.num_epochs < 1 or self.num_samples < high:
            raise UsageError(
                f"model {self.name!r}: `0 < low <= high` must hold for `learning_rates`, `num_epochs >= 1` and "
                f"`num_samples >= {high}`, but got (learning_rates={self.learning_rates}, "
                f"num_epochs={self.num_epochs}, num_samples={self.num_samples})."
            )

    def application(self, init_batch_size: int | None = None, *, learnt: float = 1.0) -> ModelApplication:
        """The training of one trial with M₀ (None: the usual one) that gets to `learnt` of the best score, in [0, 1]."""
        size = init_batch_size or self.usual_batch_size
        last = self.first_noise_scale * (self.last_noise_scale / self.first_noise_scale) ** learnt
        return ModelApplication(
            name=self.name,
            perf_params=self.perf_params,
            bounds=BatchSizeBounds(
                init_batch_size=size,
                max_batch_size=self.max_batch_size,
                local_bsz_bounds=(1, self.max_local_batch_size),
                gradient_accumulation=True,
            ),
            num_epochs=self.num_epochs,
            epoch_progress=self.num_samples / size,
            first_grad_params=_grad_params(self.first_noise_scale, size),
            last_grad_params=_grad_params(last, size),
        )


def _grad_params(noise_scale: float, init_batch_size: int) -> GradParams:
    return GradParams(grad_sqr=1.0, grad_var=noise_scale / init_batch_size)


def built_in_models() -> Mapping[str, TunedModel]:
    """Models to make workloads of, by name: a small ConvNet, a ResNet-18 on small images, a small transformer."""
    convnet = TunedModel(
        name="convnet",
        perf_params=PerfParams(
            alpha_c=0.004, beta_c=2.5e-5, alpha_n=0.004, beta_n=2e-4, alpha_r=0.0012, beta_r=1e-4, gamma=1.5
        ),
        num_samples=60_000,
        num_epochs=30,
        batch_sizes=(32, 256),
        usual_batch_size=64,
        learning_rates=(1e-3, 0.5),
        best_learning_rate=0.03,
        max_batch_size=4096,
        max_local_batch_size=4096,
        first_noise_scale=60.0,
        last_noise_scale=2000.0,
        chance=0.1,
        best_score=0.993,
        score_noise=0.004,
    )
    resnet18 = TunedModel(
        name="resnet18",
        perf_params=PerfParams(
            alpha_c=0.02, beta_c=6.8e-4, alpha_n=0.12, beta_n=2e-3, alpha_r=0.008, beta_r=1.5e-3, gamma=1.8
        ),
        num_samples=50_000,
        num_epochs=60,
        batch_sizes=(32, 256),
        usual_batch_size=128,
        learning_rates=(3e-3, 1.0),
        best_learning_rate=0.1,
        max_batch_size=4096,
        max_local_batch_size=1024,
        first_noise_scale=150.0,
        last_noise_scale=6000.0,
        chance=0.1,
        best_score=0.95,
    )
    transformer = TunedModel(
        name="transformer",
        perf_params=PerfParams(
            alpha_c=0.03, beta_c=4.5e-3, alpha_n=0.22, beta_n=4e-3, alpha_r=0.03, beta_r=4e-3, gamma=2.0
        ),
        num_samples=40_000,
        num_epochs=20,
        batch_sizes=(16, 64),
        usual_batch_size=32,
        learning_rates=(1e-5, 3e-3),
        best_learning_rate=2e-4,
        max_batch_size=1024,
        max_local_batch_size=64,
        first_noise_scale=80.0,
        last_noise_scale=1500.0,
        chance=0.05,
        best_score=0.72,
    )
    return {model.name: model for model in (convnet, resnet18, transformer)}


def tuning_workload(
    num_trials: int,
    *,
    model: str | TunedModel = "resnet18",
    seed: int = 0,
    num_epochs: int | None = None,
    every_s: float = 0.0,
    requested_replicas: int = 1,
    grace_epochs: int = 1,
    reduction_factor: float = 4.0,
) -> list[JobSpec]:
    """Trials of one model with random hyperparameters; same arguments, same trials.

    The first n trials do not depend on `num_trials`.

    Args:
        num_trials: how many.
        model: one of `built_in_models`, or one of your own.
        seed: of the hyperparameters and the noise of the scores.
        num_epochs: of each trial that is not stopped; None: the model's.
        every_s: seconds from one submission to the next; 0: all together.
        requested_replicas: what policies of fixed size give each.
        grace_epochs: epochs before the first rung.
        reduction_factor: η, from one rung to the next.

    Raises:
        UsageError: no trials, an unknown model, or numbers out of range.
    """
    if num_trials < 1 or not every_s >= 0:
        raise UsageError(
            f"`num_trials >= 1` and `every_s >= 0` must hold, but got (num_trials={num_trials}, every_s={every_s})."
        )
    if isinstance(model, str):
        models = built_in_models()
        if model not in models:
            raise UsageError(f"`model` must be one of {', '.join(models)}, but is {model!r}.")
        model = models[model]
    if num_epochs is not None:
        model = dataclasses.replace(model, num_epochs=num_epochs)
    rungs = asha_rungs(model.num_epochs, grace_epochs=grace_epochs, reduction_factor=reduction_factor)
    rng = np.random.default_rng(seed)
    digits = len(str(num_trials - 1))
    return [
        _trial(
            model,
            rng,
            rungs,
            job_id=f"trial-{i:0{digits}}",
            submitted_s=i * every_s,
            requested_replicas=requested_replicas,
        )
        for i in range(num_trials)
    ]


def _trial(
    model: TunedModel,
    rng: np.random.Generator,
    rungs: list[int],
    *,
    job_id: str,
    submitted_s: float,
    requested_replicas: int,
) -> JobSpec:
    size, rate = _batch_size(model, rng.random()), _log_uniform(model.learning_rates, rng.random())
    distance = math.log10(rate / model.best_learning_rate) - 0.5 * math.log10(size / model.usual_batch_size)
    noise = rng.standard_normal(model.num_epochs + 1)  # of the trial, and of each epoch's measurement
    learnt = max(0.0, 1 - _SLOPE * distance**2) if distance < _DIVERGES else 0.0
    reach = model.best_score - model.chance
    final = model.chance + max(0.0, reach * learnt + model.score_noise * noise[0] * (learnt > 0))
    slowness = _FIRST_EPOCHS * max(1.0, 10**-distance) ** 0.5

    def score(epochs: int) -> float:
        curve = final - (final - model.chance) * (1 + epochs / slowness) ** -_POWER
        return float(curve + model.score_noise / 3 * noise[epochs])

    return JobSpec(
        job_id=job_id,
        application=model.application(size, learnt=learnt),
        submitted_s=submitted_s,
        requested_replicas=requested_replicas,
        requested_batch_size=size,
        rungs=tuple((epochs, score(epochs)) for epochs in rungs),
        score=score(model.num_epochs),
    )


def _batch_size(model: TunedModel, share: float) -> int:
    """A power of two within `batch_sizes` (the smallest of them if there is none); `share` in [0, 1)."""
    low, high = model.batch_sizes
    powers = [1 << k for k in range(high.bit_length()) if low <= 1 << k <= high] or [low]
    return powers[int(share * len(powers))]


def _log_uniform(bounds: tuple[float, float], share: float) -> float:
    low, high = bounds
    return float(low * (high / low) ** share)
