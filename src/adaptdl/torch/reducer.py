"""Sums gradients over the replicas, by shares, and takes the norms that the noise scale needs on the way.

It sees the flat buckets that torch's DistributedDataParallel gives to a communication hook, or the one of a small model. It
launches their sums; they are awaited by the thread that computes gradients, when it has no more of them to compute. (What is
called back instead by a thread of the process group competes with that thread for the interpreter, in every step, and may
outlive it.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from adaptdl.torch.buckets import Bucket
from adaptdl.torch.exchange import Carrier, StepExchange
from adaptdl.torch.gradient_noise import GradientNoise
from adaptdl.torch.group import Group, GroupBroken
from adaptdl.torch.loop import Micro
from adaptdl.torch.norm_pace import NormPace
from adaptdl.torch.part_norms import PartNorms
from adaptdl.torch.second_moments import SecondMoments
from adaptdl.torch.small_gradients import SmallGradients

__all__ = ["GradientReducer"]


@dataclass(slots=True)
class _Sample:
    """The norms of one step, of this replica."""

    micro: Micro
    init_batch_size: int
    loss_scale: float
    measures: bool
    """Whether the norms below are taken, and not only what tells whether the gradients are finite."""
    local: list[torch.Tensor] = field(default_factory=list)
    """Squared norm per bucket of the local gradient, in units of the last part."""
    averaged: list[torch.Tensor] = field(default_factory=list)
    """And of the averaged one."""
    telling: list[torch.Tensor] = field(default_factory=list)
    """Per bucket, what is finite if and only if the averaged gradients are."""
    parts: PartNorms | None = None
    """Of a step of several parts on one replica."""
    part_sqr: torch.Tensor | None = None
    """What they have found."""
    is_complete: bool = False


@dataclass(slots=True)
class _Sum:
    """Of a bucket over the replicas, under way."""

    buffer: torch.Tensor
    is_last: bool
    sample: _Sample | None
    moments: SecondMoments | None
    gradients: Sequence[torch.Tensor]
    """In the buffer; empty if their norms are not to be taken under second moments."""
    launched_at: float = field(default_factory=time.monotonic)
    work: dist.Work | None = None
    """None: the step exchange carries it."""


class GradientReducer:
    """One model's gradients in one generation.

    Args:
        group: of the generation.
        exchange: which may travel with the gradients.
        noise: where the samples go.
        second_moments: gives what an optimizer divides the gradients of some parameters by, or None before its first step, which
            is then not measured; itself None for optimizers that do not divide.
        on_failure: told, in the thread that computes gradients, that a sum has failed. The gradients that come out are then of no
            use; no error is raised in the user's backward pass.
    """

    def __init__(
        self,
        group: Group,
        exchange: StepExchange,
        noise: GradientNoise,
        second_moments: Callable[[Sequence[torch.Tensor]], SecondMoments | None] | None,
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._group, self._exchange = group, exchange
        self._noise = noise
        self._second_moments = second_moments
        self._sample: _Sample | None = None
        self._taken: _Sample | None = None
        self._on_failure = on_failure
        self._sums: list[_Sum] = []
        """Under way in this backward pass."""
        self._pace = NormPace()
        self.carrier: Carrier | None = None
        """What the gradients of the last step were, if they can carry an exchange."""
        self.is_due = True
        """Whether norms should be taken in the step that comes, or runs: the same on all replicas."""
        self._num_unmeasured = 0
        """Steps since norms were taken."""
        self._num_unseen = 0
        """Steps since the last one that gave a sample, that one included."""
        self.sync_time_s = 0.0
        """Time from the launch of the last bucket to its end, in the last step: communication that nothing hides."""

    @property
    def is_due_next(self) -> bool:
        """As a step's gradients begin to arrive: whether norms should be taken in the step after it. On rank 0, which decides:
        those that a second moment divides are dear, and others cost next to nothing."""
        if self._second_moments is None:
            return True
        num_without = 0 if self.is_due else self._num_unmeasured + 1
        return num_without + 1 >= self._pace.steps_per_sample(self._noise.num_samples)

    def watch_parts(self, micro: Micro, parameters: Iterable[torch.Tensor]) -> PartNorms | None:
        """Before the first part of a step of several: measures each of them, if that is due and tells something."""
        if self._group.num_replicas > 1 or micro.count < 2 or not self.is_due:
            return None
        watched, moments = list(parameters), None
        if self._second_moments is not None:
            with self._pace.spending():
                moments = self._second_moments(watched)
            if moments is None or not moments.is_settled:
                return None
        return PartNorms(micro, watched, moments, self._pace)

    def begin(self, micro: Micro | None, init_batch_size: int, loss_scale: float, parts: PartNorms | None) -> None:
        """The gradients of a step's last part begin to arrive; `parts`: measures it and those before."""
        self.drop_sums()
        self._sample = None
        if self._second_moments is not None:
            self._pace.begin_step()
        self._num_unseen += 1
        measures = parts is not None or (self.is_due and self._group.num_replicas > 1)
        self._num_unmeasured = 0 if measures else self._num_unmeasured + 1
        if micro is not None:
            self._sample = _Sample(
                micro=micro, init_batch_size=init_batch_size, loss_scale=loss_scale, measures=measures, parts=parts
            )

    def note_carrier(self, bucket: Bucket) -> None:
        """Of the first bucket of a step."""
        if self.carrier is None or self.carrier.numel != bucket.buffer().numel():
            self.carrier = Carrier.of(bucket)

    def drop_void_step(self) -> None:
        """This replica may have begun a step that others have not: it does not count."""
        self._num_unseen = 0

    def drop_sums(self) -> None:
        """If there was an error in a backward pass, nobody awaits what it had launched."""
        if self._sums:
            self._sample, self._sums = None, []

    def reduce(self, bucket: Bucket, micro: Micro | None) -> None:
        """Begins to make of the bucket's gradients, in place, the average over the samples of the step; `await_sums` ends it."""
        buffer, sample, is_last = bucket.buffer(), self._sample, bucket.is_last()
        moments: SecondMoments | None = None
        gradients: list[torch.Tensor] = []
        if sample is not None and sample.measures and self._second_moments is not None:
            with self._pace.spending():
                gradients, moments = bucket.gradients(), self._second_moments(bucket.parameters())
            sample.measures = moments is not None and moments.is_settled
        if sample is not None and sample.measures:
            sample.local.append(_sqr(buffer) if moments is None else self._scaled_sqr(moments, gradients))
        else:
            moments = None
        weight = 1 / self._group.num_replicas if micro is None else micro.weight
        if weight != 1.0:
            buffer.mul_(weight)
        if self._group.num_replicas > 1:
            self._launch(_Sum(buffer, is_last, sample, moments, gradients), bucket)
        elif sample is not None:
            sample.telling.append(sample.local[-1] if sample.measures and moments is None else _sum(buffer))
            if is_last and sample.parts is not None:
                sample.part_sqr = sample.parts.take()
            sample.is_complete = is_last

    def _scaled_sqr(self, moments: SecondMoments, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        with self._pace.spending():
            return moments.sqr(gradients)

    def _launch(self, sum_: _Sum, bucket: Bucket) -> None:
        """Begins to sum the bucket over the replicas, in place."""
        try:
            if bucket.index() == 0 and self._exchange.awaits_gradients:
                self._exchange.carry(sum_.buffer, bucket.vector if isinstance(bucket, SmallGradients) else None)
            else:
                sum_.work = self._group.all_reduce_async(sum_.buffer)
        except GroupBroken as error:
            self._on_failure(error)
            return
        self._sums.append(sum_)

    def await_sums(self) -> None:
        """At the end of a backward pass: what was launched in it is summed, in the order of the buckets."""
        sums, self._sums = self._sums, []
        for sum_ in sums:
            try:
                if sum_.work is None:
                    self._exchange.deliver(sum_.buffer)
                else:
                    self._group.wait_for(sum_.work)
            except GroupBroken as error:
                self._on_failure(error)
                continue
            self._end_sum(sum_)

    def _end_sum(self, sum_: _Sum) -> None:
        sample, buffer = sum_.sample, sum_.buffer
        if sum_.is_last:
            self.sync_time_s = time.monotonic() - sum_.launched_at
        if sample is not None:
            if sample.measures and sum_.moments is None:
                sample.averaged.append(_sqr(buffer))
                sample.telling.append(sample.averaged[-1])
            else:
                sample.telling.append(_sum(buffer))
                if sum_.moments is not None:
                    sample.averaged.append(self._scaled_sqr(sum_.moments, sum_.gradients))
            sample.is_complete = sum_.is_last

    @property
    def is_finite(self) -> bool:
        """Whether the averaged gradients of the step that runs are finite, as far as is known: the same on all replicas."""
        sample = self._sample
        if sample is None or not sample.is_complete:
            return True
        return math.isfinite(sum(map(float, sample.telling)))

    def take_sample(self) -> tuple[float, float] | None:
        """This replica's entries in the next step exchange; None if the step before gave no usable sample."""
        sample, self._sample = self._sample, None
        self._taken = None
        if sample is None or not sample.is_complete or not sample.measures:
            return None
        micro, num_replicas = sample.micro, self._group.num_replicas
        unscale = sample.loss_scale**-2
        local = sum(float(value) for value in sample.local) * unscale
        if micro.share:
            local *= (micro.size / micro.share) ** 2  # from units of the last part to the mean over the share
        if num_replicas == 1:
            if sample.part_sqr is None:
                return None
            self._taken = sample
            return local, local
        if micro.num_shares < 2:
            return None
        self._taken = sample
        averaged = sum(float(value) for value in sample.averaged) * unscale
        return local * micro.share / micro.batch_size, averaged / num_replicas

    def give_sample(self, local: float, averaged: float) -> None:
        """The sums over all replicas of what they gave in `take_sample`."""
        sample, self._taken = self._taken, None
        if sample is None:
            return
        micro = sample.micro
        self._num_unseen, num_steps = 0, self._num_unseen
        weight = num_steps * micro.batch_size / sample.init_batch_size
        unscale = sample.loss_scale**-2
        if self._group.num_replicas > 1:
            self._noise.add_norms(
                local,
                averaged,
                weight=weight,
                inverse_small=micro.num_shares / micro.batch_size,
                inverse_large=1 / micro.batch_size,
            )
        elif sample.part_sqr is not None:
            base, more = divmod(micro.batch_size, micro.count)  # parts differ by one sample at most
            inverse_sizes = more / (base + 1) + (micro.count - more) / base
            self._noise.add_norms(
                float(sample.part_sqr) * unscale,
                local,
                weight=weight,
                inverse_small=inverse_sizes / micro.count,
                inverse_large=1 / micro.batch_size,
            )


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Finite if and only if they all are: nothing is sooner known of them."""
    return values.sum(dtype=None if values.dtype in (torch.float32, torch.float64) else torch.float32)


def _sqr(values: torch.Tensor) -> torch.Tensor:
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return torch.dot(values, values)
