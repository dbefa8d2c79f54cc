"""What is trained: a small network on samples of a known distribution, and digits by a ConvNet. Nothing is downloaded."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

__all__ = ["PROBLEMS", "Problem"]

_NUM_SAMPLES, _NUM_INPUTS, _NUM_HIDDEN, _NOISE = 16384, 64, 32, 0.1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its data."""

    load: Callable[[], TensorDataset]
    """Pairs of input and target."""
    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    """Mean over a batch of outputs and targets."""
    init_batch_size: int
    rate: float
    """Learning rate of SGD at M₀, without momentum."""
    num_steps: int
    """Of a training."""
    look_steps: int
    """Between two looks at the true noise."""
    chunk: int
    """Samples whose gradients are held at a time."""


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(_NUM_INPUTS, _NUM_HIDDEN), nn.Tanh(), nn.Linear(_NUM_HIDDEN, 1))


@functools.cache
def _known() -> TensorDataset:
    """x of a normal distribution, y what a network of the same kind makes of it, with noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_NUM_SAMPLES, _NUM_INPUTS, generator=generator)
    first, second = (
        torch.randn(rows, _NUM_HIDDEN, generator=generator) / rows**0.5 * scale
        for rows, scale in ((_NUM_INPUTS, 3.0), (1, 0.3))
    )
    targets = torch.tanh(inputs @ first) @ second[0]
    return TensorDataset(inputs, (targets + _NOISE * torch.randn(_NUM_SAMPLES, generator=generator))[:, None])


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(outputs, targets)


def _examples() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@functools.cache
def _digits() -> TensorDataset:
    _examples()
    from mnist_data import load_mnist

    return load_mnist()[0]


def _convnet() -> nn.Module:
    _examples()
    from mnist_model import ConvNet

    torch.manual_seed(1)
    return ConvNet()


PROBLEMS = {
    "known": Problem(
        load=_known,
        make=_network,
        loss=_half_square,
        init_batch_size=64,
        rate=0.1,
        num_steps=6000,
        look_steps=150,
        chunk=4096,
    ),
    "digits": Problem(
        load=_digits,
        make=_convnet,
        loss=functional.cross_entropy,
        init_batch_size=16,
        rate=0.02,
        num_steps=3000,
        look_steps=100,
        chunk=250,
    ),
}
