"""What is trained: three models, each plain, with accumulated gradients, and in bf16; and one whose step takes a millisecond."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

__all__ = ["CASES", "Case", "Model"]

_NUM_CLASSES = 10
_VOCABULARY, _SEQUENCE = 256, 128


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model with its data and optimizer."""

    name: str
    make: Callable[[], nn.Module]
    make_samples: Callable[[int], Dataset[Any]]
    """Of so many samples: (input, target)."""
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    local_batch_size: int
    """Samples in a forward-backward pass of one replica."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train a model."""

    model: Model
    variant: str
    num_parts: int
    """Forward-backward passes of a step."""
    bf16: bool
    max_ratio: float
    """Bound on the time of a step over a plain one's."""
    is_long: bool = False
    """A step may take minutes: measured only if it is asked for."""

    @property
    def name(self) -> str:
        return self.model.name if self.variant == "plain" else f"{self.model.name}, {self.variant}"

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of a batch, in this case's precision."""
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = module(inputs)
            return functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut (He et al., Deep Residual Learning, 2016)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _resnet18() -> nn.Module:
    """ResNet-18 for images of 32×32: a 3×3 stem without pooling, eight blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    num_in = 64
    for num_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_BasicBlock(num_in, num_out, stride), _BasicBlock(num_out, num_out, 1)]
        num_in = num_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_in, _NUM_CLASSES))


class _Transformer(nn.Module):
    """4 layers of width 256 that predict the next of 128 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 256)
        self.positions = nn.Parameter(torch.zeros(_SEQUENCE, 256))
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, _VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_SEQUENCE))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens) + self.positions, mask=self.mask, is_causal=True))


def _convnet() -> nn.Module:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from mnist_model import ConvNet

    return ConvNet()


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, _NUM_CLASSES))


def _vectors(num_samples: int) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_samples, 64, generator=generator)
    return TensorDataset(inputs, torch.randint(_NUM_CLASSES, (num_samples,), generator=generator))


def _images(num_channels: int, size: int) -> Callable[[int], Dataset[Any]]:
    def make(num_samples: int) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(num_samples, num_channels, size, size, generator=generator)
        return TensorDataset(images, torch.randint(_NUM_CLASSES, (num_samples,), generator=generator))

    return make


def _texts(num_samples: int) -> Dataset[Any]:
    tokens = torch.randint(_VOCABULARY, (num_samples, _SEQUENCE + 1), generator=torch.Generator().manual_seed(0))
    return TensorDataset(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


_RESNET = Model(
    name="ResNet-18",
    make=_resnet18,
    make_samples=_images(3, 32),
    make_optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
    local_batch_size=32,
)
_TRANSFORMER = Model(
    name="transformer",
    make=_Transformer,
    make_samples=_texts,
    make_optimizer=lambda module: torch.optim.AdamW(module.parameters(), lr=1e-4),
    local_batch_size=8,
)
_CONVNET = Model(
    name="ConvNet",
    make=_convnet,
    make_samples=_images(1, 28),
    make_optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
    local_batch_size=64,
)
_TINY = Model(
    name="perceptron",
    make=_perceptron,
    make_samples=_vectors,
    make_optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
    local_batch_size=64,
)
_FEW_IMAGES = dataclasses.replace(_RESNET, name="ResNet-18 of 2 images", local_batch_size=2)
"""Where a CPU has no arithmetic for convolutions in bf16, a step of 32 images takes more than a minute. In a shorter step, what
is constant weighs more."""


def _cases() -> list[Case]:
    found = [Case(model=_TINY, variant="plain", num_parts=1, bf16=False, max_ratio=1.01)]
    for model, max_ratio in ((_RESNET, 1.02), (_TRANSFORMER, 1.02), (_CONVNET, 1.10)):
        found += [
            Case(model=model, variant="plain", num_parts=1, bf16=False, max_ratio=max_ratio),
            Case(model=model, variant="accumulating 4", num_parts=4, bf16=False, max_ratio=1.03),
        ]
        few = _FEW_IMAGES if model is _RESNET else model
        found.append(Case(model=few, variant="bf16", num_parts=1, bf16=True, max_ratio=1.03))
    found.append(Case(model=_RESNET, variant="bf16", num_parts=1, bf16=True, max_ratio=1.03, is_long=True))
    return found


CASES = {case.name: case for case in _cases()}
