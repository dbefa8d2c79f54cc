"""What is trained: a multilayer perceptron of five million parameters on synthetic data, one thread per process."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["BATCH_SIZE", "STEPS_PER_EPOCH", "NumberedSamples", "make_net", "make_optimizer"]

BATCH_SIZE = 32
STEPS_PER_EPOCH = 4000
"""Minutes of training, so that changes come in the middle of a loop."""
_NUM_FEATURES, _NUM_HIDDEN, _NUM_CLASSES = 256, 1536, 10
_NUM_DIFFERENT = 1024
"""Samples kept in memory; the data set repeats them."""


class NumberedSamples(Dataset[tuple[Tensor, int, int]]):
    """(features, class, number of the sample); the numbers tell which batch one has."""

    def __init__(self, num_features: int = _NUM_FEATURES) -> None:
        generator = torch.Generator().manual_seed(0)
        self._features = torch.randn(_NUM_DIFFERENT, num_features, generator=generator)
        self._classes = torch.randint(_NUM_CLASSES, (_NUM_DIFFERENT,), generator=generator).tolist()

    def __len__(self) -> int:
        return STEPS_PER_EPOCH * BATCH_SIZE

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        index = number % _NUM_DIFFERENT
        return self._features[index], self._classes[index], number


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(_NUM_FEATURES, _NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(_NUM_HIDDEN, _NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(_NUM_HIDDEN, _NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(_NUM_HIDDEN, _NUM_CLASSES),
    )


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
