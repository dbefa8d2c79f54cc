"""The loss curve and the order of data do not notice reallocations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.torch import functions
from tests.torch.processes import Trial


def run(history: list[int], config: dict[str, Any], func: Any = functions.regression) -> tuple[Trial, list[Any]]:
    """Through `history` (replicas), a change after each step in config["stops"]."""
    with Trial(func, config) as trial:
        for stop, num_replicas in zip([0, *config.get("stops", [])], history, strict=True):
            if stop:
                trial.reach(stop)
            trial.reallocate(num_replicas)
        return trial, trial.finish()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.distributed
def test_1_2_3_1_replicas_end_with_the_parameters_of_an_undisturbed_run(dtype: torch.dtype, bound: float) -> None:
    config = {"dtype": dtype, "epochs": 3}
    _, [undisturbed] = run([1], config)
    _, [moved] = run([1, 2, 3, 1], {**config, "stops": [3, 9, 15]})
    expected, got = torch.tensor(undisturbed["parameters"]), torch.tensor(moved["parameters"])
    assert moved["steps"] == undisturbed["steps"] == 21
    assert torch.linalg.vector_norm(got - expected) <= bound * torch.linalg.vector_norm(expected)
