"""Going on with the replicas that are left when others were lost (``adaptdl/plan.py`` has the whole story).

::

    CLOSED --a member is lost, or says that its group is broken--> OPEN
    OPEN --all that are left stand: a plan of them, with the furthest as source--> CLOSED
    OPEN --one more is lost on the way, or the group cannot be formed--> OPEN, once all who were told the plan stand again
    OPEN --nobody is left--> CLOSED (all start again from the newest snapshot)

A loss that a plan under way takes care of by itself (who was lost was about to leave, or had not joined) opens it, too, but
the generation that begins closes it before it has done anything. Who was told a plan that was given up, and does not say for
long what became of it, is lost, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptdl.plan import Advance, Plan
from adaptdl.runtime.members import ReplicaRecord, ReplicaState
from adaptdl.runtime.switching import Switcher, ask

__all__ = ["Recovery", "bring_together", "furthest", "plan_of_survivors", "stand"]


@dataclass
class Recovery:
    """Whether a job has to be put together anew, and why."""

    reason: str = ""
    """Empty: it has not."""
    _explained: bool = False
    """Whether `reason` says who was lost."""

    @property
    def is_open(self) -> bool:
        return self.reason != ""

    def open(self, reason: str, *, explains: bool) -> None:
        """The first reason counts, or the first that explains the others: who was lost, not what its peers saw of it."""
        if not self.is_open or (explains and not self._explained):
            self.reason, self._explained = reason, explains

    def close(self) -> None:
        self.reason, self._explained = "", False


def furthest(records: Sequence[ReplicaRecord]) -> ReplicaRecord:
    """Of replicas that stand, the one whose state is the newest; the first of several."""
    return max(records, key=_order)


def _order(record: ReplicaRecord) -> tuple[object, ...]:
    assert record.place is not None
    return record.place.order


async def bring_together(source: ReplicaRecord, others: Sequence[ReplicaRecord]) -> bool:
    """Tells those that stand elsewhere to go on to where `source` stands; whether all were there already.

    Raises:
        ReplicaUnreachable: a replica cannot be told.
    """
    assert source.place is not None
    behind = [record for record in others if record.place is not None and not record.place.meets(source.place)]
    for record in behind:
        record.place = None
        await ask(record, "advance", Advance(place=source.place))
    return not behind


async def plan_of_survivors(
    switcher: Switcher, source: ReplicaRecord, others: Sequence[ReplicaRecord], reason: str
) -> Plan:
    """The plan for replicas that all stand in the same place.

    Raises:
        ReplicaUnreachable: the source does not answer.
    """
    assert source.place is not None
    members = [source, *others]
    return Plan(
        generation=switcher.next_generation(),
        members=tuple(record.member for record in members),
        source=source.replica_id,
        newcomers=frozenset(record.replica_id for record in others),
        store=await ask(source, "open_store"),
        target=source.place.position,
        reason=reason,
    )


def stand(records: Sequence[ReplicaRecord]) -> bool:
    """Whether all of them stand somewhere."""
    return all(record.state is ReplicaState.STANDING and record.place is not None for record in records)
