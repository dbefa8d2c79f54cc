"""One process of a measurement: trains the same in both ways, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import adaptdl.torch as adl
from steps.cases import Case

__all__ = ["Timed", "measure_memory", "measure_time"]

_STEPS_PER_EPOCH = 40
_WARM_UP_STEPS = 3
_ROUND_S = 0.25
"""A round makes so many steps of each kind that it lasts at least about this long."""
_MIN_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What the process of rank 0 has measured of a case."""

    rounds: list[tuple[float, float]]
    """Seconds per step in each: adaptive, plain."""
    steps_per_round: int


def _join(rank: int, num_replicas: int, directory: str) -> None:
    """As torchrun would have started this process; the group is formed by the script itself."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(num_replicas),
        LOCAL_WORLD_SIZE=str(num_replicas),
        MASTER_ADDR="localhost",  # not used: the group is there
        MASTER_PORT="0",
    )
    store = dist.FileStore(str(Path(directory, "store")), num_replicas)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_replicas)


def measure_time(case: Case, rank: int, num_replicas: int, seconds: float, directory: str) -> Timed:
    """Rounds of adaptive and plain steps in turns, for about so long.

    Args:
        directory: in which the processes meet; empty.
    """
    _join(rank, num_replicas, directory)
    with adl.open_session():
        sides = [_adaptive(case, num_replicas), _plain(case, num_replicas)]
        for side in sides:
            for _ in range(_WARM_UP_STEPS):
                next(side)
        steps = _agreed(_ROUND_S / max(_timed(side, 2) for side in sides))
        begun, rounds = time.perf_counter(), []
        while _agreed(time.perf_counter() - begun < seconds or len(rounds) < _MIN_ROUNDS, least=0):
            order = (0, 1) if len(rounds) % 2 == 0 else (1, 0)
            took = {index: _timed(sides[index], steps) for index in order}
            rounds.append((took[0], took[1]))
    dist.destroy_process_group()
    return Timed(rounds=rounds, steps_per_round=steps)


def _agreed(number: float, least: int = 1) -> int:
    """Rank 0's, as a whole number."""
    value = torch.tensor([max(least, int(number))])
    dist.broadcast(value, src=0)
    return int(value)


def _timed(side: Iterator[None], num_steps: int) -> float:
    """Seconds per step."""
    begun = time.perf_counter()
    for _ in range(num_steps):
        next(side)
    return (time.perf_counter() - begun) / num_steps


def _adaptive(case: Case, num_replicas: int) -> Iterator[None]:
    """Makes a step each time it is asked for one. Batch sizes may be adapted, but in bounds that leave just one."""
    model_of = case.model
    local = model_of.local_batch_size
    batch_size = local * case.num_parts * num_replicas
    loader = adl.AdaptiveDataLoader(
        model_of.make_samples(batch_size * _STEPS_PER_EPOCH), batch_size=batch_size, shuffle=True
    )
    accumulates = case.num_parts > 1
    local_bsz_bounds = (local, local) if accumulates else (local // 2, batch_size)
    loader.autoscale_batch_size(batch_size, local_bsz_bounds, gradient_accumulation=accumulates)
    module = model_of.make()
    optimizer = model_of.make_optimizer(module)
    model = adl.AdaptiveDataParallel(module, optimizer)
    num_batches = 0
    for _ in adl.remaining_epochs_until(10**9):
        for inputs, targets in loader:
            optimizer.zero_grad()
            case.loss(model, inputs, targets).backward()
            optimizer.step()
            num_batches += 1
            if not adl.current_session().is_accumulating:
                yield


def _plain(case: Case, num_replicas: int) -> Iterator[None]:
    """The same without anything of ours."""
    model_of = case.model
    num_samples = model_of.local_batch_size * case.num_parts * num_replicas * _STEPS_PER_EPOCH
    samples = model_of.make_samples(num_samples)
    sampler: DistributedSampler[object] = DistributedSampler(samples, shuffle=True)
    loader = DataLoader(samples, batch_size=model_of.local_batch_size, sampler=sampler)
    module = model_of.make()
    optimizer = model_of.make_optimizer(module)
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        epoch += 1
        for index, (inputs, targets) in enumerate(loader):
            part = index % case.num_parts
            if part == 0:
                optimizer.zero_grad()
            is_last = part == case.num_parts - 1
            with nullcontext() if is_last else model.no_sync():
                (case.loss(model, inputs, targets) / case.num_parts).backward()
            if is_last:
                optimizer.step()
                yield


def measure_memory(case: Case, rank: int, num_replicas: int, adaptive: bool, directory: str) -> tuple[int, int]:
    """Bytes: the most that tensors held at one time while a model was made and trained for some steps; parameters and
    gradients."""
    _join(rank, num_replicas, directory)
    with (
        adl.open_session(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        side = (_adaptive if adaptive else _plain)(case, num_replicas)
        for _ in range(2 * _WARM_UP_STEPS):
            next(side)
    dist.destroy_process_group()
    held = most = 0
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, 2 * sum(p.numel() * p.element_size() for p in case.model.make().parameters())
