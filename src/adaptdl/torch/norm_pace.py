"""How often to take norms that are dear, or to split a step for them."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["NormPace", "SplitPace", "longest_steps_per_sample"]

_SHARE = 0.01
"""Of the time of training, for norms."""
_DENSE_SAMPLES = 20
"""So many come first, one in each step: without any, batch sizes cannot be chosen."""
_LONGEST_STEPS, _LONGEST_STEPS_AT_FIRST, _SAMPLES_PER_STEP = 32, 8, 20
"""However dear they are, there is one in so few steps: a step more for each of so many samples, from the fewest to the most. Most
is to be learned early, when there are few samples, and gradients change fast."""
_STEPS_PER_SPLIT_AT_FIRST, _SHARE_AT_FIRST = 4, 0.03
"""So often at first, unless steps that are split take more than this share of the time. Later they are as rare as other norms may
be, and no rarer where a split costs most of a step: with a quarter of the samples φ was off by a factor of three at the median
while digits were learned, and of two with all of them."""
_REMEMBERED = 8
"""Steps of which it is known what they took, or what norms cost in them."""


def longest_steps_per_sample(num_samples: int) -> int:
    """A sample should be taken in one step of so many at least, however dear it is, after so many samples."""
    return min(_LONGEST_STEPS, max(_LONGEST_STEPS_AT_FIRST, num_samples // _SAMPLES_PER_STEP))


class NormPace:
    """Watches what norms cost and what steps take, of one model in one generation: the former is to be a hundredth of the latter.

    On a device that computes on its own, what is known of the cost is the time it takes to ask for it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_at: float | None = None
        self._spent_s = 0.0
        self._costs_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._steps_s: deque[float] = deque(maxlen=_REMEMBERED)

    def begin_step(self) -> None:
        """The gradients of a step begin to arrive."""
        now = self._clock()
        if self._begun_at is not None:
            self._steps_s.append(now - self._begun_at)
        if self._spent_s > 0:
            self._costs_s.append(self._spent_s)
        self._begun_at, self._spent_s = now, 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around what takes norms."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent_s += self._clock() - began

    def steps_per_sample(self, num_samples: int) -> int:
        """Norms should be taken in one step of so many, after so many samples; ≥ 1."""
        if num_samples < _DENSE_SAMPLES or not self._costs_s or not self._steps_s:
            return 1
        share = statistics.median(self._costs_s) / min(self._steps_s)  # between steps there may be a validation loop
        return min(longest_steps_per_sample(num_samples), max(1, math.ceil(share / _SHARE)))


class SplitPace:
    """Watches what it costs a single replica to make a step of two parts: little for a large model, and nearly a second step for
    one so small that its kernels take no time."""

    def __init__(self) -> None:
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        """Of split steps, in steps."""

    def note(self, *, split_s: float, whole_s: float) -> None:
        """A split step took so long, > 0, and others of the same samples take so long, > 0."""
        self._costs.append(split_s / whole_s - 1)

    def steps_per_split(self, num_samples: int) -> int:
        """One step in so many should be split, after so many samples; ≥ 1."""
        longest = longest_steps_per_sample(num_samples)
        if num_samples >= _DENSE_SAMPLES:
            return longest
        cost = statistics.median(self._costs) if self._costs else 0.0
        return min(longest, max(_STEPS_PER_SPLIT_AT_FIRST, math.ceil(cost / _SHARE_AT_FIRST)))
