"""The step exchange: the one small collective of every training step.

It is launched with the first gradient bucket of a step and read at the boundary after the step, so nothing waits for it.
The vector is summed over the replicas. Its entries:

=============  ==========================================================================================
attention      1 on rank 0 if it has a notice for everybody
left           1 if this replica has left the loop and only keeps the others company
interrupted    1 if this replica was asked to stop (Ctrl-C)
per model      1 if what follows is a usable sample; share-weighted squared norm of the local gradient, squared norm of the
               averaged gradient / K, both of the step *before* (they are not known yet when the vector leaves); 1 on rank
               0 if norms should be taken in the step after this one
=============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from adaptdl.torch.group import Group

__all__ = ["Exchanged", "StepExchange"]

_NUM_FIXED, _NUM_PER_MODEL = 3, 4


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What one exchange said, summed over the replicas."""

    attention: bool
    num_left: int
    interrupted: bool
    samples: tuple[tuple[float, float] | None, ...]
    """Per model: share-weighted mean of local squared norms, squared norm of the average; None if a replica had none."""
    norms_due: tuple[bool, ...]
    """Per model."""


class StepExchange:
    """Launches and reads the exchanges of one generation."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._vector: torch.Tensor | list[float] | None = None
        self._work: dist.Work | None = None
        self._result: Exchanged | None = None

    @property
    def launched(self) -> bool:
        """Whether there is an exchange that was not taken yet."""
        return self._vector is not None

    def launch(
        self,
        *,
        attention: bool = False,
        left: bool = False,
        interrupted: bool = False,
        samples: Sequence[tuple[float, float] | None] = (),
        norms_due: Sequence[bool] = (),
    ) -> None:
        """Starts an exchange.

        Args:
            samples: this replica's of each model, if it has one.
            norms_due: for each model, too; only rank 0's count.
        """
        assert self._vector is None, "an exchange must be taken before the next one is launched"
        values = [float(attention), float(left), float(interrupted)]
        for sample, due in zip(samples, norms_due, strict=True):
            values += (0.0, 0.0, 0.0) if sample is None else (1.0, *sample)
            values.append(float(due and self._group.rank == 0))
        if self._group.num_replicas == 1:
            self._vector = values
        else:
            self._vector = torch.tensor(values, dtype=torch.float64)
            self._work = self._group.all_reduce_async(self._vector)

    def peek(self) -> Exchanged:
        """Waits for the exchange under way and reads it. Raises GroupBroken."""
        assert self._vector is not None
        if self._result is None:
            if self._work is not None:
                with self._group.waiting():
                    self._work.wait()
            values = self._vector.tolist() if isinstance(self._vector, torch.Tensor) else self._vector
            *columns, norms_due = (values[_NUM_FIXED + column :: _NUM_PER_MODEL] for column in range(_NUM_PER_MODEL))
            self._result = Exchanged(
                attention=values[0] > 0,
                num_left=round(values[1]),
                interrupted=values[2] > 0,
                samples=tuple(
                    (local, averaged) if round(num_valid) == self._group.num_replicas else None
                    for num_valid, local, averaged in zip(*columns, strict=True)
                ),
                norms_due=tuple(due > 0 for due in norms_due),
            )
        return self._result

    def take(self) -> Exchanged:
        """As `peek`, and makes room for the next one."""
        result = self.peek()
        self._vector = self._work = self._result = None
        return result
