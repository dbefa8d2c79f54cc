"""What to do next, given what is wished for and what is there. Pure: values in, a value out.

One thing at a time, and in this order: replicas that start but are no longer wanted are dismissed; missing ones are
started (beside training); members that must go leave, if others stay; replicas that are ready join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Action", "Dismiss", "Seen", "SeenReplica", "Start", "Switch", "Wait", "decide"]


@dataclass(frozen=True, kw_only=True)
class SeenReplica:
    """A replica that is, or could become, a member."""

    replica_id: str
    node_id: str
    ready: bool = True
    """For one that starts: whether it stands at its data loop."""
    waited_s: float = 0.0
    """For one that starts: how long it has been ready, or (if not) has been starting."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job's replicas and what is wished for them."""

    wish: Mapping[str, int]
    """node → number of replicas, no zeros."""
    members: Sequence[SeenReplica] = ()
    """In rank order."""
    newcomers: Sequence[SeenReplica] = ()
    """Oldest first."""
    parked: SeenReplica | None = None
    """Holds the state while there are no members; `ready`: it has a reservation again."""
    unparking: bool = False
    """The parked replica is getting a reservation."""
    min_replicas: int = 1
    gather_s: float = 0.0
    may_start: bool = True
    """False for a while after replicas could not be started."""


@dataclass(frozen=True, kw_only=True)
class Dismiss:
    """End these replicas, which have not joined."""

    replica_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start replicas: node → number."""

    nodes: Mapping[str, int]
    unpark: bool = False
    """One of them is the parked replica, which only needs a reservation."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Begin a generation of these members, in rank order."""

    members: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do until something happens, or at most for `timeout_s`."""

    timeout_s: float | None = None


Action = Dismiss | Start | Switch | Wait


def decide(seen: Seen) -> Action:
    """The next thing to do."""
    stay, go = _split(seen.members, seen.wish)
    room = _minus(seen.wish, stay)
    parked_returns = not seen.members and seen.parked is not None and room.get(seen.parked.node_id, 0) > 0
    if parked_returns:
        assert seen.parked is not None
        room = _minus(room, [seen.parked])
    wanted, unwanted = _split(seen.newcomers, room)
    if unwanted:
        return Dismiss(replica_ids=tuple(replica.replica_id for replica in unwanted))
    missing = _minus(room, wanted)
    unpark = parked_returns and seen.parked is not None and not seen.parked.ready and not seen.unparking
    if (missing or unpark) and seen.may_start:
        return Start(nodes=missing, unpark=unpark)
    least = min(seen.min_replicas, sum(seen.wish.values()))
    if go and stay and len(stay) >= least:
        return Switch(members=_ids(stay))
    if not seen.wish:
        return Switch(members=()) if seen.members else Wait()
    ready = [replica for replica in wanted if replica.ready]
    if parked_returns and seen.parked is not None and seen.parked.ready:
        # Those that hold the state go on at once; the others join when they are ready.
        if len(ready) + 1 >= least:
            return Switch(members=(seen.parked.replica_id, *_ids(ready)))
        return Wait()
    if not ready or len(stay) + len(ready) < least:
        return Wait()
    starting = [replica for replica in wanted if not replica.ready]
    waited_s = max(replica.waited_s for replica in ready)
    if (starting or missing) and waited_s < seen.gather_s:
        return Wait(timeout_s=seen.gather_s - waited_s)
    return Switch(members=_ids([*stay, *ready]))


def _split(replicas: Sequence[SeenReplica], wish: Mapping[str, int]) -> tuple[list[SeenReplica], list[SeenReplica]]:
    """Those that the wish has room for, first come first served but ready ones before others, and the rest."""
    left = dict(wish)
    kept: set[str] = set()
    for replica in sorted(replicas, key=lambda replica: not replica.ready):
        if left.get(replica.node_id, 0) > 0:
            left[replica.node_id] -= 1
            kept.add(replica.replica_id)
    stay = [replica for replica in replicas if replica.replica_id in kept]
    return stay, [replica for replica in replicas if replica.replica_id not in kept]


def _minus(wish: Mapping[str, int], replicas: Sequence[SeenReplica]) -> dict[str, int]:
    left = dict(wish)
    for replica in replicas:
        if replica.node_id in left:
            left[replica.node_id] -= 1
    return {node_id: number for node_id, number in left.items() if number > 0}


def _ids(replicas: Sequence[SeenReplica]) -> tuple[str, ...]:
    return tuple(replica.replica_id for replica in replicas)
