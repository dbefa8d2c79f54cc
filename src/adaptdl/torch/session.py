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
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from adaptdl.errors import UsageError
from adaptdl.goodput import GradParams, gain
from adaptdl.plan import Advance, Host, LoopKind, Member, Place, Plan, Position, Pulse
from adaptdl.torch import reallocation
from adaptdl.torch.attention import attend, drop_passed_plan, wants_attention
from adaptdl.torch.exchange import Exchanged, StepExchange
from adaptdl.torch.group import Group, GroupBroken
from adaptdl.torch.loop import Action, Loop, Micro
from adaptdl.torch.mailbox import Leave, Mailbox, Order
from adaptdl.torch.memory import makes_do_with_less, num_out_of_memory
from adaptdl.torch.news import profile_key, send_update, tell_switched
from adaptdl.torch.norm_pace import SplitPace
from adaptdl.torch.parting import part
from adaptdl.torch.recovery import recover
from adaptdl.torch.registry import Registry
from adaptdl.torch.reports import Reports
from adaptdl.torch.rng import rng_state, set_rng_state
from adaptdl.torch.store import Store
from adaptdl.torch.sums import Sums
from adaptdl.torch.transfer import copy_states, read_snapshot
from adaptdl.torch.tuning import Tuner
from adaptdl.torch.warm_up import warm_up

if TYPE_CHECKING:
    from adaptdl.torch.data_parallel import AdaptiveDataParallel
    from adaptdl.torch.loader import AdaptiveDataLoader

__all__ = ["ElasticSession"]

logger = logging.getLogger(__name__)

_SHARE_OF_AGE = 0.2
_SHORTEST_UPDATE_S, _LONGEST_UPDATE_S = 0.1, 1.0


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
        self.tried = 0
        """The generation of the plan that this replica has tried to carry out last."""
        self.most_samples: dict[str, int] = {}
        """Names of loaders → samples that fit into one pass, where memory has run out."""
        self.pause: reallocation.Pause | None = None
        self.rank_before = 0
        """Rank in the group that was lost last."""
        self._snapshot = snapshot
        self._start = start
        self._background: ThreadPoolExecutor | None = None
        self.reports = Reports(self)
        self._reset()

    def _reset(self) -> None:
        """Everything the user's function builds, as before it runs."""
        now = time.monotonic()
        self.registry = Registry()
        self.tuner = Tuner()
        self.split_pace = SplitPace()
        self.loop: Loop | None = None
        self.micro: Micro | None = None
        self.epoch: int | None = None
        self.finished_epochs = 0
        self.num_steps = 0
        self.num_batches = 0
        self.num_skipped_steps = 0
        self.progress = 0.0
        self.pause_total_s = 0.0
        self.began_at = self.last_step_at = now
        """Monotonic time of the end of the first step, less what a snapshot says that training had lasted."""
        self.total_epochs: int | None = None
        self._entered = False
        self._loop_index = 0
        self.sums = Sums(self)
        self.reports.reset()
        self._skip_to: Position | None = None
        self._rngs: Sequence[Any] = ()
        """States of random numbers by rank, to be restored."""
        self._models: list[weakref.ref[AdaptiveDataParallel]] = []
        self.stepped: list[AdaptiveDataParallel] = []
        """Models whose gradients were reduced in the step that runs."""
        self.stepped_before: list[AdaptiveDataParallel] = []
        """And in the one before."""
        self.parted_unevenly = False
        """Whether some replicas have made a step in this loop, which is void, that others had left before."""
        self.left_between_parts = False
        """Whether the last loop ended with a batch that was not the last one of its step, as after an error."""
        self.agreed_in: Micro | None = None
        """The part of a step in which the models have last agreed on buckets, if they had to."""
        self.is_matching = False
        """Whether this replica takes part with zeros in the step that others make."""
        self.was_carried = False
        """Whether it has sent those of the first bucket, the only one, with the exchange (see `take_carried`)."""
        self._broken: GroupBroken | None = None
        self._ended_by: BaseException | None = None
        """What was raised to end the user's function where nobody hears of it."""
        self._told_no_loop = False
        self._out_of_memory = False
        self._num_out_of_memory = num_out_of_memory()
        self._main_loader: weakref.ref[AdaptiveDataLoader] | None = None
        self.updated_at = now
        if self._snapshot is not None:
            self.load(read_snapshot(self._snapshot), resume=True)
        if self._start is not None:
            self.finished_epochs = max(self.finished_epochs, self._start.position.epoch)
            self._go_to(self._start)

    def restart_from(self, snapshot: bytes, broken: GroupBroken | None) -> None:
        """Gets ready to run the user's function again, from `snapshot`; `broken`: without the group, which was lost."""
        self._snapshot, self._start = snapshot, None
        self._reset()
        self._broken = broken
        if self.group is not None:
            self.exchange = StepExchange(self.group)

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
            record=pickle.dumps(self.sums.record),
            num_sums=len(self.sums.record),
            num_folds=self.sums.num_folds,
        )

    def pulse(self) -> Pulse:
        """Where the training thread is, and how long it has waited for other replicas."""
        since = None if self.group is None else self.group.waits_since
        waited_s = None if since is None else time.monotonic() - since
        return Pulse(place=self.place(), generation=self.generation, waited_s=waited_s, num_batches=self.num_batches)

    def reallocate(self, plan: Plan) -> None:
        """To the source: carry out `plan` at the next boundary at its target. One that comes after a later generation has begun
        is void."""
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

    def give_up(self, generation: int) -> None:
        """To whoever waits for the others of a plan: this one, and those before, will not come about."""
        self.mailbox.given_up = max(generation, self.mailbox.given_up)

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
            self.sums.replay(place.position.epoch, pickle.loads(place.record))

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
                    _call(func, config)
                    return self._finish()
                except Leave:
                    return False
                except Exception as error:
                    if makes_do_with_less(self, error):
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
                        position=self._skip_to, kind=LoopKind.BETWEEN, record=pickle.dumps(self.sums.replayed)
                    )
                    self._snapshot = None
                    self._reset()

    def _join_alone(self) -> None:
        """The only replica of a first generation has nobody to wait for: it need not stand at a loop first."""
        plan = self.mailbox.peek()
        if not isinstance(plan, Plan) or plan.source is not None:
            return
        if [member.replica_id for member in plan.members] == [self.replica.replica_id]:
            self.mailbox.clear(plan.generation)
            reallocation.join(self, plan)

    def _finish(self) -> bool:
        self._end_if_told()
        if not self.joined:
            self.host.left(self.generation)
            return False
        self.flush_report()
        self.reports.wait()
        if self._background is not None:
            self._background.shutdown(wait=True)
        return True

    def close(self) -> None:
        """Ends the process group; the session cannot be used afterwards."""
        self.drop_group()
        self.reports.close()
        if self._background is not None:
            self._background.shutdown(wait=True)

    # -- losing the group: see `recovery` -------------------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether the group was lost: the step that runs is void."""
        return self._broken is not None

    @property
    def is_in_lost_step(self) -> bool:
        """Whether a step runs that nobody has made, since the group was lost."""
        return self.is_broken and self.micro is not None and self.loop is not None and self.loop.training

    def sound_group(self) -> Group:
        """The group. Raises GroupBroken if it was lost."""
        if self._broken is not None:
            raise self._broken
        assert self.group is not None
        return self.group

    def note_broken(self, error: Exception) -> None:
        """A collective has failed, in whatever thread; the training thread sees to it at the next boundary."""
        if self._broken is None:
            self._broken = error if isinstance(error, GroupBroken) else GroupBroken(str(error))

    def lose_group(self, error: GroupBroken) -> None:
        """Leaves the broken group, so that its other members, whoever they wait for, learn of it, too."""
        if self.group is not None:
            self.rank_before = self.group.rank
            self.group.abort()
        stepped = self.stepped or self.stepped_before
        self.mailbox.clear(self.tried)
        self.mailbox.plan = None
        self.drop_group()
        self.stepped_before = stepped
        self.note_broken(error)
        if self.loop is not None:
            self.loop.lost_replicas, self.loop.steady_since = True, None
        if self.is_in_lost_step:
            self.reports.undo_step()

    def runs_on_to(self, place: Place) -> bool:
        """Takes `place`, where the others stand, as the one to go to; False if this replica is there."""
        if place.meets(self.place()):
            return False
        self._go_to(place)
        return True

    def regained_group(self, *, reports_again: bool) -> None:
        """A member again. `reports_again`: this replica has not led the group that was lost."""
        if self.pause is not None:
            tell_switched(self, self.pause)
        if self.rank == 0 and reports_again:
            self.reports.send_again()

    def drop_group(self) -> None:
        """Takes this replica out of its group.

        The models go first: a Reducer that held the last reference to a process group would wait for the group's threads
        while it holds the interpreter lock, and they may wait for that lock.
        """
        for model in self.models():
            model.release()
        self.stepped, self.stepped_before = [], []
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
        self._end_if_told()
        if self.epoch is not None:
            raise UsageError("remaining_epochs_until cannot be nested: end one epoch loop before the next one begins")
        self.registry.settle()
        if not self._entered:
            self._entered, self._loop_index = True, 0
            self.sums.begin_epoch()
        self.epoch, self.total_epochs = self.finished_epochs, total_epochs
        self.registry.begin_epoch(self.epoch)
        return self.epoch

    def end_epoch(self) -> None:
        """The epoch that runs is over."""
        assert self.epoch is not None
        self._end_if_told()
        self.finished_epochs = self.epoch + 1
        if not self.joined and self._skip_to is not None:
            self.finished_epochs = max(self.finished_epochs, self._skip_to.epoch)
        self.epoch, self._loop_index = None, 0
        self.sums.begin_epoch()
        self.reports.begin_epoch()
        self.flush_report()
        if self.joined and self.rank == 0 and self.finished_epochs == self.total_epochs:
            self.reports.send_snapshot_now(self.capture())

    def abandon_epoch(self) -> None:
        """The user has broken out of the epoch loop."""
        self.epoch = None

    # -- data loops ---------------------------------------------------------------------------------------------------

    def enter_loop(self, loader: AdaptiveDataLoader) -> Loop | None:
        """Begins a loop; None if it is one to be skipped.

        Raises:
            UsageError: a loop is running already.
        """
        self._end_if_told()
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
        self.reports.enter_loop()
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
            self.parted_unevenly = False
            if was_broken:  # the others are in the loop, or at its end
                loop.lost_replicas, loop.hands_out = True, loop.training
            if not was_joined or self._begin_together(loop):
                return loop
            self.loop = None  # the others are further

    def _begin_together(self, loop: Loop) -> bool:
        """All members begin a loop; False if this one was lost by the others, which stand further on."""
        self.last_step_at = time.monotonic()  # what came before the loop is not a pause of the training
        drop_passed_plan(self)
        try:
            self.launch_exchange()
            seen = self.take_exchange()
            if seen.attention or seen.interrupted:
                attend(self, loop, seen)
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
            if self.loop is not None:
                self.loop.loader.start_workers()
        while not self.joined and not self.is_skipping:
            if self._broken is None:
                self.host.ready(self.position)
            else:
                self.host.broken(self.tried, self.place(), str(self._broken))
            holds_state = self._broken is not None
            order = self.next_order()
            if isinstance(order, Advance):
                self._go_to(order.place)
            elif isinstance(order, Plan):
                try:
                    reallocation.join(self, order)
                except GroupBroken as error:
                    logger.info("replica %s could not join: %s", self.replica.replica_id, error)
                    self.drop_group()
                    if holds_state:
                        self.note_broken(error)

    def next_order(self) -> Plan | Advance | Order | None:
        """Waits for the newest order. Raises Leave if it is to leave, and says so."""
        order = self.mailbox.wait()
        if order is Order.LEAVE:
            self.host.left(self.generation)
            raise Leave
        return order

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
        if self.ran_out_of_memory:
            return  # an error is on its way through the user's function: see `run`
        micro, self.micro = self.micro, None
        self.left_between_parts = micro is not None and not micro.is_last
        for model in self.models():
            model.end_loop()
        if keep_company:
            try:
                part(self, loop, micro)
            except (Leave, KeyboardInterrupt) as end:  # an iterator that the user breaks out of raises nothing
                self._ended_by = end
                raise
        self.loop = None
        self._loop_index += 1

    def _end_if_told(self) -> None:
        if self._ended_by is not None:
            raise self._ended_by

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether memory ran out for the batch in hand."""
        if self.micro is not None and num_out_of_memory() > self._num_out_of_memory:
            self._out_of_memory = True
        return self._out_of_memory

    def note_out_of_memory(self) -> None:
        """Memory has run out in a pass of a model."""
        self._out_of_memory = self.micro is not None

    # -- steps --------------------------------------------------------------------------------------------------------

    def begin_micro(self, micro: Micro) -> None:
        """The loader is about to hand out a batch."""
        self.micro = micro
        self.num_batches += 1
        self._out_of_memory = False
        if micro.index == 0 and self.stepped:
            self.stepped_before, self.stepped = self.stepped, []
        if micro.index == 0:
            self.sums.mark()
            self.reports.begin_step()
        if self.pause is not None:
            tell_switched(self, self.pause)

    @property
    def is_accumulating(self) -> bool:
        """Whether the batch in hand is not the last one of its step."""
        return self.micro is not None and not self.micro.is_last

    @property
    def holds_back(self) -> bool:
        """Whether nothing must be updated after the batch in hand: its step is not complete, or void."""
        return self.is_accumulating or (self.micro is not None and self.step_is_void)

    @property
    def lr_scale(self) -> float:
        """M / M₀ of the loop that runs; 1 outside of loops."""
        if self.loop is None or self.micro is None:
            return 1.0
        return self.loop.loader.batch.batch_size / self.loop.loader.init_batch_size

    def on_first_bucket(self, model: AdaptiveDataParallel) -> None:
        """`model` begins to reduce its gradients."""
        if self.loop is None and not self.is_matching and not self._told_no_loop:
            self._told_no_loop = True
            logger.warning(
                "gradients are computed outside of loops over an AdaptiveDataLoader: batch sizes, progress and "
                "reallocations do not see these steps; draw the batches from one"
            )
        if self.is_matching or self.loop is None or self.micro is None:
            return
        self.stepped.append(model)
        assert self.exchange is not None
        if not self.exchange.launched:
            try:
                self.launch_exchange(with_gradients=True)
            except GroupBroken as error:
                self.note_broken(error)

    def take_carried(self) -> bool:
        """Whether the zeros of a bucket, the next one that is asked for, have been sent already; once."""
        was_carried, self.was_carried = self.was_carried, False
        return was_carried

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

    def boundary(self, loop: Loop, *, batch_size: int) -> Action:
        """After a step, or a batch of a loop without steps.

        Args:
            batch_size: samples of the step.
        """
        try:
            self.sound_group()
            return self.end_step(loop, batch_size)
        except GroupBroken as error:
            recover(self, error)
            return Action.REPARTITION if self.joined else Action.STOP

    def end_step(self, loop: Loop, batch_size: int) -> Action:
        """As `boundary`. Raises GroupBroken."""
        now = time.monotonic()
        assert self.exchange is not None
        attention = False
        seen: Exchanged | None = None
        if self.exchange.launched:
            loop.training = True
            self._main_loader = weakref.ref(loop.loader)
            seen = self.take_exchange()
            if seen.num_left:
                return Action.STOP
            self.count(loop, batch_size, now)
            attention = seen.attention or seen.interrupted
        loop.loader.sampler.position += batch_size
        if seen is None and self.num_replicas > 1:
            return Action.CONTINUE
        self.last_step_at = now
        self.micro = None
        if self.rank == 0:
            drop_passed_plan(self)
            if now - self.updated_at > self.share_of_age_s(_SHORTEST_UPDATE_S, _LONGEST_UPDATE_S, now):
                send_update(self)
        if loop.loader.is_over(loop):
            return Action.OVER
        if self.num_replicas == 1:
            attention = wants_attention(self) or self.mailbox.interrupted
        return attend(self, loop, seen) if attention else Action.CONTINUE

    def share_of_age_s(self, shortest_s: float, longest_s: float, now: float) -> float:
        """How long to leave something alone of which most is learned early: a fifth of the training's age `now` (monotonic), in
        these bounds."""
        return min(longest_s, max(shortest_s, _SHARE_OF_AGE * (now - self.began_at)))

    def count(self, loop: Loop, batch_size: int, now: float) -> None:
        loader = loop.loader
        if self.num_steps == 0:
            self.began_at = now
        self.num_steps += 1
        self.reports.end_step()
        scale = batch_size / loader.init_batch_size
        if scale == 1.0 or (grad_params := self.grad_params) is None:
            self.progress += min(1.0, scale)  # unseen, a larger batch is worth no more
        else:
            self.progress += float(gain(grad_params, loader.init_batch_size, batch_size))
        micro, batch = self.micro, loader.batch
        if loop.steady_since is not None and micro is not None and batch_size == batch.batch_size:
            step_time_s, key = now - loop.steady_since, profile_key(self, batch)
            if micro.count == batch.accum_steps + 1:
                sync_time_s = sum(model.sync_time_s for model in self.stepped) if self.num_replicas > 1 else 0.0
                self.tuner.record(key, step_time_s, sync_time_s, loop.wait_s)
            elif micro.count > batch.accum_steps + 1 and (whole_s := self.tuner.step_time_s(key)) is not None:
                self.split_pace.note(split_s=step_time_s, whole_s=whole_s)
        loop.steady_since, loop.wait_s = now, 0.0

    @property
    def init_batch_size(self) -> int | None:
        """M₀ of the training loop that runs, or ran last."""
        loader = self.main_loader
        return None if loader is None else loader.init_batch_size

    @property
    def main_loader(self) -> AdaptiveDataLoader | None:
        """Of the training loop that runs, or ran last."""
        return None if self._main_loader is None else self._main_loader()

    @property
    def grad_params(self) -> GradParams | None:
        """The gradient statistics of the first model, once there are any."""
        models = self.models()
        return models[0].grad_params(self) if models else None

    @property
    def num_noise_samples(self) -> int:
        """Steps from which they were estimated."""
        models = self.models()
        return models[0].num_noise_samples if models else 0

    def launch_exchange(self, *, left: bool = False, with_gradients: bool = False) -> None:
        """`with_gradients`: which are about to be summed and may carry it, if they are those of the only model."""
        assert self.exchange is not None
        models = self.models()
        carrier = models[0].carrier if len(models) == 1 else None
        self.exchange.launch(
            attention=self.num_replicas > 1 and not left and wants_attention(self),
            left=left,
            has_sums=left and bool(self.sums.accumulators()),
            parted=left and self.parted_unevenly,
            interrupted=self.mailbox.interrupted,
            gradients=carrier if with_gradients else None,
            next_carrier=carrier,
            samples=[model.take_sample() for model in models],
            norms_due=[model.norms_due_next for model in models],
        )

    def take_exchange(self) -> Exchanged:
        assert self.exchange is not None
        seen = self.exchange.take()
        parts = 0 < seen.num_left < self.num_replicas
        self.parted_unevenly |= parts
        for model, sample, due in zip(self.models(), seen.samples, seen.norms_due, strict=False):
            model.set_norms_due(due)
            if sample is not None and not parts:  # of how many steps it is depends on who has left
                model.give_sample(*sample)
        return seen

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
        """As `capture`, for a broadcast at once: not copied; random numbers only if they wait to be restored. With the results
        that were not sent, or may have been lost on their way."""
        return {
            "session": self._state_dict(),
            "states": self.registry.state_dict(),
            "rngs": self._rngs,
            "unsent": self.reports.unsent(),
        }

    def _state_dict(self) -> dict[str, Any]:
        return {
            "position": (self.position.epoch, self.position.loop),
            "finished_epochs": self.finished_epochs,
            "num_steps": self.num_steps,
            "progress": self.progress,
            "pause_total_s": self.pause_total_s,
            "trained_s": time.monotonic() - self.began_at,
            "since_last_step_s": time.monotonic() - self.last_step_at,
            "record": list(self.sums.record),
            "reports": self.reports.state_dict(),
            "num_folds": self.sums.num_folds,
            "num_skipped_steps": self.num_skipped_steps,
            "most_samples": dict(self.most_samples),
            "tuner": self.tuner.state_dict(),
        }

    def load(self, states: Mapping[str, Any], *, resume: bool) -> None:
        """Takes over the state of a snapshot (`resume`), or of another replica at the same position."""
        session = states["session"]
        own: dict[str, Mapping[str, Any]] = {}
        if not resume:
            own = self.sums.take_own(num_steps=session["num_steps"], num_folds=session["num_folds"])
        self.sums.num_folds = session["num_folds"]
        self.num_steps, self.progress = session["num_steps"], session["progress"]
        self.pause_total_s, self.num_skipped_steps = session["pause_total_s"], session["num_skipped_steps"]
        self.fits_at_most(session["most_samples"])
        self.began_at = time.monotonic() - session["trained_s"]
        self.last_step_at = time.monotonic() - session["since_last_step_s"]
        self.tuner.load_state_dict(session["tuner"])
        self.reports.load(session["reports"], resume=resume)
        self._rngs = states["rngs"]
        if resume:
            epoch, loop = session["position"]
            self.finished_epochs = session["finished_epochs"]
            self._skip_to = Position(epoch=epoch, loop=loop)
            self.sums.replay(epoch, list(session["record"]))
        else:
            assert (self.position.epoch, self.position.loop) == tuple(session["position"]), (self.position, session)
            self.reports.load_unsent(states["unsent"])
            self.sums.record = list(session["record"])
        self.registry.load_state_dict(states["states"])
        self.sums.give_own(own)

    def fits_at_most(self, most_samples: Mapping[str, int]) -> None:
        """Takes over what was learned of how many samples fit into one pass."""
        for name, most in most_samples.items():
            self.most_samples[name] = min(most, self.most_samples.get(name, most))

    # -- results ------------------------------------------------------------------------------------------------------

    def report(self, metrics: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        """A result. It is sent at the end of the epoch, or before the next loop or result, whichever comes first, so that
        the state it comes with is one from which the job can go on; within a training loop at the end of the step, if a
        snapshot is to go with it.

        Args:
            metrics: the user's metrics; the session adds its own (``adaptdl/…``).
            files: the user's own checkpoint, as the contents of files by relative path.
        """
        self._end_if_told()
        if not self.joined and not self.is_skipping and self._start is None:
            self._stand_until_joined()  # the first replicas of a trial; later ones come to a loop that runs
        self.reports.report(metrics, files)

    def flush_report(self) -> None:
        """Sends the result that waits, if there is one."""
        self.reports.flush()


def _call(func: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> None:
    """``sys.exit()`` in it is a return: the loops that it leaves are over once this has returned."""
    try:
        func(config)
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            raise
