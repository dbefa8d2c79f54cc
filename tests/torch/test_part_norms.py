"""Each part's gradient is measured on its way, whatever it is added to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptdl.torch.loop import Micro
from adaptdl.torch.norm_pace import NormPace
from adaptdl.torch.part_norms import PartNorms
from adaptdl.torch.second_moments import SecondMoments, second_moments

NUM_PARTS = 3


def micro() -> Micro:
    return Micro(index=0, count=NUM_PARTS, size=4, previous_size=0, share=12, batch_size=12, num_shares=1)


class Network(nn.Module):
    """A shared layer, a frozen one, and one that no output needs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.frozen, self.unused = nn.Linear(300, 300), nn.Linear(300, 300), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.shared(torch.tanh(self.frozen(self.shared(inputs))))
        return output.square().mean()


def watched(network: nn.Module, moments: SecondMoments | None, *, passes: int = 1) -> PartNorms:
    """Three parts, their gradients accumulated, each in `passes` backward passes."""
    norms = PartNorms(micro(), list(network.parameters()), moments, NormPace())
    for part in parts():
        for _ in range(passes):
            network(part).backward()
        norms.end_part()
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1.5  # as gradients of parts before are brought to the units of the next one
    return norms


def parts() -> list[torch.Tensor]:
    return list(torch.randn(NUM_PARTS, 4, 300, generator=torch.Generator().manual_seed(1)))


def alone(network: nn.Module, part: torch.Tensor) -> list[torch.Tensor]:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [grad for grad in torch.autograd.grad(network(part), parameters, allow_unused=True) if grad is not None]


def test_the_mean_is_over_the_norms_of_single_parts() -> None:
    torch.manual_seed(0)
    network = Network()
    found = watched(network, None).take()
    expected = [sum(float(grad.square().sum()) for grad in alone(network, part)) for part in parts()]
    assert found is not None
    assert float(found) == pytest.approx(sum(expected) / NUM_PARTS, rel=1e-4)


def test_they_are_as_the_optimizer_sees_them() -> None:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for part in parts() * 30:
        optimizer.zero_grad()
        network(part).backward()
        optimizer.step()
    optimizer.zero_grad()
    moments = second_moments(optimizer, list(network.parameters()))
    found = watched(network, moments).take()
    used = second_moments(optimizer, list(network.shared.parameters()))
    assert used is not None
    expected = [float(used.sqr(alone(network, part))) for part in parts()]
    assert found is not None
    assert float(found) == pytest.approx(sum(expected) / NUM_PARTS, rel=1e-4)


def test_parts_whose_backward_passes_came_in_pieces_cannot_be_told_apart() -> None:
    assert watched(Network(), None, passes=2).take() is None


def test_nothing_is_looked_at_afterwards() -> None:
    network = Network()
    norms = watched(network, None)
    first = norms.take()
    network(parts()[0]).backward()
    assert norms.take() == first
