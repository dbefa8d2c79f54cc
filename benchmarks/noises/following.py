"""What is measured of the noise while a network learns, by one process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from noises.consecutive import Consecutive
from noises.training import Case, Training
from noises.truth import Noise, true_noise

__all__ = ["Look", "follow"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """At one step of a training."""

    step: int
    truth: Noise
    """Of the present parameters."""
    measured: Noise
    """By the library."""
    consecutive: Noise
    """By pairs of consecutive steps."""

    def distance(self, found: Noise) -> float:
        """|log(φ̂ / φ)|."""
        return abs(math.log(found.ratio / self.truth.ratio))


def follow(case: Case, num_steps: int) -> list[Look]:
    """Trains, and looks at the noise every so many steps; empty but on rank 0."""
    training, consecutive, looks = Training(case), Consecutive(), []
    for step in training.steps():
        if training.session.rank == 0:
            consecutive.see([p.grad for p in training.module.parameters() if p.grad is not None])
            params = training.session.grad_params
            if step % training.problem.look_steps == 0 and params is not None:
                looks.append(
                    Look(
                        step=step,
                        truth=true_noise(training.problem, training.module),
                        measured=Noise(grad_sqr=params.grad_sqr, grad_var=params.grad_var),
                        consecutive=consecutive.noise,
                    )
                )
        if step == num_steps:
            break
    return looks
