"""A search algorithm whose trials arrive over time, as they do on a cluster that people share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher


class Arrivals(Searcher):
    """Hands out the suggestions of another searcher one by one.

    The next trial arrives `interval_s` after the newest one has reported its first result, or has ended: on a slow
    machine as on a fast one, each has trained for a while. Everything else is the other searcher's, which never learns
    that its suggestions waited.

    Args:
        searcher: whose suggestions they are.
        interval_s: from one trial's first result to the next trial; 0 lets them all come at once.
        clock: seconds, from anywhere; never runs backwards.
    """

    def __init__(self, searcher: Searcher, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if interval_s < 0:
            raise ValueError(f"`interval_s >= 0` must hold, but got (interval_s={interval_s})")
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher = searcher
        self._interval_s = interval_s
        self._clock = clock
        self._newest: str | None = None
        """The trial whose first result is waited for."""
        self._next_s = -math.inf

    @property
    def metric(self) -> Any:
        return self.searcher.metric

    @property
    def mode(self) -> Any:
        return self.searcher.mode

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration, or None as long as nobody has arrived."""
        if self._newest is not None or self._clock() < self._next_s:
            return None
        suggestion = self.searcher.suggest(trial_id)
        if self._interval_s > 0 and suggestion is not None and suggestion != Searcher.FINISHED:
            self._newest = trial_id
        return suggestion

    def _settled(self, trial_id: str) -> None:
        if trial_id == self._newest:
            self._newest = None
            self._next_s = self._clock() + self._interval_s

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return self.searcher.set_search_properties(metric, mode, config, **spec)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        return self.searcher.set_max_concurrency(max_concurrent)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._settled(trial_id)
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._settled(trial_id)
        self.searcher.on_trial_complete(trial_id, result=result, error=error)

    def add_evaluated_point(self, *args: Any, **kwargs: Any) -> None:
        self.searcher.add_evaluated_point(*args, **kwargs)

    def save(self, checkpoint_path: str) -> None:
        self.searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.searcher.restore(checkpoint_path)

    def get_state(self) -> dict[str, Any]:
        """Nothing: a resumed experiment's clock starts anew, and the searcher saves its own state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass
