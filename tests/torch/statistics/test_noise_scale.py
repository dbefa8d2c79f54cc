"""What is measured of |g|² and of the variance of gradients is what they are: on real gloo processes, one to four."""

from __future__ import annotations

from typing import Any

import pytest

from tests.torch.processes import Trial
from tests.torch.statistics.known_noise import measure

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ALL_AT_ONCE = "Adam, accumulating 3, two groups"
CASES: dict[str, dict[str, Any]] = {
    "linear": {"network": "linear", "local_batch": 64},
    "Adam": {"network": "tanh", "optimizer": "Adam", "local_batch": 64},
    "bf16, two groups": {"network": "tanh", "groups": 2, "bf16": True},
    "accumulating 3": {"network": "tanh", "num_parts": 4},
    ALL_AT_ONCE: {
        "network": "tanh",
        "optimizer": "Adam",
        "groups": 2,
        "num_parts": 4,
        "local_batch": 64,
    },
}
STEPS = {1: 2500, 2: 1500, 4: 700}


@pytest.mark.parametrize(
    ("num_replicas", "case"),
    [(1, case) for case in CASES]
    + [(2, "Adam"), (2, "bf16, two groups"), (2, ALL_AT_ONCE), (4, "linear"), (4, ALL_AT_ONCE)],
)
def test_the_noise_of_known_gradients_is_measured_within_5_percent(num_replicas: int, case: str) -> None:
    with Trial(measure, {"num_steps": STEPS[num_replicas], **CASES[case]}) as trial:
        trial.reallocate(num_replicas)
        (found, *others) = trial.finish()
    assert all(other == found for other in others)
    assert found.grad_sqr == pytest.approx(found.true_grad_sqr, rel=0.05)
    assert found.grad_var == pytest.approx(found.true_grad_var, rel=0.05)
