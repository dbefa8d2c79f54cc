"""The steps of a pass as they are laid out, ahead of the loop if the torch loader has workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adaptdl.torch.sampler import ElasticSampler, Step
from adaptdl.torch.tuning import Batch

__all__ = ["Layout"]


class Layout(Iterator[tuple[Batch, Step]]):
    """What is left of the running pass, for one of the replicas of a generation; the sampler is not moved.

    What is laid out stays: another batch size begins with a step that no replica has laid out yet, so that no sample which was
    read ahead is thrown away.

    Args:
        sampler: at the position where the first step begins.
        rank, num_replicas: of the generation.
        batch: of the first step.
        steps_per_split: one step in so many of such a batch is made of two parts at least; None: none is.
        first_split: no step before this one is.
    """

    def __init__(
        self,
        sampler: ElasticSampler,
        *,
        rank: int,
        num_replicas: int,
        batch: Batch,
        steps_per_split: Callable[[Batch], int | None] = lambda batch: None,
        first_split: int = 0,
    ) -> None:
        self._sampler = sampler
        self._rank, self._num_replicas = rank, num_replicas
        self._batch, self._steps_per_split = batch, steps_per_split
        self._next_split = first_split
        self._position = sampler.position
        self._changes: list[tuple[int, Batch]] = []
        """Step from which on, and what; those to come. Replicas that have laid out less have more of them."""
        self.num_steps = 0
        """Laid out so far."""

    def change(self, batch: Batch, *, at: int) -> None:
        """Another batch from step `at` on, counted from 0; all replicas must have laid out so many steps at most."""
        assert at >= self.num_steps, (at, self.num_steps)
        self._changes.append((at, batch))

    @property
    def steps_to_split(self) -> int:
        """How many steps from here on are not made of two parts."""
        return max(0, self._next_split - self.num_steps)

    @property
    def newest_batch(self) -> Batch:
        """Of the steps that come after all changes."""
        return self._changes[-1][1] if self._changes else self._batch

    def __next__(self) -> tuple[Batch, Step]:
        while self._changes and self.num_steps >= self._changes[0][0]:
            _, self._batch = self._changes.pop(0)
        batch = self._batch
        num_parts = batch.accum_steps + 1
        if (
            num_parts == 1
            and self.num_steps >= self._next_split
            and (number := self._steps_per_split(batch)) is not None
        ):
            num_parts, self._next_split = 2, self.num_steps + number
        step = self._sampler.step(self._position, self._rank, self._num_replicas, batch.batch_size, num_parts)
        if step is None:
            raise StopIteration
        self._position += step.batch_size
        self.num_steps += 1
        return batch, step
