"""What is learned: digits by a ConvNet, text by a small transformer. Nothing is downloaded."""

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

__all__ = ["DIGITS", "TEXT", "Problem"]

_SEQUENCE, _WIDTH = 64, 64
_NUM_SEQUENCES, _NUM_VALIDATION_SEQUENCES = 4096, 128


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its data."""

    make: Callable[[], nn.Module]
    load: Callable[[], tuple[TensorDataset, TensorDataset]]
    """To train on, and to validate with: pairs of input and target."""

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, per target."""
        output = module(inputs)
        return functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


class _Transformer(nn.Module):
    """2 layers of width 64 that predict the next of 64 characters."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(_SEQUENCE, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_SEQUENCE))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.embedding(tokens) + self.positions, mask=self.mask, is_causal=True)
        return self.head(self.norm(x))


def _examples() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def _convnet() -> nn.Module:
    _examples()
    from mnist_model import ConvNet

    return ConvNet()


@functools.cache
def _digits() -> tuple[TensorDataset, TensorDataset]:
    _examples()
    from mnist_data import load_mnist

    return load_mnist()


@functools.cache
def _text() -> str:
    """What `help()` says of Python's keywords and topics: 465,000 characters."""
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


def _transformer() -> nn.Module:
    return _Transformer(len(set(_text())))


@functools.cache
def _sequences() -> tuple[TensorDataset, TensorDataset]:
    """Sequences drawn from the text; no two overlap."""
    text = _text()
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[character] for character in text])
    count = (len(tokens) - 1) // _SEQUENCE
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[
        : _NUM_SEQUENCES + _NUM_VALIDATION_SEQUENCES
    ]
    inputs, targets = (tokens[i : i + count * _SEQUENCE].reshape(count, _SEQUENCE)[order] for i in (0, 1))
    train, validate = slice(_NUM_SEQUENCES), slice(_NUM_SEQUENCES, None)
    return TensorDataset(inputs[train], targets[train]), TensorDataset(inputs[validate], targets[validate])


DIGITS = Problem(make=_convnet, load=_digits)
TEXT = Problem(make=_transformer, load=_sequences)
