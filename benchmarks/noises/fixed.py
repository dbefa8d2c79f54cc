"""What is measured of the noise while the parameters stay as they are, by one process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptdl.torch.norm_pace import SplitPace
from noises.training import Case, Training
from noises.truth import Noise, true_noise

__all__ = ["SKIPPED_STEPS", "Measured", "measure"]

_WINDOW_STEPS = 500
"""Over which the library averages."""
SKIPPED_STEPS = 2 * _WINDOW_STEPS
"""Before readings are taken: averages are short at first, and the optimizer's second moments have to settle."""
_LOOK_STEPS = 20
"""Between two looks at the optimizer's second moments, which fluctuate."""


class _OftenSplit(SplitPace):
    """A user's single replica splits fewer steps of so small a network: as many as a hundredth of the time pays for."""

    def steps_per_split(self, num_samples: int) -> int:
        return 8


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The library's running estimates, one after each step, beside the truth."""

    truth: Noise
    mean: Noise
    """Of all readings."""
    spread: Noise
    """Standard deviation of the readings."""
    ratio_mean: float
    """Mean of φ / M₀."""
    ratio_spread: float
    num_readings: int

    @property
    def uncertainty(self) -> float:
        """Standard error of the mean of all readings, in units of their standard deviation: one of them averages about as many
        steps as a plain mean over two windows."""
        return min(1.0, (2 * _WINDOW_STEPS / self.num_readings) ** 0.5)


def measure(case: Case, num_steps: int) -> Measured | None:
    """Trains with a learning rate of 0, so that nothing changes; None but on rank 0."""
    training = Training(case, rate=0.0)
    training.session.split_pace = _OftenSplit()
    readings: list[Noise] = []
    weights: list[list[Tensor]] = []
    for step in training.steps():
        params = training.session.grad_params
        if step > SKIPPED_STEPS and params is not None:
            readings.append(Noise(grad_sqr=params.grad_sqr, grad_var=params.grad_var))
        if step > SKIPPED_STEPS and step % _LOOK_STEPS == 0:
            weights.append(_weights(training.optimizer))
        if step == num_steps:
            break
    if training.session.rank > 0:
        return None
    mean_weights = [torch.stack(looks).mean(0) for looks in zip(*weights, strict=True)]
    truth = true_noise(training.problem, training.module, mean_weights or None, bf16=case.bf16)
    return _summary(truth, readings)


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """1 / v̂ of each parameter (Kingma and Ba, Adam, 2015), v̂ at least a hundredth of its mean; nothing for SGD."""
    if not isinstance(optimizer, torch.optim.Adam):
        return []
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    moments = [state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"])) for state in states]
    return [1 / moment.clamp_min(0.01 * float(moment.mean())) for moment in moments]


def _summary(truth: Noise, readings: Sequence[Noise]) -> Measured:
    sqr, var = [reading.grad_sqr for reading in readings], [reading.grad_var for reading in readings]
    ratio = [reading.ratio for reading in readings]
    return Measured(
        truth=truth,
        mean=Noise(grad_sqr=statistics.fmean(sqr), grad_var=statistics.fmean(var)),
        spread=Noise(grad_sqr=statistics.pstdev(sqr), grad_var=statistics.pstdev(var)),
        ratio_mean=statistics.fmean(ratio),
        ratio_spread=statistics.pstdev(ratio),
        num_readings=len(readings),
    )
