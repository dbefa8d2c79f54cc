"""When a run reached its target, and when one at another batch size should.

==========  =========================================================
M₀, M       the user's batch size, and another one
φ           gradient noise scale, as measured in the run at M₀
gain(φ, M)  steps at M₀ that a step at M is worth
==========  =========================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from adaptdl.goodput import gain, noise_scale
from learning.tasks import Task
from learning.training import Point

__all__ = ["noise_scales", "predicted_steps", "reached"]


def reached(task: Task, points: Sequence[Point]) -> Point | None:
    """The first point at the target; None: it was not reached."""
    return next((point for point in points if task.reached(point.value)), None)


def predicted_steps(task: Task, at_init: Sequence[Point], batch_size: int) -> float:
    """Steps at M for the progress at which the run at M₀ has reached the target: Σ 1 / gain(φ, M) over its steps. Those of
    the warm-up, before φ is known, are at M₀ in either run."""
    end = reached(task, at_init)
    assert end is not None
    steps = float(task.warm_up_steps)
    for before, point in itertools.pairwise(at_init):
        number = point.steps - max(before.steps, task.warm_up_steps)
        if number > 0 and point.steps <= end.steps:
            assert point.grad_params is not None
            steps += number / float(gain(point.grad_params, task.init_batch_size, batch_size))
    return steps


def noise_scales(task: Task, points: Sequence[Point]) -> list[float]:
    """φ along a run."""
    known = [point.grad_params for point in points if point.grad_params is not None]
    return [float(noise_scale(grad_params, task.init_batch_size)) for grad_params in known]
