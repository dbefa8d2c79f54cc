"""What the trials train: a small classifier on synthetic data, in double precision, with a fixed batch size.

With a fixed batch size the sequence of global batches does not depend on the replicas, so that a trial ends with the
parameters it would have had undisturbed. In double precision rounding is 1e-15 of them, and a single sample that was lost
or learnt from twice stands out.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import adaptdl.torch as adl
from storm.batch_log import BatchWriter

__all__ = ["NUM_SAMPLES", "STEPS_PER_EPOCH", "EpochEnd", "read_states", "train"]

_BATCH_SIZE = 48
STEPS_PER_EPOCH = 33
NUM_SAMPLES = _BATCH_SIZE * (STEPS_PER_EPOCH - 1) + 2
"""The last step of a pass has two samples: of three replicas one has nothing, and computes a padding."""
_NUM_TEST = 1000
_NUM_FEATURES, _NUM_HIDDEN, _NUM_CLASSES = 32, 64, 10
_NOISE = 0.1
"""Standard deviation of what the teacher's scores are disturbed with; makes 100 % impossible."""


class _NumberedSamples(Dataset[tuple[Tensor, int, int]]):
    """(features, class, number of the sample), labelled by a linear teacher.

    Args:
        seed: of the data; the teacher is always the same.
        num_samples: how many.
    """

    def __init__(self, seed: int, num_samples: int) -> None:
        teacher = torch.randn(_NUM_FEATURES, _NUM_CLASSES, generator=torch.Generator().manual_seed(0)).double()
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(num_samples, _NUM_FEATURES, generator=generator).double()
        scores = self.features @ teacher / _NUM_FEATURES**0.5
        self.classes = (scores + _NOISE * torch.randn(scores.shape, generator=generator)).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        return self.features[number], int(self.classes[number]), number


def train(config: dict[str, Any]) -> None:
    """Trains for ``config["epochs"]``, and reports the accuracy after each.

    Config: trial (number, seeds all), epochs, lr, step_s (slept in every step), directory (for the log of batches and
    the state after each epoch), with_log.
    """
    torch.set_num_threads(1)
    session = adl.current_session()
    directory, replica = Path(config["directory"], str(config["trial"])), session.replica
    writer = BatchWriter(directory, replica.replica_id, replica.node_id) if config["with_log"] else None
    try:
        _train(config, directory, writer)
    finally:
        if writer is not None:
            writer.ended()


def _train(config: dict[str, Any], directory: Path, writer: BatchWriter | None) -> None:
    seed, session = 1 + config["trial"], adl.current_session()
    test_set = _NumberedSamples(seed=0, num_samples=_NUM_TEST)
    loader = adl.AdaptiveDataLoader(
        _NumberedSamples(seed, NUM_SAMPLES), batch_size=_BATCH_SIZE, shuffle=True, seed=seed
    )
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(_NUM_FEATURES, _NUM_HIDDEN), nn.Tanh(), nn.Linear(_NUM_HIDDEN, _NUM_CLASSES)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9, weight_decay=1e-3)
    model = adl.AdaptiveDataParallel(net, optimizer)
    for epoch in adl.remaining_epochs_until(config["epochs"]):
        num_padding = loader.num_padding
        for features, classes, numbers in loader:
            if writer is not None:
                writer.handed_out(
                    generation=session.generation,
                    rank=session.rank,
                    num_replicas=session.num_replicas,
                    step=session.num_steps,
                    epoch=epoch,
                    samples=numbers.tolist(),
                    padding=loader.num_padding > num_padding,
                )
            num_padding = loader.num_padding
            time.sleep(config["step_s"])
            optimizer.zero_grad()
            functional.cross_entropy(model(features), classes).backward()
            optimizer.step()
        accuracy = _accuracy(net, test_set)
        if session.joined:
            _write_state(net, epoch, accuracy, directory / f"{session.replica.replica_id}.state")
        adl.report({"accuracy": accuracy, "epoch": epoch})


@torch.no_grad()
def _accuracy(net: nn.Module, samples: _NumberedSamples) -> float:
    """The share of the samples that are given their class."""
    return float((net(samples.features).argmax(dim=1) == samples.classes).double().mean())


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """What a replica had at the end of an epoch."""

    accuracy: float
    parameters: Tensor
    """All of them, flat."""


def _write_state(net: nn.Module, epoch: int, accuracy: float, path: Path) -> None:
    """Every replica writes its own, since it may be the last one to do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])
    unfinished = path.with_suffix(".unfinished")
    torch.save({"epoch": epoch, "accuracy": accuracy, "parameters": flat}, unfinished)
    os.replace(unfinished, path)


def read_states(directory: Path, epoch: int) -> list[EpochEnd]:
    """What those replicas of a trial had that saw the end of this epoch."""
    saved = [torch.load(path) for path in sorted(directory.glob("*.state"))]
    return [EpochEnd(accuracy=one["accuracy"], parameters=one["parameters"]) for one in saved if one["epoch"] == epoch]
