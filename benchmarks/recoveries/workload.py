"""What is trained: a small network on the numbered samples of `pauses`, by steps that last as long as sleeping makes them."""

from __future__ import annotations

import pauses.workload
import torch
from pauses.workload import BATCH_SIZE, make_optimizer
from torch import nn

__all__ = ["BATCH_SIZE", "STEP_S", "make_net", "make_optimizer", "make_samples"]

STEP_S = 0.075
"""Slept in every step, so that both sides make as many steps in a second, and have the machine's cores to recover with."""
_NUM_FEATURES, _NUM_HIDDEN, _NUM_CLASSES = 64, 256, 10


def make_samples() -> pauses.workload.NumberedSamples:
    return pauses.workload.NumberedSamples(_NUM_FEATURES)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(_NUM_FEATURES, _NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(_NUM_HIDDEN, _NUM_HIDDEN),
        nn.ReLU(),
        nn.Linear(_NUM_HIDDEN, _NUM_CLASSES),
    )
