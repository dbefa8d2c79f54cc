"""The sums of accumulators over all replicas, and the record of them that lets a replica follow the others."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptdl.torch.accumulator import Accumulator, add_changes
from adaptdl.torch.group import GroupBroken
from adaptdl.torch.recovery import recover

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["Sums"]


class Sums:
    """What the accumulators of one replica have given in the epoch that runs.

    Attributes:
        record: the totals, one for each ``with accumulator.synchronized()``.
        num_folds: how often all replicas have put together what was not summed yet.
    """

    def __init__(self, session: ElasticSession) -> None:
        self._session = session
        self.record: list[dict[str, Any]] = []
        self.num_folds = 0
        self._replay: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._accumulators: list[weakref.ref[Accumulator]] = []

    def add(self, accumulator: Accumulator) -> None:
        """One that was just created."""
        self._accumulators.append(weakref.ref(accumulator))

    def begin_epoch(self) -> None:
        self.record = []
        self._accumulators = [ref for ref in self._accumulators if ref() is not None]

    def replay(self, epoch: int, record: list[dict[str, Any]]) -> None:
        """In `epoch`, the first totals are these: the job has made them before."""
        self._replay = (epoch, record)

    @property
    def replayed(self) -> list[dict[str, Any]]:
        return self._replay[1]

    def accumulators(self) -> list[Accumulator]:
        """The living ones, in the order of their creation."""
        return [accumulator for ref in self._accumulators if (accumulator := ref()) is not None]

    def mark(self) -> None:
        """A step begins."""
        for accumulator in self.accumulators():
            accumulator.mark()

    def undo_void_step(self) -> None:
        """Takes back what was added in the step that runs and that nobody has made."""
        if self._session.is_in_lost_step:
            for accumulator in self.accumulators():
                accumulator.roll_back()

    def take_own(self, *, num_steps: int, num_folds: int) -> dict[str, Mapping[str, Any]]:
        """What this replica has added that is not part of the sums in a state with so many steps and folds; it is no longer
        there afterwards."""
        if num_steps == self._session.num_steps:
            self.undo_void_step()
        if num_folds != self.num_folds:
            return {}
        return {accumulator.name: accumulator.take_changes() for accumulator in self.accumulators()}

    def give_own(self, own: Mapping[str, Mapping[str, Any]]) -> None:
        """The opposite of `take_own`."""
        for accumulator in self.accumulators():
            accumulator.give_changes(own.get(accumulator.name, {}))

    def fold(self) -> None:
        """What was not yet summed becomes part of the sums, which every replica has."""
        group = self._session.group
        assert group is not None
        if group.num_replicas == 1:
            return
        accumulators = self.accumulators()
        gathered = group.all_gather_object({state.name: state.changes for state in accumulators})
        for state in accumulators:
            state.sum_up(changes.get(state.name, {}) for changes in gathered)
        self.num_folds += 1

    def agree(self, sums: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """The totals of an accumulator: `sums` so far, and what every replica has added since."""
        session = self._session
        session.registry.settle()
        total = self._from_replay()
        while total is None:
            total = dict(sums)
            in_loop = session.loop is not None
            if session.is_skipping or (session.group is None and (not session.is_broken or in_loop)):
                add_changes(total, changes)
                break
            try:
                for part in session.sound_group().all_gather_object(dict(changes)):
                    add_changes(total, part)
            except GroupBroken as error:
                if in_loop:  # the boundary sees to it
                    session.note_broken(error)
                    total = dict(sums)
                    add_changes(total, changes)
                    break
                recover(session, error)
                total = self._from_replay()
        self.record.append(total)
        return total

    def _from_replay(self) -> dict[str, Any] | None:
        epoch, replay = self._replay
        index = len(self.record)
        return dict(replay[index]) if index < len(replay) and epoch == self._session.position.epoch else None
