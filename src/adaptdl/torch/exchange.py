"""The step exchange: the one small collective of every training step.

It is launched with the first gradient bucket of a step and read at the boundary after the step, so nothing waits for it.
The vector is summed over the replicas. Its entries:

=============  ==========================================================================================
attention      1 on rank 0 if it has a notice for everybody
left           1 if this replica has left the loop and only keeps the others company
sums           1 if it has left and has accumulators, whose sums are to be put together once all have left
interrupted    1 if this replica was asked to stop (Ctrl-C)
parted         1 if it has left, and has seen that only some had
carried        1 if gradients of this replica are in the same collective
carrier        1 if this replica's gradients can carry the exchange after this one
per model      1 if what follows is a usable sample; share-weighted squared norm of the local gradient, squared norm of the
               averaged gradient / K, both of the step *before* (they are not known yet when the vector leaves); 1 on rank
               0 if norms should be taken in the step after this one
=============  ==========================================================================================

A collective takes as long for three numbers as for a thousand, and the step of a tiny model not much longer. So where all
gradients are one small bucket, the exchange travels at its end, and there is one collective in a step, as without any exchange::

    ALONE --all said carrier--> CARRIED --one did not--> ALONE

What was said in one exchange holds for the next one, so that all replicas, wherever they are, launch the same collective: one
that has no gradients (it has left the loop, or begins one) sends zeros in their place. If nobody's gradients are in it after all
(there are more models now), they follow by themselves.

A small vector is gathered, and every replica sums for itself: a gloo ring gathers in K - 1 rounds of one message, and reduces in
twice as many, of several. All add in the order of ranks, vector by vector, so that the sums are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from adaptdl.torch.buckets import Bucket
from adaptdl.torch.group import Group, GroupBroken

__all__ = ["ROOM", "Carrier", "Exchanged", "StepExchange"]

_NUM_FIXED, _NUM_PER_MODEL = 7, 4
ROOM = _NUM_FIXED + _NUM_PER_MODEL
"""Elements that an exchange adds to gradients which carry it: those of the only model."""
_MOST_CARRYING = 2**18
"""Elements of gradients that are copied for a ride: about as many as DistributedDataParallel puts into its first bucket."""
_MOST_GATHERED = 2**16
"""Elements that a replica gets from all in one exchange; with more of them, to reduce is sooner done."""


class Carrier(NamedTuple):
    """The only bucket of a model's gradients."""

    numel: int
    dtype: torch.dtype

    @classmethod
    def of(cls, bucket: Bucket) -> Carrier | None:
        """`bucket`, a first one, if it can carry an exchange: a copy of it must be cheap, and hold the entries."""
        buffer = bucket.buffer()
        if not bucket.is_last() or buffer.device.type != "cpu" or buffer.numel() > _MOST_CARRYING:
            return None
        return cls(buffer.numel(), buffer.dtype) if buffer.dtype in (torch.float32, torch.float64) else None


class Exchanged(NamedTuple):
    """What one exchange said, summed over the replicas."""

    attention: bool
    num_left: int
    has_sums: bool
    """Whether one of those that have left has accumulators."""
    interrupted: bool
    parted: bool
    """Some have left the loop before others."""
    was_carried: bool
    """Gradients of the replicas that had any are summed by it."""
    is_carried_next: bool
    """Whether all could carry the next one."""
    samples: tuple[tuple[float, float] | None, ...]
    """Per model: share-weighted mean of local squared norms, squared norm of the average; None if a replica had none."""
    norms_due: tuple[bool, ...]
    """Per model."""


class StepExchange:
    """Launches and reads the exchanges of one generation."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._entries: list[float] | None = None
        """This replica's, of the exchange that was not taken yet."""
        self._vector: torch.Tensor | None = None
        """Of the exchange that has left (or could not); once it was waited for, the sum of all replicas'."""
        self._gathered: Sequence[torch.Tensor] = ()
        """Memory for everybody's, in rank order, if they are gathered."""
        self._work: dist.Work | None = None
        self._is_summed = False
        """Whether it was waited for."""
        self._result: Exchanged | None = None
        self._carrier: Carrier | None = None
        """Of the next exchange, as all have said; and of the one under way."""
        self._next_carrier: Carrier | None = None
        """Of the one after that, as this replica has said."""

    @property
    def launched(self) -> bool:
        """Whether there is an exchange that was not taken yet."""
        return self._entries is not None

    @property
    def awaits_gradients(self) -> bool:
        """Whether it has not left yet, and does with `carry`."""
        return self._entries is not None and self._vector is None and self._result is None

    def launch(
        self,
        *,
        attention: bool = False,
        left: bool = False,
        has_sums: bool = False,
        interrupted: bool = False,
        parted: bool = False,
        gradients: Carrier | None = None,
        next_carrier: Carrier | None = None,
        samples: Sequence[tuple[float, float] | None] = (),
        norms_due: Sequence[bool] = (),
    ) -> None:
        """Starts an exchange, unless it is to be carried by `gradients`: then `carry` must follow.

        Args:
            gradients: what this replica is about to sum.
            next_carrier: what it expects to sum in the next step; None if that is not certain.
            samples: this replica's of each model, if it has one.
            norms_due: for each model, too; only rank 0's count.
        """
        assert self._entries is None, "an exchange must be taken before the next one is launched"
        if self._group.num_replicas == 1:
            self._entries = []
            self._result = Exchanged(
                attention=attention,
                num_left=int(left),
                has_sums=has_sums,
                interrupted=interrupted,
                parted=parted,
                was_carried=False,
                is_carried_next=False,
                samples=tuple(samples),
                norms_due=tuple(norms_due),
            )
            return
        is_carried = gradients is not None and gradients == self._carrier
        entries = [
            float(attention),
            float(left),
            float(has_sums),
            float(interrupted),
            float(parted),
            float(is_carried),
            float(next_carrier is not None),
        ]
        for sample, due in zip(samples, norms_due, strict=True):
            entries += (0.0, 0.0, 0.0) if sample is None else (1.0, *sample)
            entries.append(float(due and self._group.rank == 0))
        self._entries, self._next_carrier = entries, next_carrier
        if not is_carried:
            self._launch()

    def carry(self, gradients: torch.Tensor, vector: torch.Tensor | None) -> None:
        """Launches the exchange that awaits them; `deliver` must follow. Raises GroupBroken.

        Args:
            vector: in which they are followed by `ROOM` elements that can be written; None: they must be copied.
        """
        assert self.awaits_gradients
        self._launch(gradients, vector)

    def deliver(self, gradients: torch.Tensor) -> None:
        """Waits, and puts the sum into `gradients`, which it has carried. Raises GroupBroken."""
        summed = self._sum()[: gradients.numel()]
        if summed.data_ptr() != gradients.data_ptr():
            gradients.copy_(summed)

    def _launch(self, gradients: torch.Tensor | None = None, vector: torch.Tensor | None = None) -> None:
        assert self._entries is not None
        numel, dtype = (0, torch.float64) if self._carrier is None else self._carrier
        if vector is None:
            vector = torch.zeros(numel + len(self._entries), dtype=dtype, device="cpu")
            if gradients is not None:
                vector[:numel] = gradients
        vector.numpy()[numel:] = self._entries  # so few numbers are sooner written by numpy
        self._vector = vector
        num_replicas = self._group.num_replicas
        if num_replicas * len(vector) > _MOST_GATHERED:
            self._work = self._group.all_reduce_async(vector)
        else:
            gathered = torch.empty(num_replicas * len(vector), dtype=dtype, device="cpu")
            self._gathered = gathered.view(num_replicas, -1).unbind()
            self._work = self._group.all_gather_async(gathered, vector)

    def _sum(self) -> torch.Tensor:
        """Waits for the vector to be the sum of all. Raises GroupBroken."""
        if self._work is None or self._vector is None:
            raise GroupBroken("the step exchange could not be launched")
        if not self._is_summed:
            self._group.wait_for(self._work)
            if self._gathered:
                first, second, *others = self._gathered
                torch.add(first, second, out=self._vector)
                for other in others:
                    self._vector.add_(other)
            self._is_summed = True
        return self._vector

    def peek(self) -> Exchanged:
        """Waits for the exchange under way and reads it. Raises GroupBroken."""
        assert self._entries is not None
        if self._result is None:
            if self.awaits_gradients:  # they did not come to it
                self._launch()
            values = self._sum()[-len(self._entries) :].tolist()
            samples: list[tuple[float, float] | None] = []
            norms_due = []
            for index in range(_NUM_FIXED, len(values), _NUM_PER_MODEL):
                num_valid, local, averaged, due = values[index : index + _NUM_PER_MODEL]
                samples.append((local, averaged) if round(num_valid) == self._group.num_replicas else None)
                norms_due.append(due > 0)
            self._result = Exchanged(
                attention=values[0] > 0,
                num_left=round(values[1]),
                has_sums=values[2] > 0,
                interrupted=values[3] > 0,
                parted=values[4] > 0,
                was_carried=values[5] > 0,
                is_carried_next=round(values[6]) == self._group.num_replicas,
                samples=tuple(samples),
                norms_due=tuple(norms_due),
            )
        return self._result

    def take(self) -> Exchanged:
        """As `peek`, and makes room for the next one."""
        result = self.peek()
        self._carrier = self._next_carrier if result.is_carried_next else None
        self._entries = self._vector = self._work = self._result = self._next_carrier = None
        self._gathered = ()
        self._is_summed = False
        return result
