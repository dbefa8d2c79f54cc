"""A batch size other than M₀ that stays as it is."""

from __future__ import annotations

from adaptdl.goodput import BatchSizeBounds, GradParams
from adaptdl.torch import AdaptiveDataLoader, Batch, ElasticSession
from adaptdl.torch.tuning import Tuner

__all__ = ["hold"]


class _Held(Tuner):
    """Chooses one batch, whatever is known."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._batch = batch

    def choose(
        self, bounds: BatchSizeBounds, grad_params: GradParams | None, num_nodes: int, num_replicas: int, current: Batch
    ) -> Batch:
        return self._batch


def hold(session: ElasticSession, loader: AdaptiveDataLoader, batch_size: int) -> None:
    """From the next loop on, steps are of `batch_size`. On one replica they are made of two parts, so that the noise of gradients
    is seen in each of them, as it is on two replicas."""
    num_parts = 1 if session.num_replicas > 1 else 2
    size, rest = divmod(batch_size, session.num_replicas * num_parts)
    assert rest == 0, "all parts are of the same size"
    loader.batch = Batch(batch_size=batch_size, atomic_batch_size=size, accum_steps=num_parts - 1)
    session.tuner = _Held(loader.batch)
