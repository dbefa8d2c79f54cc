"""The session: everything a replica knows of itself, and the boundaries at which replicas agree.

::

    UNJOINED --at a data loop: Host.ready, wait--> (Advance: skip loops) --> UNJOINED
    UNJOINED --Plan: form group, take state--> JOINED
    JOINED --boundary: notice with a plan--> JOINED (other group) | parked: UNJOINED | Leave
    JOINED --a collective failed: Host.broken, wait (`recovery`)--> JOINED (other group) | run on UNJOINED | Leave

A session that nobody launched is joined from the start: alone, or in torchrun's group.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from adaptdl.errors import UsageError
from adaptdl.goodput import GradParams, JobReport, ProfileKey, efficiency, gain
from adaptdl.plan import Advance, Host, LoopKind, Member, Place, Plan, Position, Pulse, Switched, Update
from adaptdl.torch import reallocation
from adaptdl.torch.accumulator import Accumulator, add_changes
from adaptdl.torch.exchange import Exchanged, StepExchange
from adaptdl.torch.group import Group, GroupBroken
from adaptdl.torch.loop import Action, Loop, Micro, Notice
from adaptdl.torch.mailbox import Leave, Mailbox, Order
from adaptdl.torch.memory import is_out_of_memory, num_out_of_memory, release_memory, smaller_pass
from adaptdl.torch.recovery import recover
from adaptdl.torch.registry import Registry
from adaptdl.torch.rng import rng_state, set_rng_state
from adaptdl.torch.store import Store
from adaptdl.torch.transfer import copy_states, read_snapshot, write_snapshot
from adaptdl.torch.tuning import Batch, Tuner
from adaptdl.torch.warm_up import warm_up

if TYPE_CHECKING:
    from adaptdl.torch.data_parallel import AdaptiveDataParallel
    from adaptdl.torch.loader import AdaptiveDataLoader

__all__ = ["ElasticSession"]

logger = logging.getLogger(__name__)

_UPDATE_INTERVAL_S = 1.0
_RETUNE_INTERVAL_S = 30.0
_SNAPSHOT_SHARE = 0.05
"""Largest share of the time that snapshots for results may take; beyond it results come without one."""
_CHEAP_SNAPSHOT_S = 0.05
"""A snapshot that takes no longer than this goes with every result."""


class ElasticSession:
    """One replica of a trial.

    Args:
        replica: who this is.
        host: whoever launched it.
        snapshot: bytes of a snapshot to start from, if the trial is resumed.
        start: where the trial is, for a newcomer: it starts at that epoch.
        snapshot_interval_s: time between two snapshots, besides those that results take. None: none between.
        join_timeout_s: how long the members of a new generation wait for each other.
        address: host name under which other replicas reach this one; None asks the system.
        group: a group that exists already; the session is joined from the start.
        num_nodes: nodes the replicas of `group` stand on.

    Raises:
        SnapshotError: `snapshot` cannot be read.
    """

    def __init__(
        self,
        *,
        replica: Member,
        host: Host,
        snapshot: bytes | None = None,
        start: Place | None = None,
        snapshot_interval_s: float | None = 30.0,
        join_timeout_s: float = 30.0,
        address: str | None = None,
        group: Group | None = None,
        num_nodes: int = 1,
    ) -> None:
        self.replica = replica
        self.host = host
        self.snapshot_interval_s = snapshot_interval_s
        self.join_timeout_s = join_timeout_s
        self.store = Store(address)
        self.mailbox = Mailbox()
        self.group = group
        self.exchange = None if group is None else StepExchange(group)
        self.num_nodes = num_nodes
        self.generation = 0
        self.most_samples: dict[str, int] = {}
        """Names of loaders → samples that fit into one pass, where memory has run out."""
        self.pause: reallocation.Pause | None = None
        self.rank_before = 0
        """Rank in the group that was lost last."""
        self._snapshot = snapshot
        self._start = start
        self._background: ThreadPoolExecutor | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="adaptdl-sender")
        """Sends results and snapshots, in their order."""
        self._sent: Future[None] | None = None
        """The last of them."""
        self._reset()

    def _reset(self) -> None:
        """Everything the user's function builds, as before it runs."""
        now = time.monotonic()
        self.registry = Registry()
        self.tuner = Tuner()
        self.loop: Loop | None = None
        self.micro: Micro | None = None
        self.epoch: int | None = None
        self.finished_epochs = 0
        self.num_steps = 0
        self.num_batches = 0
        self.num_skipped_steps = 0
        self.progress = 0.0
        self.pause_total_s = 0.0
        self.last_step_at = now
        self._total_epochs: int | None = None
        self._entered = False
        self._loop_index = 0
        self._record: list[dict[str, Any]] = []
        self._replay: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._reports_seen = self._reports_done = 0
        self.num_results = 0
        self._pending_report: tuple[dict[str, Any], dict[str, bytes] | None] | None = None
        self._last_report: tuple[dict[str, Any], dict[str, bytes] | None] | None = None
        """The last one that was sent, if this replica is rank 0, or by rank 0; with the number `num_results`."""
        self.num_folds = 0
        self._skip_to: Position | None = None
        self._rngs: Sequence[Any] = ()
        """States of random numbers by rank, to be restored."""
        self._models: list[weakref.ref[AdaptiveDataParallel]] = []
        self._stepped: list[AdaptiveDataParallel] = []
        self._stepped_before: list[AdaptiveDataParallel] = []
        self.is_matching = False
        self._broken: GroupBroken | None = None
        self._out_of_memory = False
        self._num_out_of_memory = num_out_of_memory()
        self._main_loader: weakref.ref[AdaptiveDataLoader] | None = None
        self._updated_at = self._snapshot_at = now
        self._next_report_snapshot_at = now
        if self._snapshot is not None:
            self.load(read_snapshot(self._snapshot), resume=True)
        if self._start is not None:
            self.finished_epochs = max(self.finished_epochs, self._start.position.epoch)
            self._go_to(self._start)

    # -- the control side: from any thread, returns at once -----------------------------------------------------------

    def open_store(self) -> tuple[str, int]:
        """Host and port of this replica's key-value store, at which a generation can meet."""
        return self.store.open()

    def place(self) -> Place:
        """Where the training thread is."""
        loop = self.loop
        kind = LoopKind.BETWEEN if loop is None else LoopKind.TRAINING if loop.training else LoopKind.OTHER
        return Place(
            position=self.position,
            kind=kind,
            steps=self.num_steps,
            record=pickle.dumps(self._record),
            num_sums=len(self._record),
            num_folds=self.num_folds,
        )

    def pulse(self) -> Pulse:
        """Where the training thread is, and how long it has waited for other replicas."""
        group = self.group
        since = [model.waits_since for model in self.models()]
        if group is not None:
            since.append(group.waits_since)
        waits = [at for at in since if at is not None]
        waited_s = time.monotonic() - min(waits) if waits else None
        return Pulse(place=self.place(), generation=self.generation, waited_s=waited_s, num_batches=self.num_batches)

    def reallocate(self, plan: Plan) -> None:
        """To the source: carry out `plan` at the next boundary at its target."""
        self.mailbox.plan = plan

    def join(self, plan: Plan) -> None:
        """To a newcomer or a parked replica: become part of `plan`."""
        self.mailbox.put(plan)

    def advance(self, advance: Advance) -> None:
        """To a newcomer that stands at a loop: go on, skipping loops, to a later one."""
        self.mailbox.put(advance)

    def lost(self, replica_ids: frozenset[str]) -> None:
        """To whoever calls a roll: these will not come any more."""
        self.mailbox.lost |= replica_ids

    def abandon(self, generation: int) -> None:
        """To a member: the group of this generation does not work; whatever waits in it fails."""
        group = self.group
        if group is not None and self.generation == generation:
            group.abort()

    def leave(self) -> None:
        """To a newcomer or a parked replica: you are no longer wanted."""
        self.mailbox.put(Order.LEAVE)

    # -- who and where ------------------------------------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        return self.group is not None

    @property
    def rank(self) -> int:
        """Rank in the generation; 0 for a replica that has not joined."""
        return 0 if self.group is None else self.group.rank

    @property
    def num_replicas(self) -> int:
        return 1 if self.group is None else self.group.num_replicas

    @property
    def position(self) -> Position:
        if self.epoch is not None:
            return Position(epoch=self.epoch, loop=self._loop_index)
        return Position(epoch=self.finished_epochs if self._entered else -1, loop=self._loop_index)

    @property
    def is_skipping(self) -> bool:
        """Whether what runs now was done by the trial before, and is passed over."""
        if self._skip_to is not None and self.position >= self._skip_to:
            self._skip_to = None
        return self._skip_to is not None

    def _go_to(self, place: Place) -> None:
        self._skip_to = place.position
        if place.record:
            self._replay = (place.position.epoch, pickle.loads(place.record))

    def models(self) -> list[AdaptiveDataParallel]:
        """The living models, in the order of their creation."""
        return [model for ref in self._models if (model := ref()) is not None]

    def add_model(self, model: AdaptiveDataParallel) -> None:
        self._models.append(weakref.ref(model))

    def background(self) -> ThreadPoolExecutor:
        """One thread for what the training thread must not wait for."""
        if self._background is None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="adaptdl-background")
        return self._background

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, func: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> bool:
        """Runs the user's function.

        Returns:
            True if it has returned, False if this replica left before.

        Raises:
            whatever `func` raises; but a newcomer whose function raises while it skips loops (code after a loop may not
            like an empty one) starts it again, at the epoch it should advance to.
        """
        from adaptdl.torch.ambient import use_session

        with use_session(self):
            self._join_alone()
            while True:
                try:
                    func(config)
                    return self._finish()
                except Leave:
                    return False
                except Exception as error:
                    if self._makes_do_with_less(error):
                        continue
                    started_at = None if self._start is None else self._start.position
                    if self.joined or self._skip_to is None or self._skip_to == started_at:
                        raise
                    logger.info(
                        "replica %s starts its function again at %s, since it failed where a loop was skipped",
                        self.replica.replica_id,
                        self._skip_to,
                        exc_info=True,
                    )
                    self._start = Place(
                        position=self._skip_to, kind=LoopKind.BETWEEN, record=pickle.dumps(self._replay[1])
                    )
                    self._snapshot = None
                    self._reset()

    def _makes_do_with_less(self, error: Exception) -> bool:
        """After running out of memory: whether the function can go on from the last step, with fewer samples in a pass."""
        loop, micro, group = self.loop, self.micro, self.group
        if not self._ran_out_of_memory or loop is None or micro is None or group is None or not is_out_of_memory(error):
            return False
        if group.num_replicas > 1 and not group.may_be_left:
            return False
        loader = loop.loader
        low = (loader.bounds.local_bsz_bounds or (1, 1))[0] if loader.is_adaptive else 1
        most = smaller_pass(micro.size, low)
        if most is None:
            return False
        logger.warning(
            "out of memory with %d samples in one pass of %s: at most %d from now on (%s)",
            micro.size,
            loader.name,
            most,
            str(error).splitlines()[0],
        )
        self.most_samples[loader.name] = most
        broken = GroupBroken(f"out of memory with {micro.size} samples in one pass")
        if group.num_replicas > 1:
            for accumulator in self._accumulators():
                accumulator.roll_back()
            self.lose_group(broken)
        self._snapshot, self._start = write_snapshot(self.capture()), None
        self._reset()
        if group.num_replicas > 1:
            self._broken = broken
        else:
            self.exchange = StepExchange(group)
        release_memory()
        return True

    def _join_alone(self) -> None:
        """The only replica of a first generation has nobody to wait for: it need not stand at a loop first."""
        plan = self.mailbox.peek()
        if not isinstance(plan, Plan) or plan.source is not None:
            return
        if [member.replica_id for member in plan.members] == [self.replica.replica_id]:
            self.mailbox.clear()
            reallocation.join(self, plan)

    def _finish(self) -> bool:
        if not self.joined:
            self.host.left(self.generation)
            return False
        self.flush_report()
        self._await_sent()
        if self._background is not None:
            self._background.shutdown(wait=True)
        return True

    def close(self) -> None:
        """Ends the process group; the session cannot be used afterwards."""
        self.drop_group()
        self._await_sent()
        self._sender.shutdown(wait=True)
        if self._background is not None:
            self._background.shutdown(wait=True)

    # -- losing the group: see `recovery` -------------------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether the group was lost: the step that runs is void."""
        return self._broken is not None

    def note_broken(self, error: Exception) -> None:
        """A collective has failed, in whatever thread; the training thread sees to it at the next boundary."""
        if self._broken is None:
            self._broken = error if isinstance(error, GroupBroken) else GroupBroken(str(error))

    def lose_group(self, error: GroupBroken) -> None:
        """Leaves the broken group, so that its other members, whoever they wait for, learn of it, too."""
        if self.group is not None:
            self.rank_before = self.group.rank
            self.group.abort()
        stepped = self._stepped or self._stepped_before
        self.mailbox.clear()
        self.mailbox.plan = None
        self.drop_group()
        self._stepped_before = stepped
        self.note_broken(error)
        if self.loop is not None:
            self.loop.lost_replicas, self.loop.steady_since = True, None

    def runs_on_to(self, place: Place) -> bool:
        """Takes `place`, where the others stand, as the one to go to; False if this replica is there."""
        if place.meets(self.place()):
            return False
        self._go_to(place)
        return True

    def regained_group(self, *, reports_again: bool) -> None:
        """A member again. `reports_again`: this replica has not led the group that was lost."""
        self._broken = None
        self._tell_switched()
        if self.rank == 0 and reports_again and self._last_report is not None:
            metrics, files = self._last_report
            self._send_report(metrics, files, self.capture())

    def drop_group(self) -> None:
        """Takes this replica out of its group.

        The models go first: a Reducer that held the last reference to a process group would wait for the group's threads
        while it holds the interpreter lock, and they may wait for that lock.
        """
        for model in self.models():
            model.release()
        self._stepped, self._stepped_before = [], []
        if self.group is not None:
            self.group.close()
        self.group = self.exchange = None

    def enter_group(self, group: Group, plan: Plan, num_nodes: int) -> None:
        """Makes this replica a member of `plan`'s generation, whose states it has already."""
        self.group, self.exchange = group, StepExchange(group)
        self._broken = None
        if self.loop is not None and not self.loop.lost_replicas:  # what was done before is known, whoever has done it
            self.loop.covers_from, self.loop.shares = self.loop.loader.sampler.position, []
        self.generation, self.num_nodes = plan.generation, num_nodes
        for model in self.models():
            model.rebuild(group)

    # -- epochs -------------------------------------------------------------------------------------------------------

    def begin_epoch(self, total_epochs: int) -> int:
        """The next epoch begins; returns its number."""
        if self.epoch is not None:
            raise UsageError("remaining_epochs_until cannot be nested: end one epoch loop before the next one begins")
        self.registry.settle()
        if not self._entered:
            self._entered, self._loop_index, self._record = True, 0, []
        self.epoch, self._total_epochs = self.finished_epochs, total_epochs
        self.registry.begin_epoch(self.epoch)
        return self.epoch

    def end_epoch(self) -> None:
        """The epoch that runs is over."""
        assert self.epoch is not None
        self.finished_epochs = self.epoch + 1
        if not self.joined and self._skip_to is not None:
            self.finished_epochs = max(self.finished_epochs, self._skip_to.epoch)
        self.epoch, self._loop_index, self._record = None, 0, []
        self._reports_seen = self._reports_done = 0
        self.flush_report()
        if self.joined and self.rank == 0 and self.finished_epochs == self._total_epochs:
            self._await_sent()
            self._write_snapshot(self.capture())

    def abandon_epoch(self) -> None:
        """The user has broken out of the epoch loop."""
        self.epoch = None

    # -- data loops ---------------------------------------------------------------------------------------------------

    def enter_loop(self, loader: AdaptiveDataLoader) -> Loop | None:
        """Begins a loop; None if it is one to be skipped.

        Raises:
            UsageError: a loop is running already.
        """
        if self.loop is not None and self._out_of_memory:  # the user has made something of it
            self._out_of_memory, self._num_out_of_memory = False, num_out_of_memory()
            self.leave_loop(self.loop, keep_company=True)
        if self.loop is not None:
            raise UsageError(
                "loops over AdaptiveDataLoaders cannot be nested or run side by side: end one (or delete its iterator) "
                "before the next one begins; to draw from two data sets at once, put them into one Dataset"
            )
        self.registry.settle()
        self.flush_report()
        while True:
            was_joined, was_broken = self.joined, self.is_broken
            while not self.is_skipping and not self.joined:
                self.loop = self._new_loop(loader)
                try:
                    self._stand_until_joined()
                finally:
                    self.loop = None
            if self.is_skipping:
                self._loop_index += 1
                return None
            if self.rank < len(self._rngs):
                set_rng_state(self._rngs[self.rank])
            self._rngs = ()
            loop = self.loop = self._new_loop(loader)
            if was_broken:  # the others are in the loop, or at its end
                loop.lost_replicas, loop.hands_out = True, loop.training
            if not was_joined or self._begin_together(loop):
                return loop
            self.loop = None  # the others are further

    def _begin_together(self, loop: Loop) -> bool:
        """All members begin a loop; False if this one was lost by the others, which stand further on."""
        self.last_step_at = time.monotonic()  # what came before the loop is not a pause of the training
        self._drop_passed_plan()
        try:
            self._launch_exchange()
            seen = self._take_exchange()
            if seen.attention or seen.interrupted:
                self._attend(loop, seen)
        except GroupBroken as error:
            recover(self, error)
            loop.hands_out = loop.training
        return self.joined

    def _new_loop(self, loader: AdaptiveDataLoader) -> Loop:
        training = torch.is_grad_enabled() and any(model.training for model in self.models())
        if training:
            self._main_loader = weakref.ref(loader)
        return Loop(loader=loader, training=training, retuned_at=float("-inf"))

    def _stand_until_joined(self) -> None:
        """Waits for orders until they make this replica a member or send it on. Raises Leave if it is not wanted."""
        if not self.is_skipping:
            warm_up()
        while not self.joined and not self.is_skipping:
            if self._broken is None:
                self.host.ready(self.position)
            else:
                self.host.broken(self.generation, self.place(), str(self._broken))
            order = self.mailbox.wait()
            if order is Order.LEAVE:
                self.host.left(self.generation)
                raise Leave
            if isinstance(order, Advance):
                self._go_to(order.place)
            elif isinstance(order, Plan):
                try:
                    reallocation.join(self, order)
                except GroupBroken as error:
                    logger.info("replica %s could not join: %s", self.replica.replica_id, error)
                    self.drop_group()

    def park(self) -> None:
        """Keeps process and state for a later plan; returns when this replica is a member again."""
        self.mailbox.plan = None
        while not self.joined:
            order = self.mailbox.wait()
            if order is Order.LEAVE:
                raise Leave
            if isinstance(order, Plan):
                self.last_step_at = time.monotonic()  # what it was parked is not a pause of the training
                reallocation.join(self, order)

    def leave_loop(self, loop: Loop, *, keep_company: bool) -> None:
        """Ends a loop. `keep_company`: others may still be in it."""
        if self.loop is not loop:
            return
        if self._ran_out_of_memory:
            return  # an error is on its way through the user's function: see `run`
        micro, self.micro = self.micro, None
        for model in self.models():
            model.end_loop()
        while keep_company and self.joined:
            try:
                self._part(loop, micro)
                break
            except GroupBroken as error:
                micro = None
                recover(self, error)
        self.loop = None
        self._loop_index += 1

    @property
    def _ran_out_of_memory(self) -> bool:
        """Whether memory ran out for the batch in hand."""
        if self.micro is not None and num_out_of_memory() > self._num_out_of_memory:
            self._out_of_memory = True
        return self._out_of_memory

    def note_out_of_memory(self) -> None:
        """Memory has run out in a pass of a model."""
        self._out_of_memory = self.micro is not None

    def _part(self, loop: Loop, micro: Micro | None) -> None:
        """The members part at the end of a loop, when all have left it; sums and buffers are those of all of them."""
        assert self.exchange is not None
        if self._broken is not None:
            raise self._broken
        if self.exchange.launched and micro is not None:
            loop.training, loop.steady_since = True, None
            if not self._take_exchange().num_left:
                self._count(loop, micro.batch_size, time.monotonic())
        if self.num_replicas == 1:
            return
        if loop.training:
            self._keep_company()
        self._fold()
        if loop.training:
            for model in self.models():
                model.broadcast_buffers()

    def _keep_company(self) -> None:
        """Takes part in exchanges, and with zeros in steps, until all replicas have left the loop."""
        while True:
            for model in self.models():
                model.rebuild_buckets()
            self._launch_exchange(left=True)
            if self._take_exchange().num_left == self.num_replicas:
                return
            self.is_matching = True
            try:
                for model in self._stepped or self._stepped_before:
                    model.match_step()
            finally:
                self.is_matching = False
            if self._broken is not None:
                raise self._broken

    def lost_positions(self, loop: Loop, num_covered: int) -> list[int]:
        """At the end of a loop without steps: positions of the pass which no replica that is left has done, since others were
        lost, and which this one should do now. Empty once there are none, or this replica is to run on.

        Args:
            num_covered: the loop covers positions from `loop.covers_from` to this one.
        """
        while self.num_replicas > 1 or self.is_broken or loop.lost_replicas:
            try:
                if self._broken is not None:
                    raise self._broken
                group = self.group
                if group is None:
                    return []
                gathered = group.all_gather_object((loop.lost_replicas, loop.shares))
            except GroupBroken as error:
                recover(self, error)
                if not self.joined:
                    return []
                continue
            if not any(lost for lost, _ in gathered):
                return []
            done: set[int] = set()
            for _, shares in gathered:
                for begin, number in shares:
                    done.update(range(begin, begin + number))
            left = [position for position in range(loop.covers_from, num_covered) if position not in done]
            loop.lost_replicas = bool(left)
            return left[group.rank :: group.num_replicas] if left else []
        return []

    # -- steps --------------------------------------------------------------------------------------------------------

    def begin_micro(self, micro: Micro) -> None:
        """The loader is about to hand out a batch."""
        self.micro = micro
        self.num_batches += 1
        self._out_of_memory = False
        if micro.index == 0 and self._stepped:
            self._stepped_before, self._stepped = self._stepped, []
        if micro.index == 0 and self.num_replicas > 1:
            for accumulator in self._accumulators():
                accumulator.mark()
        self._tell_switched()

    def _tell_switched(self) -> None:
        """A generation goes on with its first batch."""
        if self.pause is None:
            return
        pause, self.pause = self.pause, None
        pause_s = time.monotonic() - pause.since if pause.counts else 0.0
        self.pause_total_s += pause_s
        if self.rank == 0:
            self.host.switched(
                Switched(
                    generation=self.generation,
                    num_replicas=self.num_replicas,
                    num_nodes=self.num_nodes,
                    position=self.position,
                    steps=self.num_steps,
                    pause_s=pause_s,
                    dropped=pause.dropped,
                )
            )
            self._send_update()

    @property
    def is_accumulating(self) -> bool:
        """Whether the batch in hand is not the last one of its step."""
        return self.micro is not None and not self.micro.is_last

    @property
    def holds_back(self) -> bool:
        """Whether nothing must be updated after the batch in hand: its step is not complete, or void."""
        return self.is_accumulating or (self.micro is not None and self.is_broken)

    @property
    def lr_scale(self) -> float:
        """M / M₀ of the loop that runs; 1 outside of loops."""
        if self.loop is None or self.micro is None:
            return 1.0
        return self.loop.loader.batch.batch_size / self.loop.loader.init_batch_size

    def on_first_bucket(self, model: AdaptiveDataParallel) -> None:
        """`model` begins to reduce its gradients."""
        if self.is_matching or self.loop is None or self.micro is None:
            return
        self._stepped.append(model)
        assert self.exchange is not None
        if not self.exchange.launched:
            try:
                self._launch_exchange()
            except GroupBroken as error:
                self.note_broken(error)

    @property
    def step_is_void(self) -> bool:
        """Whether a replica has left the loop before this step, or was lost in it: then nobody makes it."""
        if self.is_broken:
            return True
        if self.exchange is None or not self.exchange.launched:
            return False
        try:
            return self.exchange.peek().num_left > 0
        except GroupBroken as error:
            self.note_broken(error)
            return True

    def skip_step(self) -> None:
        """The gradients of a step are of no use: counts it, and says so now and then."""
        self.num_skipped_steps += 1
        if self.rank == 0 and math.log10(self.num_skipped_steps).is_integer():
            logger.warning(
                "step %d skipped, since its gradients are not finite (%d so far)",
                self.num_steps,
                self.num_skipped_steps,
            )

    def boundary(self, loop: Loop, *, batch_size: int, is_over: Callable[[], bool]) -> Action:
        """After a step, or a batch of a loop without steps.

        Args:
            batch_size: samples of the step.
            is_over: whether the loop ends here anyway, given the progress made.
        """
        try:
            if self._broken is not None:
                raise self._broken
            return self._end_of_step(loop, batch_size, is_over)
        except GroupBroken as error:
            recover(self, error)
            return Action.REPARTITION if self.joined else Action.STOP

    def _end_of_step(self, loop: Loop, batch_size: int, is_over: Callable[[], bool]) -> Action:
        now = time.monotonic()
        assert self.exchange is not None
        attention = False
        seen: Exchanged | None = None
        if self.exchange.launched:
            loop.training = True
            self._main_loader = weakref.ref(loop.loader)
            seen = self._take_exchange()
            if seen.num_left:
                return Action.STOP
            self._count(loop, batch_size, now)
            attention = seen.attention or seen.interrupted
        loop.loader.sampler.position += batch_size
        if seen is None and self.num_replicas > 1:
            return Action.CONTINUE
        self.last_step_at = now
        self.micro = None
        if self.rank == 0:
            self._drop_passed_plan()
            if now - self._updated_at > _UPDATE_INTERVAL_S:
                self._send_update()
        if is_over():
            return Action.OVER
        if self.num_replicas == 1:
            attention = self._wants_attention() or self.mailbox.interrupted
        return self._attend(loop, seen) if attention else Action.CONTINUE

    def _count(self, loop: Loop, batch_size: int, now: float) -> None:
        loader = loop.loader
        self.num_steps += 1
        if batch_size == loader.init_batch_size or (grad_params := self.grad_params) is None:
            self.progress += batch_size / loader.init_batch_size
        else:
            self.progress += float(gain(grad_params, loader.init_batch_size, batch_size))
        micro, batch = self.micro, loader.batch
        is_plain = batch_size == batch.batch_size and micro is not None and micro.count == batch.accum_steps + 1
        if loop.steady_since is not None and is_plain:
            sync_time_s = sum(model.sync_time_s for model in self._stepped)
            self.tuner.record(self._profile_key(batch), now - loop.steady_since, sync_time_s)
        loop.steady_since = now

    def _profile_key(self, batch: Batch) -> ProfileKey:
        return ProfileKey(
            num_nodes=self.num_nodes,
            num_replicas=self.num_replicas,
            atomic_batch_size=batch.atomic_batch_size,
            accum_steps=batch.accum_steps,
        )

    @property
    def init_batch_size(self) -> int | None:
        """M₀ of the training loop that runs, or ran last."""
        loader = None if self._main_loader is None else self._main_loader()
        return None if loader is None else loader.init_batch_size

    @property
    def grad_params(self) -> GradParams | None:
        """The gradient statistics of the first model, once there are any."""
        models = self.models()
        return models[0].grad_params(self) if models else None

    def _launch_exchange(self, *, left: bool = False) -> None:
        assert self.exchange is not None
        self.exchange.launch(
            attention=not left and self._wants_attention(),
            left=left,
            interrupted=self.mailbox.interrupted,
            samples=[model.take_sample() for model in self.models()],
        )

    def _take_exchange(self) -> Exchanged:
        assert self.exchange is not None
        seen = self.exchange.take()
        if seen.num_valid == self.num_replicas:
            for model, sample in zip(self.models(), seen.samples, strict=False):
                model.give_sample(*sample)
        return seen

    # -- what rank 0 has to say ---------------------------------------------------------------------------------------

    def _drop_passed_plan(self) -> None:
        plan = self.mailbox.plan
        if plan is not None and plan.target is not None and plan.target < self.position:
            self.mailbox.plan = None
            self.host.missed(plan.generation, self.place())

    def _plan_to_carry_out(self) -> Plan | None:
        plan = self.mailbox.plan
        return plan if plan is not None and plan.target in (None, self.position) else None

    def _wants_attention(self) -> bool:
        if self.rank != 0 or self.loop is None:
            return False
        return self._plan_to_carry_out() is not None or self._snapshot_due() or self._better_batch() is not None

    def _snapshot_due(self) -> bool:
        if self.snapshot_interval_s is None or time.monotonic() - self._snapshot_at < self.snapshot_interval_s:
            return False
        return self._sent is None or self._sent.done()

    def _better_batch(self) -> Batch | None:
        """A batch size for the loop that runs that is worth a change; looked for at its start and every 30 s."""
        loop = self.loop
        if loop is None or not loop.loader.is_adaptive:
            return None
        if loop.better_batch is None and time.monotonic() - loop.retuned_at > _RETUNE_INTERVAL_S:
            loop.retuned_at = time.monotonic()
            batch = self._choose_batch(loop.loader)
            loop.better_batch = batch if batch != loop.loader.batch else None
        return loop.better_batch

    def _choose_batch(self, loader: AdaptiveDataLoader) -> Batch:
        return self.tuner.choose(loader.bounds, self.grad_params, self.num_nodes, self.num_replicas, loader.batch)

    def _attend(self, loop: Loop, seen: Exchanged | None) -> Action:
        """Everybody hears what rank 0 has to say, and does it."""
        group = self.group
        assert group is not None
        notice = None
        if self.rank == 0:
            notice = Notice(
                plan=self._plan_to_carry_out(),
                batch=self._better_batch(),
                snapshot=self._snapshot_due(),
                interrupt=self.mailbox.interrupted or (seen is not None and seen.interrupted),
            )
        notice = group.broadcast_object(notice)
        assert isinstance(notice, Notice)
        if notice.interrupt or notice.snapshot or notice.plan is not None:
            self._fold()
        rngs = group.all_gather_object(rng_state()) if notice.interrupt or notice.snapshot else []
        if notice.interrupt:
            if self.rank == 0:
                self._await_sent()
                self._write_snapshot(self.capture(rngs))
            group.all_gather_object(None)
            raise KeyboardInterrupt
        if notice.snapshot and self.rank == 0:
            self._snapshot_at = time.monotonic()
            self._sent = self._sender.submit(self._write_snapshot, self.capture(rngs))
        if notice.batch is not None:
            loop.loader.batch, loop.better_batch = notice.batch, None
        if notice.plan is not None:
            self.mailbox.plan = None
            reallocation.switch(self, notice.plan)
        if notice.batch is None and notice.plan is None:
            return Action.CONTINUE
        loop.steady_since = None
        return Action.REPARTITION

    def agree_on_batch(self) -> None:
        """After a reallocation: everybody takes the batch size that rank 0 chooses for the loop they are in."""
        if self.loop is None:
            return
        assert self.group is not None
        loader = self.loop.loader
        for most_samples in self.group.all_gather_object(self.most_samples):
            self._fits_at_most(most_samples)
        loader.keep_within_memory()
        loader.batch = self.group.broadcast_object(self._choose_batch(loader) if self.rank == 0 else None)
        self.loop.retuned_at, self.loop.better_batch, self.loop.steady_since = time.monotonic(), None, None

    def _accumulators(self) -> list[Accumulator]:
        return [state for state in self.registry.living().values() if isinstance(state, Accumulator)]

    def _fits_at_most(self, most_samples: Mapping[str, int]) -> None:
        for name, most in most_samples.items():
            self.most_samples[name] = min(most, self.most_samples.get(name, most))

    def _fold(self) -> None:
        """What accumulators have not yet summed becomes part of the sums, which every replica has."""
        assert self.group is not None
        if self.num_replicas == 1:
            return
        accumulators = self._accumulators()
        gathered = self.group.all_gather_object({state.name: state.changes for state in accumulators})
        for state in accumulators:
            state.sum_up(changes.get(state.name, {}) for changes in gathered)
        self.num_folds += 1

    def agree_on_sums(self, sums: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """The totals of an accumulator: `sums` so far, and what every replica has added since."""
        self.registry.settle()
        total = self._replayed_sums()
        while total is None:
            total = dict(sums)
            if self.is_skipping or (self.group is None and (not self.is_broken or self.loop is not None)):
                add_changes(total, changes)
                break
            try:
                if self.group is None:
                    assert self._broken is not None
                    raise self._broken
                for part in self.group.all_gather_object(dict(changes)):
                    add_changes(total, part)
            except GroupBroken as error:
                if self.loop is not None:  # the boundary sees to it
                    self.note_broken(error)
                    add_changes(total, changes)
                    break
                recover(self, error)
                total = self._replayed_sums()
        self._record.append(total)
        return total

    def _replayed_sums(self) -> dict[str, Any] | None:
        """The totals from the record of a job that was here before."""
        epoch, replay = self._replay
        index = len(self._record)
        return dict(replay[index]) if index < len(replay) and epoch == self.position.epoch else None

    # -- states -------------------------------------------------------------------------------------------------------

    def capture(self, rngs: Sequence[Any] = ()) -> dict[str, Any]:
        """The whole state of the trial, as a copy that later steps do not change. `rngs`: the random numbers' of all
        replicas in rank order, if they are known."""
        state = {
            "session": self._state_dict(),
            "states": self.registry.state_dict(),
            "rngs": list(rngs) or [rng_state()],
        }
        copied: dict[str, Any] = copy_states(state)
        return copied

    def shared_states(self) -> dict[str, Any]:
        """As `capture`, for a broadcast at once: not copied; random numbers only if they wait to be restored."""
        return {"session": self._state_dict(), "states": self.registry.state_dict(), "rngs": self._rngs}

    def _state_dict(self) -> dict[str, Any]:
        return {
            "position": (self.position.epoch, self.position.loop),
            "finished_epochs": self.finished_epochs,
            "num_steps": self.num_steps,
            "progress": self.progress,
            "pause_total_s": self.pause_total_s,
            "since_last_step_s": time.monotonic() - self.last_step_at,
            "record": list(self._record),
            "num_reports": self._reports_done,
            "num_results": self.num_results,
            "num_folds": self.num_folds,
            "num_skipped_steps": self.num_skipped_steps,
            "most_samples": dict(self.most_samples),
            "tuner": self.tuner.state_dict(),
        }

    def load(self, states: Mapping[str, Any], *, resume: bool) -> None:
        """Takes over the state of a snapshot (`resume`), or of another replica at the same position."""
        session = states["session"]
        own: dict[str, Mapping[str, Any]] = {}
        if not resume:
            own = self._own_changes(num_steps=session["num_steps"], num_folds=session["num_folds"])
        self.num_results, self.num_folds = session["num_results"], session["num_folds"]
        self.num_steps, self.progress = session["num_steps"], session["progress"]
        self.pause_total_s, self.num_skipped_steps = session["pause_total_s"], session["num_skipped_steps"]
        self._fits_at_most(session["most_samples"])
        self.last_step_at = time.monotonic() - session["since_last_step_s"]
        self.tuner.load_state_dict(session["tuner"])
        self._reports_done = session["num_reports"]
        self._rngs = states["rngs"]
        if resume:
            epoch, loop = session["position"]
            self.finished_epochs = session["finished_epochs"]
            self._skip_to = Position(epoch=epoch, loop=loop)
            self._replay = (epoch, list(session["record"]))
        else:
            assert (self.position.epoch, self.position.loop) == tuple(session["position"]), (self.position, session)
            self._record, self._reports_seen = list(session["record"]), session["num_reports"]
        self.registry.load_state_dict(states["states"])
        for accumulator in self._accumulators():
            accumulator.give_changes(own.get(accumulator.name, {}))

    def _own_changes(self, *, num_steps: int, num_folds: int) -> dict[str, Mapping[str, Any]]:
        """What this replica has added to accumulators that is not part of the sums in a state with so many steps and folds;
        no longer there afterwards."""
        if num_steps == self.num_steps:
            self.undo_void_step()
        if num_folds != self.num_folds:
            return {}
        return {accumulator.name: accumulator.take_changes() for accumulator in self._accumulators()}

    def undo_void_step(self) -> None:
        """Takes back what was added to accumulators in the step that runs and that nobody has made."""
        if self.is_broken and self.micro is not None and self.loop is not None and self.loop.training:
            for accumulator in self._accumulators():
                accumulator.roll_back()

    def _write_snapshot(self, states: dict[str, Any]) -> None:
        self.host.snapshot(write_snapshot(states), int(states["session"]["num_steps"]))

    # -- results ------------------------------------------------------------------------------------------------------

    def report(self, metrics: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        """A result. It is sent at the end of the epoch, or before the next loop or result, whichever comes first, so that
        the state it comes with is one from which the job can go on.

        Args:
            metrics: the user's metrics; the session adds its own (``adaptdl/…``).
            files: the user's own checkpoint, as the contents of files by relative path.
        """
        if not self.joined and not self.is_skipping and self._start is None:
            self._stand_until_joined()  # the first replicas of a trial; later ones come to a loop that runs
        self._reports_seen += 1
        if not self.joined or self.is_skipping or self._reports_seen <= self._reports_done:
            return
        self.flush_report()
        self._reports_done = self._reports_seen
        self.num_results += 1
        self._pending_report = ({**metrics, **self.metrics()}, files)

    def flush_report(self) -> None:
        """Sends the result that waits, if there is one; replicas but rank 0 keep it, in case rank 0 is lost."""
        if self._pending_report is None or not self.joined:
            return
        self._last_report, self._pending_report = self._pending_report, None
        metrics, files = self._last_report
        if self.rank != 0:
            return
        states = None
        started = time.monotonic()
        if files is not None or started >= self._next_report_snapshot_at:
            states = self.capture()
            now = self._snapshot_at = time.monotonic()
            if now - started > _CHEAP_SNAPSHOT_S:
                self._next_report_snapshot_at = now + (now - started) * (1 / _SNAPSHOT_SHARE - 1)
        self._send_report(metrics, files, states)

    def _send_report(
        self, metrics: dict[str, Any], files: dict[str, bytes] | None, states: dict[str, Any] | None
    ) -> None:
        """Sends a result, when the one before was taken; training does not wait for more than that."""
        self._await_sent()
        number = self.num_results

        def send() -> None:
            self.host.report(metrics, files, None if states is None else write_snapshot(states), number)

        self._sent = self._sender.submit(send)

    def _await_sent(self) -> None:
        """Waits until all that was sent was taken. Raises what went wrong with it."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def metrics(self) -> dict[str, float]:
        """The columns this replica adds to results."""
        values: dict[str, float] = {
            "adaptdl/num_replicas": self.num_replicas,
            "adaptdl/num_nodes": self.num_nodes,
            "adaptdl/progress": self.progress,
            "adaptdl/pause_s": self.pause_total_s,
            "adaptdl/num_skipped_steps": self.num_skipped_steps,
        }
        loader = None if self._main_loader is None else self._main_loader()
        if loader is not None:
            batch, grad_params = loader.batch, self.grad_params
            values["adaptdl/batch_size"] = batch.batch_size
            values["adaptdl/efficiency"] = (
                1.0 if grad_params is None else float(efficiency(grad_params, loader.init_batch_size, batch.batch_size))
            )
            step_time_s = self.tuner.step_time_s(self._profile_key(batch))
            if step_time_s:
                values["adaptdl/goodput"] = batch.batch_size / step_time_s * values["adaptdl/efficiency"]
        return values

    def _send_update(self) -> None:
        self._updated_at = time.monotonic()
        self.tuner.refit(self.background())
        loader = None if self._main_loader is None else self._main_loader()
        report = None
        if loader is not None:
            remaining = None
            if self._total_epochs is not None:
                steps = self._total_epochs * loader.num_samples / loader.init_batch_size
                remaining = max(0.0, steps - self.progress)
            report = JobReport(
                bounds=loader.bounds,
                perf_params=self.tuner.perf_params,
                grad_params=self.grad_params,
                max_profiled_replicas=self.tuner.max_profiled_replicas,
                progress=self.progress,
                remaining_progress=remaining,
                pause_s=None,
                batch_size=loader.batch.batch_size,
                num_replicas=self.num_replicas,
            )
        self.host.update(Update(generation=self.generation, place=self.place(), report=report, metrics=self.metrics()))
