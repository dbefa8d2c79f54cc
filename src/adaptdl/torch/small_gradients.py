"""The gradients of a model so small that DistributedDataParallel takes about as long in each step as the model's own arithmetic.

Each gradient is copied, as it comes, to its place in one vector, of which it is a view from then on; once those of all parameters
are there, at the end of a backward pass, the vector is summed::

    IDLE --a forward pass begins--> EXPECTED --gradients of all have come--> summed: IDLE
    EXPECTED --a pass begins of which nothing is summed--> IDLE

The vector is laid out as the only bucket that DistributedDataParallel had for this model: replicas that still use that and
those that do not take part in the same collectives. Behind it there is room for a step exchange, which it may carry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from adaptdl.torch.buckets import Bucket
from adaptdl.torch.exchange import ROOM

__all__ = ["SmallGradients"]

_MOST_PARAMETERS = 64
"""Each of them takes some microseconds of a step."""


class SmallGradients:
    """The only bucket of a model in one generation.

    Args:
        bucket: of DistributedDataParallel, which holds all gradients.
        reduce: sums this bucket over the replicas, in place; called at the end of a backward pass, in its thread.
    """

    def __init__(self, bucket: Bucket, reduce: Callable[[], None]) -> None:
        self._reduce = reduce
        buffer, self._parameters = bucket.buffer(), bucket.parameters()
        self.vector = buffer.new_zeros(buffer.numel() + ROOM)
        """The gradients, and room for an exchange."""
        self._buffer = self.vector[: buffer.numel()]
        self._gradients = [
            self.vector.as_strided(part.size(), part.stride(), part.storage_offset() - buffer.storage_offset())
            for part in bucket.gradients()
        ]
        self._missing: set[int] = set()
        """Indices of parameters of which no gradient has come since they are expected."""
        self._is_expected = self._is_queued = False
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._arrive, index))
            for index, parameter in enumerate(self._parameters)
        ]

    @staticmethod
    def fits(bucket: Bucket) -> bool:
        """Whether it has few enough parameters."""
        return len(bucket.parameters()) <= _MOST_PARAMETERS

    def begin_pass(self, *, is_summed: bool) -> None:
        """Before a forward pass: whether what its backward pass computes is to be summed."""
        self._is_queued = False  # a pass before may have ended with an error
        if is_summed and not self._is_expected:
            self._missing.update(range(len(self._parameters)))
        self._is_expected = is_summed

    @property
    def missing(self) -> Sequence[torch.Tensor]:
        """Parameters that have got no gradient, though others have: they had no part in the loss."""
        if not self._is_expected or len(self._missing) == len(self._parameters):
            return []
        return [self._parameters[index] for index in sorted(self._missing)]

    def remove(self) -> None:
        """The generation ends."""
        for handle in self._handles:
            handle.remove()

    def _arrive(self, index: int, parameter: torch.Tensor) -> None:
        if not self._is_expected:
            return
        gradient, place = parameter.grad, self._gradients[index]
        if gradient is not place and gradient is not None:
            place.copy_(gradient.detach())
            parameter.grad = place
        self._missing.discard(index)
        if not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)

    def _end_pass(self) -> None:
        """At the end of a backward pass."""
        self._is_queued = False
        if self._is_expected and not self._missing:  # otherwise another pass may bring the others
            self._is_expected = False
            with torch.no_grad():
                self._reduce()

    # As a bucket.

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> torch.Tensor:
        return self._buffer

    def gradients(self) -> list[torch.Tensor]:
        return self._gradients

    def parameters(self) -> list[torch.Tensor]:
        return self._parameters
