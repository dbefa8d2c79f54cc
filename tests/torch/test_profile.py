"""The profile is of steady steps: what happens now and then, or once, is not taken for what steps take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import adaptdl.torch as adl
from tests.torch.processes import Trial

STEP_S, LONG_S = 0.005, 0.3
"""What a step takes, and whatever is not to be taken for one."""
BATCH_SIZE = 8


@pytest.fixture(autouse=True)
def session() -> Iterator[adl.ElasticSession]:
    with adl.open_session() as session:
        yield session


class Slow(torch.nn.Module):
    """Takes some time, and more in its first pass in a generation."""

    def __init__(self, session: adl.ElasticSession) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self._session = session
        self._seen: set[int] = set()
        self.slow_steps: set[int] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        is_new = torch.is_grad_enabled() and self._session.generation not in self._seen
        self._seen.add(self._session.generation)
        if is_new:
            self.slow_steps.add(self._session.num_steps + 1)
        time.sleep(LONG_S if is_new else STEP_S)
        return self.linear(inputs)


class Samples(TensorDataset):
    """`wait_s` says for how long one waits for the first sample of a batch, given the number of batches before it."""

    def __init__(self, num_batches: int, wait_s: Callable[[int], float] = lambda _: 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.randn(num_batches * BATCH_SIZE, 4, generator=generator))
        self._wait_s = wait_s

    def __getitem__(self, index: int) -> Any:
        if index % BATCH_SIZE == 0:
            time.sleep(self._wait_s(index // BATCH_SIZE))
        return super().__getitem__(index)


def train(
    data: Samples,
    module: torch.nn.Module,
    *,
    num_workers: int = 0,
    after_step: Callable[[adl.AdaptiveDataParallel, int], None] = lambda *_: None,
) -> dict[int, float]:
    """One pass; the steps that went into the profile: number → seconds."""
    session = adl.current_session()
    recorded: dict[int, float] = {}
    record = session.tuner.record

    def spy(key: Any, step_time_s: float, *more: float) -> None:
        recorded[session.num_steps] = step_time_s
        record(key, step_time_s, *more)

    session.tuner.record = spy  # type: ignore[method-assign]
    loader = adl.AdaptiveDataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers, prefetch_factor=None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for number, (inputs,) in enumerate(loader):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        after_step(model, number)
    return recorded


def profiled_step_time_s() -> float:
    (observation,) = adl.current_session().tuner.profile().values()
    return observation.step_time_s


def test_the_first_step_of_a_loop_is_left_out(session: adl.ElasticSession) -> None:
    module = Slow(session)
    recorded = train(Samples(12), module)
    assert module.slow_steps == {1}
    assert set(recorded) == set(range(2, 13))


def test_compilation_is_left_out() -> None:
    compiled_in: set[int] = set()

    def compiles(module: torch.fx.GraphModule, _: Any) -> Any:
        compiled_in.add(adl.current_session().num_steps + 1)
        return module

    torch._dynamo.reset()
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = Samples(12)
    data.tensors = (
        data.tensors[0][:-3],
    )  # the last batch has another shape: what is compiled for it is not the profile's
    recorded = train(data, torch.compile(module, backend=compiles))
    assert compiled_in == {1, 12}
    assert set(recorded) == set(range(2, 12))


def test_stalls_of_the_data_loader_are_left_out(session: adl.ElasticSession) -> None:
    times = train(Samples(51, lambda number: LONG_S if number in (3, 20, 21, 40) else 0.0), Slow(session))
    assert profiled_step_time_s() < 0.5 * statistics.fmean(times.values())


@pytest.mark.distributed
def test_data_loading_that_cannot_keep_up_is_not_left_out(session: adl.ElasticSession) -> None:
    """With four workers, one step in four waits: what a step takes is nevertheless a fourth of what a batch does."""
    times = train(Samples(49, lambda _: 0.1), Slow(session), num_workers=4)
    assert statistics.fmean(times.values()) > 0.02
    assert profiled_step_time_s() == pytest.approx(statistics.fmean(times.values()), rel=0.3)


def test_validation_within_a_loop_is_left_out(session: adl.ElasticSession) -> None:
    def validate(model: adl.AdaptiveDataParallel, number: int) -> None:
        if number % 5 == 4:
            model.eval()
            with torch.no_grad():
                for _ in range(10):
                    model(torch.zeros(1, 4))
            model.train()

    times = train(Samples(41), Slow(session), after_step=validate)
    assert profiled_step_time_s() < 0.6 * statistics.fmean(times.values())


def moved(config: dict[str, Any]) -> tuple[set[int], set[int]]:
    """The steps that were slow, and those that went into the profile."""
    module = Slow(adl.current_session())
    recorded = train(Samples(600), module)
    return module.slow_steps, set(recorded)


@pytest.mark.distributed
def test_the_first_step_after_a_reallocation_is_left_out() -> None:
    with Trial(moved) as trial:
        trial.reallocate(1)
        for num_replicas in (2, 1):
            trial.reach(trial.members[0].call("place").steps + 10)
            trial.reallocate(num_replicas)
        slow, recorded = trial.finish()[0]
    assert len(slow) == 3
    assert not slow & recorded
    assert len(recorded) >= 600 - 2 * len(slow)
