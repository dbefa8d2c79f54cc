"""The training function as a user of AdaptDL writes it, with a line in the log per batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import adaptdl.torch as adl
from adaptdl.goodput import BatchSizeBounds, GradParams
from adaptdl.torch import Batch
from adaptdl.torch.tuning import Tuner
from first_batches.samples import SlowSamples

__all__ = ["INIT_BATCH_SIZE", "STEPS_PER_CHANGE", "Handed", "Setting", "train"]

INIT_BATCH_SIZE, _OTHER_BATCH_SIZE = 32, 48
"""Between which the batch size changes. At 64 a single replica would make the first step of two parts."""
STEPS_PER_CHANGE = 16
"""Steps from one change to the next."""
_PEER_STEPS = 8
"""Steps after a change in which the peer is timed."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How is trained."""

    num_workers: int
    step_s: float
    """Slept in every step: as a device would compute, while this process has nothing to do."""
    num_changes: int
    """Of the batch size; then training ends. 0: replicas come and go, until the file ``stop`` is there."""
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Handed:
    """One batch, as it was handed out."""

    generation: int
    num_replicas: int
    batch_size: int
    first: int
    """Its first sample."""
    before_s: float
    """Monotonic time of the end of the step before."""
    chosen_s: float
    """Of the newest choice of a batch size, on rank 0: of a reallocation, data is all that comes after it."""
    handed_s: float
    pids: frozenset[int]
    """Of those that fetched it."""
    peer_s: float | None
    """How long a new DataLoader took for such a batch."""


class _Held(Tuner):
    """Keeps the batch size, however many replicas there are; notes when it was asked."""

    chosen_s = 0.0

    def choose(
        self, bounds: BatchSizeBounds, grad_params: GradParams | None, num_nodes: int, num_replicas: int, current: Batch
    ) -> Batch:
        self.chosen_s = time.monotonic()
        return _batch(current.batch_size, num_replicas)


def _batch(batch_size: int, num_replicas: int) -> Batch:
    return Batch(batch_size=batch_size, atomic_batch_size=batch_size // num_replicas)


def train(setting: Setting, log: list[Handed]) -> None:
    """Trains, and writes each batch to `log`."""
    session = adl.current_session()
    tuner = session.tuner = _Held()
    samples, peer_samples = (SlowSamples(setting.directory / name) for name in ("counts", "peer"))
    loader = adl.AdaptiveDataLoader(samples, INIT_BATCH_SIZE, num_workers=setting.num_workers)
    loader.autoscale_batch_size(2 * INIT_BATCH_SIZE, (INIT_BATCH_SIZE, 2 * INIT_BATCH_SIZE))
    module = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    model = adl.AdaptiveDataParallel(module, optimizer)
    num_since, num_changes, before_s = 0, 0, time.monotonic()
    for _ in adl.remaining_epochs_until(1):
        for features, numbers, pids in loader:
            handed_s = time.monotonic()
            num_since = 0 if log and session.generation != log[-1].generation else num_since + 1
            peer_s = None
            if session.rank == 0 and num_since == _PEER_STEPS:
                peer_s = _peer_s(peer_samples, len(numbers), setting.num_workers)
            log.append(
                Handed(
                    generation=session.generation,
                    num_replicas=session.num_replicas,
                    batch_size=loader.current_batch_size,
                    first=int(numbers[0]),
                    before_s=before_s,
                    chosen_s=tuner.chosen_s,
                    handed_s=handed_s,
                    pids=frozenset(pids.tolist()),
                    peer_s=peer_s,
                )
            )
            if _is_over(setting, num_changes, num_since):
                break
            if num_since == STEPS_PER_CHANGE and setting.num_changes:
                _change(loader)
                num_changes, num_since = num_changes + 1, -1
            optimizer.zero_grad()
            model(features).sum().backward()
            time.sleep(setting.step_s)
            optimizer.step()
            before_s = time.monotonic()


def _is_over(setting: Setting, num_changes: int, num_since: int) -> bool:
    if setting.num_changes:
        return num_changes == setting.num_changes and num_since == STEPS_PER_CHANGE
    return (setting.directory / "stop").exists()


def _change(loader: adl.AdaptiveDataLoader) -> None:
    """What the library does as rank 0 when a thought about the batch size has found a better one: the change comes with the next
    boundary."""
    loop = adl.current_session().loop
    assert loop is not None
    wanted = _OTHER_BATCH_SIZE if loader.current_batch_size == INIT_BATCH_SIZE else INIT_BATCH_SIZE
    loop.better_batch = _batch(wanted, 1)


def _peer_s(samples: SlowSamples, batch_size: int, num_workers: int) -> float:
    """From making a DataLoader to its first batch."""
    began = time.monotonic()
    batches = iter(DataLoader(samples, batch_size, num_workers=num_workers))
    next(batches)
    return time.monotonic() - began
