"""When the batch size of the loop that runs is thought over, and how all replicas come to the same one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adaptdl.torch.loop import Loop
from adaptdl.torch.tuning import Batch

if TYPE_CHECKING:
    from adaptdl.torch.loader import AdaptiveDataLoader
    from adaptdl.torch.session import ElasticSession

__all__ = ["agree_on_batch", "better_batch"]

_SHORTEST_RETUNE_S, _LONGEST_RETUNE_S = 0.1, 30.0
"""Between two thoughts about the batch size, which at most doubles at a time."""


def better_batch(session: ElasticSession, loop: Loop) -> Batch | None:
    """A batch size for the loop that runs that is worth a change; looked for at its start, and less and less often."""
    if not loop.loader.is_adaptive:
        return None
    if loop.better_batch is not None:
        return loop.better_batch
    now = time.monotonic()
    if now - loop.retuned_at > session.share_of_age_s(_SHORTEST_RETUNE_S, _LONGEST_RETUNE_S, now):
        loop.retuned_at = now
        batch = _choose(session, loop.loader)
        loop.better_batch = batch if batch != loop.loader.newest_batch else None
    return loop.better_batch


def agree_on_batch(session: ElasticSession) -> None:
    """After a reallocation: everybody takes the batch size that rank 0 chooses for the loop they are in."""
    loop, group = session.loop, session.group
    if loop is None:
        return
    assert group is not None
    for most_samples in group.all_gather_object(session.most_samples):
        session.fits_at_most(most_samples)
    loader = loop.loader
    loader.keep_within_memory()
    loader.batch = group.broadcast_object(_choose(session, loader) if group.rank == 0 else None)
    loop.retuned_at, loop.better_batch, loop.steady_since = time.monotonic(), None, None


def _choose(session: ElasticSession, loader: AdaptiveDataLoader) -> Batch:
    return session.tuner.choose(
        loader.bounds, session.grad_params, session.num_nodes, session.num_replicas, loader.newest_batch
    )
