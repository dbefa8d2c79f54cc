"""Norms that are dear take a hundredth of the time, and come often enough at first."""

from __future__ import annotations

import pytest

from adaptdl.torch.norm_pace import NormPace, SplitPace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def train(pace: NormPace, clock: Clock, *, num_steps: int, step_s: float, cost_s: float) -> int:
    """So many steps, in which norms are taken when that is due; in how many they were."""
    num_samples = num_without = 0
    for _ in range(num_steps):
        pace.begin_step()
        clock.now += step_s
        if num_without + 1 < pace.steps_per_sample(num_samples):
            num_without += 1
            continue
        with pace.spending():
            clock.now += cost_s
        num_samples, num_without = num_samples + 1, 0
    return num_samples


@pytest.mark.parametrize(("cost_s", "steps_per_sample"), [(0.0005, 1), (0.0039, 4), (0.0069, 7)])
def test_norms_take_a_hundredth_of_the_time_but_for_the_first(cost_s: float, steps_per_sample: int) -> None:
    clock = Clock()
    pace = NormPace(clock)
    num_samples = train(pace, clock, num_steps=3200, step_s=0.1, cost_s=cost_s)
    assert num_samples == pytest.approx(20 + (3200 - 20) / steps_per_sample, abs=6)
    assert pace.steps_per_sample(19) == 1


def test_most_is_learned_early_however_dear_it_is() -> None:
    clock = Clock()
    pace = NormPace(clock)
    train(pace, clock, num_steps=100, step_s=0.1, cost_s=0.1)
    assert [pace.steps_per_sample(number) for number in (0, 20, 160, 400, 640, 10_000)] == [1, 8, 8, 20, 32, 32]


def test_one_long_step_is_not_taken_for_many() -> None:
    clock = Clock()
    pace = NormPace(clock)
    train(pace, clock, num_steps=100, step_s=0.1, cost_s=0.0039)
    clock.now += 60.0  # a validation loop
    pace.begin_step()
    assert pace.steps_per_sample(100) == 4


@pytest.mark.parametrize(("split_s", "steps_per_split"), [(0.101, 4), (0.115, 5), (0.12, 7), (0.13, 8), (0.2, 8)])
def test_the_first_splits_take_a_few_hundredths_of_the_time_if_they_are_dear(
    split_s: float, steps_per_split: int
) -> None:
    pace = SplitPace()
    assert pace.steps_per_split(0) == 4
    pace.note(split_s=split_s, whole_s=0.1)
    assert pace.steps_per_split(5) == pytest.approx(steps_per_split, abs=1)


@pytest.mark.parametrize("split_s", [0.1, 0.2])
def test_later_splits_are_as_rare_as_other_norms_may_be_and_no_rarer(split_s: float) -> None:
    pace = SplitPace()
    pace.note(split_s=split_s, whole_s=0.1)
    assert [pace.steps_per_split(number) for number in (20, 160, 400, 640, 10_000)] == [8, 8, 20, 32, 32]
