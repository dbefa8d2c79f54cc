"""How many trials may live at once.

A coordinator takes no device, so Tune would start every trial it can draw, each of which would then wait for a device,
and early-stopping schedulers would lose the order they rely on. So Tune's search algorithm is asked for no more trials
than there are devices, unless the user has set a limit of their own. Trials that are paused do not count.

Schedulers that compare a whole population, and pause trials until the others have come as far, must have it: under these
there is no limit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchGenerator

__all__ = ["Admission", "wants_all_trials"]

logger = logging.getLogger(__name__)

_MARK = "limited_by_adaptdl"
"""Set on a generator that we limit. It is saved with it, as the limit is, which would look like the user's own when the
driver is started again."""


class Admission:
    """Limits the trials that a search algorithm lets live at once.

    Args:
        search_alg: Tune's.
    """

    def __init__(self, search_alg: Any) -> None:
        self._limited: Any = None
        if isinstance(search_alg, BasicVariantGenerator):
            if not search_alg.max_concurrent or getattr(search_alg, _MARK, False):
                setattr(search_alg, _MARK, True)
                self._limited = search_alg
        elif isinstance(search_alg, SearchGenerator) and not _has_limit(search_alg.searcher):
            search_alg.searcher = ConcurrencyLimiter(search_alg.searcher, max_concurrent=1)
            self._limited = search_alg.searcher
        if self._limited is None:
            logger.debug("%s limits its trials itself", type(search_alg).__name__)

    def allow(self, num_trials: int, *, num_paused: int = 0) -> None:
        """From now on at most so many trials at once, ≥ 1, besides those that are paused."""
        limit = max(1, num_trials) + num_paused
        if self._limited is not None and self._limited.max_concurrent != limit:
            self._limited.max_concurrent = limit

    def count_living(self, trial_ids: Iterable[str]) -> None:
        """Counts trials that were drawn before the limit was there."""
        if isinstance(self._limited, ConcurrencyLimiter):
            for trial_id in set(trial_ids) - self._limited.live_trials:
                self._limited.live_trials.add(trial_id)
                self._limited.num_unfinished_live_trials += 1


def wants_all_trials(scheduler: TrialScheduler) -> bool:
    """Whether a scheduler of Tune's needs all trials to be there before it decides. BOHB fills its brackets as it goes."""
    return isinstance(scheduler, (PopulationBasedTraining, HyperBandScheduler)) and not isinstance(
        scheduler, HyperBandForBOHB
    )


def _has_limit(searcher: Any) -> bool:
    while searcher is not None:
        if isinstance(searcher, ConcurrencyLimiter):
            return True
        searcher = getattr(searcher, "searcher", None)
    return False
