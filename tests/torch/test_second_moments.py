"""What an optimizer divides gradients by, and whether it can be told yet."""

from __future__ import annotations

import pytest
import torch

from adaptdl.torch.second_moments import has_second_moments, second_moments

ADAM_LIKE = [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop]


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]


def make_steps(optimizer: torch.optim.Optimizer, updated: torch.nn.Parameter, num_steps: int) -> None:
    for _ in range(num_steps):
        updated.grad = torch.full_like(updated, 2.0)
        optimizer.step()


@pytest.mark.parametrize("kind", ADAM_LIKE)
def test_nothing_is_known_before_the_first_step_and_little_in_the_first_ones(
    kind: type[torch.optim.Optimizer],
) -> None:
    first, second = parameters()
    optimizer = kind([first, second])
    assert has_second_moments(optimizer)
    assert second_moments(optimizer, [first, second]) is None
    make_steps(optimizer, first, 10)
    moments = second_moments(optimizer, [first, second])
    assert moments is not None
    assert not moments.is_settled
    make_steps(optimizer, first, 50)
    moments = second_moments(optimizer, [first, second])
    assert moments is not None
    assert moments.is_settled


def test_a_parameter_that_was_never_updated_is_left_out() -> None:
    first, second = parameters()
    optimizer = torch.optim.Adam([first, second])
    make_steps(optimizer, first, 60)
    both, alone = second_moments(optimizer, [first, second]), second_moments(optimizer, [second])
    assert both is not None
    assert alone is not None
    gradients = [torch.full((3,), 4.0), torch.ones(2)]
    assert float(both.sqr(gradients)) == pytest.approx(3 * (4 / 2) ** 2, rel=1e-5)
    assert float(alone.sqr(gradients[1:])) == 0.0


def test_what_rarely_had_a_gradient_does_not_outweigh_everything() -> None:
    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.Adam([parameter])
    for step in range(200):
        parameter.grad = torch.full_like(parameter, 2.0)
        parameter.grad[-1] = 2e-4 if step == 0 else 0.0
        optimizer.step()
    moments = second_moments(optimizer, [parameter])
    assert moments is not None
    least = 0.01 * 2.0**2 * 99 / 100
    assert float(moments.sqr([torch.full((100,), 4.0)])) == pytest.approx(99 * 2**2 + 4.0**2 / least, rel=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adamax])
def test_some_optimizers_have_none(kind: type[torch.optim.Optimizer]) -> None:
    assert not has_second_moments(kind(parameters()))
