"""A data loader whose batch size and share of the data follow the trial."""

from __future__ import annotations

import contextlib
import itertools
import numbers
import queue
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds
from adaptdl.torch.group import Group
from adaptdl.torch.layout import Layout
from adaptdl.torch.loop import Action, Loop, Micro
from adaptdl.torch.parting import lost_positions
from adaptdl.torch.registry import State
from adaptdl.torch.sampler import ElasticSampler
from adaptdl.torch.tuning import Batch, fit_to

__all__ = ["AdaptiveDataLoader"]


class AdaptiveDataLoader(State):
    """Gives every replica its share of each step's samples, in an order that does not depend on the replicas.

    A pass gives each sample exactly once. The batches a replica gets are its share of the step, divided into
    ``accumulation_steps + 1`` parts. While the loop runs, replicas may come and go between two steps. If
    `autoscale_batch_size` was called, a loop lasts for one data set's worth of *progress* (n / M₀ steps at M₀), which at
    large batch sizes is more than one pass; otherwise exactly one pass. To learn how noisy gradients are, a single replica
    then gets one step in 8, later fewer, as two batches of half the size.

    Args:
        dataset: a map-style data set of n > 0 samples.
        batch_size: M₀, samples per optimizer step over all replicas.
        shuffle: a new order in each pass, the same on all replicas.
        num_workers, collate_fn, pin_memory, timeout, worker_init_fn, multiprocessing_context, prefetch_factor,
            persistent_workers: as torch's DataLoader has them.
        drop_last: leave out a last step of less than M samples.
        seed: of the order.
        sampler, batch_sampler: must be None; the order of data is the loader's own.
        name: if a function makes loaders in an order that differs between replicas.

    Raises:
        UsageError: one of the arguments cannot be driven elastically; the message says what to do instead.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        seed: int = 0,
        sampler: None = None,
        batch_sampler: None = None,
        name: str | None = None,
    ) -> None:
        _check(dataset, batch_size, sampler, batch_sampler)
        self.dataset = dataset
        self.num_samples = len(dataset)  # type: ignore[arg-type]
        self.init_batch_size = int(batch_size)
        self.bounds = BatchSizeBounds(
            init_batch_size=self.init_batch_size, max_batch_size=self.init_batch_size, local_bsz_bounds=None
        )
        self._batch = Batch(batch_size=self.init_batch_size, atomic_batch_size=self.init_batch_size)
        self.is_adaptive = False
        self._restored_batch: Batch | None = None
        """Of a snapshot, if it waits for `autoscale_batch_size` to allow it."""
        self.sampler = ElasticSampler(self.num_samples, shuffle=shuffle, seed=seed, drop_last=drop_last)
        self.num_padding = 0
        """Samples this replica has computed with weight 0, because a last step had none for it."""
        self._persistent_workers = persistent_workers
        self._layout: Layout | None = None
        """Of the segment that runs, or ran last; None once the batch was set otherwise."""
        self._upcoming: list[list[int]] | Iterator[list[int]] = []
        self._active = False
        self._loop_progress = 0.0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=_Upcoming(self),
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            prefetch_factor=prefetch_factor,
            persistent_workers=num_workers > 0,  # within a loop; a reallocation must not fork anew
            # The user's own numbers are left alone. Where it draws them is torch's business.
            generator=torch.Generator(torch.get_default_device()).manual_seed(torch.initial_seed()),
        )
        super().__init__(name)
        self.keep_within_memory()
        if (waiting := self.session.registry.take_waiting(self.name)) is not None:
            self.load_state_dict(waiting)

    # -- what the user sees -------------------------------------------------------------------------------------------

    def autoscale_batch_size(
        self,
        max_batch_size: int,
        local_bsz_bounds: tuple[int, int] | None = None,
        gradient_accumulation: bool = False,
    ) -> None:
        """Lets the batch size follow the goodput, between M₀ and `max_batch_size`.

        Args:
            max_batch_size: largest M, ≥ M₀.
            local_bsz_bounds: smallest and largest number of samples in one forward-backward pass of a replica.
            gradient_accumulation: whether a step may be made of several passes.

        Raises:
            UsageError: the bounds are no whole numbers, or contradict each other.
        """
        if not _is_whole(max_batch_size):
            raise UsageError(f"max_batch_size must be a whole number of samples ≥ 1, but got {max_batch_size!r}")
        if local_bsz_bounds is not None:
            if not (
                isinstance(local_bsz_bounds, (tuple, list)) and [*map(_is_whole, local_bsz_bounds)] == [True, True]
            ):
                raise UsageError(
                    "local_bsz_bounds must be two whole numbers of samples, the smallest and the largest, but got "
                    f"{local_bsz_bounds!r}"
                )
            local_bsz_bounds = (int(local_bsz_bounds[0]), int(local_bsz_bounds[1]))
        self.bounds = BatchSizeBounds(
            init_batch_size=self.init_batch_size,
            max_batch_size=int(max_batch_size),
            local_bsz_bounds=local_bsz_bounds,
            gradient_accumulation=gradient_accumulation,
        )
        self.is_adaptive = True
        if self._restored_batch is not None:
            self.batch = fit_to(self.bounds, self.session.num_replicas, self._restored_batch)
            self._restored_batch = None
        self.keep_within_memory()

    def keep_within_memory(self) -> None:
        """Takes over what was learned of how many samples fit into one pass."""
        most = self.session.most_samples.get(self.name)
        if most is None:
            return
        low, high = self.bounds.local_bsz_bounds or (1, self.bounds.max_batch_size)
        if high > most:
            self.bounds = _bounded(self.bounds, min(low, most), most)
        self.batch = fit_to(self.bounds, self.session.num_replicas, self.newest_batch)

    def start_workers(self) -> None:
        """Before there is anything to do for them, while a newcomer waits for the others."""
        if self._loader.num_workers > 0 and self._loader._iterator is None:
            self._upcoming = []
            iter(self._loader)

    @property
    def batch(self) -> Batch:
        """Of the step in hand, or of the next one between two segments."""
        return self._batch

    @batch.setter
    def batch(self, batch: Batch) -> None:
        self._batch, self._layout = batch, None

    @property
    def newest_batch(self) -> Batch:
        """To which `batch` changes, if it was decided to; otherwise `batch`."""
        return self._batch if self._layout is None else self._layout.newest_batch

    def change_batch(self, batch: Batch, group: Group) -> None:
        """On all replicas, at a boundary of a loop: `batch` from the first step on that none of them has laid out. Raises
        GroupBroken."""
        layout = self._layout
        at = max(group.all_gather_object(0 if layout is None else layout.num_steps))
        if layout is None:
            self.batch = batch
        else:
            layout.change(batch, at=at)

    @property
    def batch_size(self) -> int:
        """M₀."""
        return self.init_batch_size

    @property
    def current_batch_size(self) -> int:
        """M."""
        return self.batch.batch_size

    @property
    def current_local_bsz(self) -> int:
        """m, samples in one forward-backward pass of the replica with the largest share."""
        if self.is_adaptive:
            return self.batch.atomic_batch_size
        return -(-self.batch.batch_size // self.session.num_replicas)

    @property
    def accumulation_steps(self) -> int:
        """s, passes before the last one of a step."""
        return self.batch.accum_steps

    @property
    def max_batch_size(self) -> int:
        return self.bounds.max_batch_size

    @property
    def local_bsz_bounds(self) -> tuple[int, int] | None:
        return self.bounds.local_bsz_bounds

    def __len__(self) -> int:
        """Batches each replica gets in one pass at the present batch size."""
        n, size = self.num_samples, self.batch.batch_size
        return (n // size if self.sampler.drop_last else -(-n // size)) * (self.batch.accum_steps + 1)

    def __iter__(self) -> Iterator[Any]:
        session = self.session
        loop = session.enter_loop(self)
        if loop is None:
            self._end_workers()
            return
        keep_company = True
        try:
            yield from self._loop(loop)
        except GeneratorExit:
            raise
        except BaseException:
            keep_company = False
            raise
        finally:
            self._end_workers()
            session.leave_loop(loop, keep_company=keep_company)
            self._active = session.loop is loop  # memory has run out: it goes on where it was

    def _end_workers(self) -> None:
        if not self._persistent_workers:
            self._loader._iterator = None

    # -- a loop: passes, each of segments between which the group has changed ------------------------------------------

    def _loop(self, loop: Loop) -> Generator[Any, None, None]:
        if not self._active:
            self.sampler.begin_pass()
            self._loop_progress = self.session.progress
            self._active = True
        loop.covers_from = self.sampler.position
        # Steps made before the pass that runs; None if it did not begin here.
        steps_before = self.session.num_steps if self.sampler.position == 0 else None
        while True:
            action = yield from self._segment(loop)
            if action in (Action.STOP, Action.OVER):
                return
            if action is Action.CONTINUE:
                if not loop.training:
                    yield from self._make_up(loop)
                    return
                if self.is_over(loop) or self.sampler.position == 0:  # at 0: drop_last leaves nothing of a pass
                    return
                if self.session.num_steps == steps_before:  # there is no progress to wait for
                    return
                self.sampler.begin_pass()
                steps_before = self.session.num_steps

    def is_over(self, loop: Loop) -> bool:
        """Whether a loop ends, given the progress made: the same on all replicas."""
        if self.is_adaptive and loop.training:
            done = self.session.progress - self._loop_progress
            return done >= self.num_samples / self.init_batch_size - 1e-6
        return self.sampler.num_left(self.batch.batch_size) == 0

    def _make_up(self, loop: Loop) -> Generator[Any, None, None]:
        """Hands out, in a loop without steps, what was done by replicas that were lost before all had come to its end."""
        batch_size, n = self.batch.batch_size, self.num_samples
        num_covered = n - n % batch_size if self.sampler.drop_last else n
        while positions := lost_positions(self.session, loop, num_covered):
            order = self.sampler.permutation()
            size = max(1, self.batch.atomic_batch_size)
            chunks = [positions[i : i + size] for i in range(0, len(positions), size)]
            self._upcoming = [[order[position] for position in chunk] for chunk in chunks]
            for chunk, values in zip(chunks, self._loader, strict=True):
                self.session.begin_micro(
                    Micro(
                        index=0,
                        count=1,
                        size=len(chunk),
                        previous_size=0,
                        share=len(chunk),
                        batch_size=len(chunk),
                        num_shares=1,
                    )
                )
                yield values
                loop.shares += [(position, 1) for position in chunk]

    def _segment(self, loop: Loop) -> Generator[Any, None, Action]:
        """Hands out the rest of the pass, up to a change. Returns the action that ended it (CONTINUE: the pass is over)."""
        session = self.session
        first_split = 0 if self._layout is None else self._layout.steps_to_split
        self.batch = self.newest_batch
        if not loop.hands_out:
            return Action.CONTINUE
        pads = loop.training or torch.is_grad_enabled()
        self._layout = Layout(
            self.sampler,
            rank=session.rank,
            num_replicas=session.num_replicas,
            batch=self.batch,
            steps_per_split=self._steps_per_split,
            first_split=first_split,
        )
        # The torch loader runs ahead of the loop if it has workers.
        steps, ahead = itertools.tee(self._layout)
        padding = self.sampler.permutation()[0]
        self._upcoming = (part or [padding] for _, step in ahead for part in step.parts if part or pads)
        data: Iterator[Any] | None = None
        for self._batch, step in steps:
            previous_size = 0
            for index, part in enumerate(step.parts):
                if not part and not (pads and loop.training):  # as all replicas know since the first step
                    continue
                if data is None:
                    self._take_orders_back()
                    data = iter(self._loader)
                began = time.monotonic()
                values = next(data)
                loop.wait_s += time.monotonic() - began
                self.num_padding += not part
                session.begin_micro(
                    Micro(
                        index=index,
                        count=len(step.parts),
                        size=len(part),
                        previous_size=previous_size,
                        share=step.share,
                        batch_size=step.batch_size,
                        num_shares=step.num_shares,
                    )
                )
                yield values
                previous_size = len(part)
            if not loop.training and session.num_replicas > 1:
                loop.shares.append((step.begin, step.share))
            action = session.boundary(loop, batch_size=step.batch_size)
            if action is not Action.CONTINUE:
                return action
        return Action.CONTINUE

    def _take_orders_back(self) -> None:
        """What workers have not begun, of the segment before, they need not: its first batch waits for what they do."""
        for orders in getattr(self._loader._iterator, "_index_queues", ()):
            with contextlib.suppress(queue.Empty):  # so it is, too, while a worker waits at it
                while True:
                    orders.get_nowait()

    def _steps_per_split(self, batch: Batch) -> int | None:
        """How often the only replica makes a step of two parts, to see how noisy its gradients are. None: it does not."""
        low = (self.bounds.local_bsz_bounds or (1, 1))[0]
        if not self.is_adaptive or self.session.num_replicas > 1 or batch.batch_size < 2 * low:
            return None
        return self.session.split_pace.steps_per_split(self.session.num_noise_samples)

    # -- what survives ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        batch = self.newest_batch
        return {
            "sampler": self.sampler.state_dict(),
            "active": self._active,
            "loop_progress": self._loop_progress,
            "batch": (batch.batch_size, batch.atomic_batch_size, batch.accum_steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self.sampler.load_state_dict(state_dict["sampler"])
        except ValueError as error:
            raise UsageError(f"loader {self.name!r} cannot go on: {error}") from error
        self._active, self._loop_progress = state_dict["active"], state_dict["loop_progress"]
        batch_size, atomic_batch_size, accum_steps = state_dict["batch"]
        batch = Batch(batch_size=batch_size, atomic_batch_size=atomic_batch_size, accum_steps=accum_steps)
        if self.is_adaptive or batch_size == self.init_batch_size:
            self.batch = batch
        else:
            self._restored_batch = batch
        self.keep_within_memory()


class _Upcoming:
    """The batch sampler of the torch loader: whatever the loop has laid out for its present segment."""

    def __init__(self, loader: AdaptiveDataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._loader._upcoming)


def _bounded(bounds: BatchSizeBounds, low: int, high: int) -> BatchSizeBounds:
    """`bounds` with these for one pass; M₀ is made of several if it must be."""
    try:
        return replace(bounds, local_bsz_bounds=(low, high), gradient_accumulation=True)
    except UsageError:  # no number of passes within them gives M₀
        return replace(bounds, local_bsz_bounds=(1, high), gradient_accumulation=True)


def _is_whole(number: Any) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def _check(dataset: Any, batch_size: Any, sampler: Any, batch_sampler: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            "AdaptiveDataLoader needs a map-style Dataset (with __getitem__ and __len__), so that every replica can take "
            f"its share and no sample is lost, but got the IterableDataset {type(dataset).__name__}; "
            "give it an index, or use torch's DataLoader for it"
        )
    if sampler is not None or batch_sampler is not None:
        which = "sampler" if sampler is not None else "batch_sampler"
        raise UsageError(
            f"AdaptiveDataLoader draws samples by itself and cannot follow {which}={sampler or batch_sampler!r}; use "
            "shuffle=True, or put a selection or weighting into the Dataset (for instance torch.utils.data.Subset)"
        )
    if not hasattr(dataset, "__len__"):
        raise UsageError(
            "AdaptiveDataLoader needs a map-style Dataset (with __getitem__ and __len__), but the "
            f"{type(dataset).__name__} has no __len__; give it one"
        )
    if not _is_whole(batch_size) or int(batch_size) < 1:
        raise UsageError(f"batch_size must be a whole number of samples ≥ 1, but got {batch_size!r}")
    if len(dataset) == 0:
        raise UsageError("the data set must have at least one sample, but is empty")
