"""What a coordinator and the replicas of one trial say to each other. Standard library only.

A *trial* trains in *generations*: sets of replicas that form one process group. A reallocation ends one generation and
starts the next. The coordinator decides on a :class:`Plan`; the replicas carry it out at an optimizer step.

::

    newcomer     STARTING --stands at its data loop--> READY --plan--> MEMBER
    member       MEMBER --plan without it--> LEAVING --function unwound--> GONE
                 MEMBER --plan with nobody, replica kept--> PARKED --plan with it--> MEMBER

How a change goes (``source`` is the replica that holds the state: rank 0 of the generation before):

1. The coordinator starts newcomers. Each runs the user's function up to its data loop and says
   :meth:`Host.ready` with its :class:`Position`. It takes part in no collective and trains nothing.
2. The coordinator asks the source for its position, and newcomers that stand elsewhere to
   :class:`Advance` there (finished loops are skipped). Each says ``ready`` again.
3. The coordinator gives newcomers their plan (``join``), then the source (``reallocate``).
4. The source acts when it is at ``plan.target`` (or, with no target, at its next boundary): the flag travels in the
   collective of the next step, all old replicas learn the plan at the same boundary. If the source had already gone past the
   target it says :meth:`Host.missed`, nothing else has happened, and step 2 is done again with a later target.
5. Old group down, new group up, state from the source, and rank 0 of the new generation says :meth:`Host.switched`.
6. Replicas that are not in the plan unwind the user's function and say :meth:`Host.left`.

Who takes part is settled by a *roll call* in the plan's store, before any group is formed: each member says that it is here, and
the keeper of the store (the source, or rank 0) writes down who was, as soon as all are, or the others are known to be lost, or
time is up. So a member that died meanwhile costs no wait for a connection.

How a loss goes. A replica whose collective fails keeps the state it had after its last step, leaves the group (so that the
connections of its peers fail, too, whoever they wait for) and says :meth:`Host.broken` with its :class:`Place`::

    member       MEMBER --collective failed--> STANDING --plan--> MEMBER
                 STANDING --behind the others: Advance--> (runs on without a group) --> STANDING at their place

When every replica that is alive stands, the coordinator takes as source the one that has come furthest (`Place.order`; no
two survivors are more than one collective apart), has the others advance to its place if they are not there, and gives all
a plan with this source, of which all others are newcomers. The step in flight was made by nobody: those that are left make
it again, from the same samples. The last result is handed in again by a new rank 0; its number tells whether it was taken
before.

Should this group fail, too, the same begins anew. Whoever was told the plan stands again only when it says so of this plan:
what was on its way names an older one. If the coordinator gives the plan up it says so (``give_up``), so that nobody waits for
the roll. A group that was formed all the same, and says ``switched``, is the next generation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Advance", "Host", "LoopKind", "Member", "Place", "Plan", "Position", "Pulse", "Switched", "Update"]


@dataclass(frozen=True, kw_only=True, order=True)
class Position:
    """Where in the user's function a replica is: positions of one run of it are totally ordered."""

    epoch: int = -1
    """The epoch, from 0; -1 before the first one."""
    loop: int = 0
    """The data loop within the epoch that is running or that comes next, from 0."""


class LoopKind(enum.Enum):
    """What a replica is doing at its position."""

    BETWEEN = "between"
    """Not in a data loop."""
    TRAINING = "training"
    """In a loop that makes optimizer steps: a plan can be carried out between any two of them."""
    OTHER = "other"
    """In a loop without steps (validation): a plan waits for its end, unless the generation is one replica."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A replica's position, with what a newcomer needs to get there."""

    position: Position
    kind: LoopKind
    steps: int = 0
    """Optimizer steps made so far by the trial."""
    record: bytes = b""
    """What accumulators gave in the loops of this epoch that are over (for replay), pickled."""
    num_sums: int = 0
    """Entries of `record`."""
    num_folds: int = 0
    """How often the replicas have put together what their accumulators had not summed yet."""

    @property
    def order(self) -> tuple[int, Position, int, int, bool]:
        """How far a replica has come, among those of one generation."""
        return self.steps, self.position, self.num_sums, self.num_folds, self.kind is not LoopKind.BETWEEN

    def meets(self, other: Place) -> bool:
        """Whether replicas at both places can form a group that goes on: in the same loop, or before the same sum."""
        if self.position != other.position:
            return False
        if self.kind is LoopKind.BETWEEN or other.kind is LoopKind.BETWEEN:
            return self.kind is other.kind and self.num_sums == other.num_sums
        return True


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A sign of life of a replica's training thread."""

    place: Place
    generation: int
    waited_s: float | None
    """How long it has waited for other replicas; None: it does not wait for any."""
    num_batches: int
    """Batches that its loaders have handed out."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One replica, wherever it stands."""

    replica_id: str
    node_id: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The next generation of a trial."""

    generation: int
    members: tuple[Member, ...]
    """In rank order: survivors first, in their old order, then newcomers. Empty: the trial is paused."""
    source: str | None
    """`replica_id` of the replica whose state the generation starts from; it need not be a member. None: there was no
    generation before (or it is lost), and rank 0 starts from its own state, fresh or from the snapshot it was given."""
    newcomers: frozenset[str] = frozenset()
    """`replica_id` of the members that hold no state yet."""
    store: tuple[str, int] | None = None
    """Host and port of the key-value store through which the members meet; kept by the source, or else by rank 0.
    None only if nobody has to meet (a pause)."""
    target: Position | None = None
    """Where newcomers stand: the source acts when it is there. None: at the source's next boundary."""
    park: frozenset[str] = frozenset()
    """`replica_id` of replicas that leave the generation but keep process and state, for a later plan."""
    reason: str = ""

    @property
    def num_replicas(self) -> int:
        return len(self.members)

    @property
    def num_nodes(self) -> int:
        return len({member.node_id for member in self.members})


@dataclass(frozen=True, kw_only=True)
class Advance:
    """Tells a newcomer that stands at a loop to go on, skipping loops, until it stands at `place`."""

    place: Place


@dataclass(frozen=True, kw_only=True)
class Switched:
    """A generation has begun (or, with no replicas, the trial is paused)."""

    generation: int
    num_replicas: int
    num_nodes: int
    position: Position
    steps: int
    """Optimizer steps made by the trial before the change; none is redone."""
    pause_s: float
    """From the end of the last step of the old generation to the moment the first batch of the new one is handed out;
    0 for a first generation. Of a pause: until the state was handed over."""
    dropped: frozenset[str] = frozenset()
    """`replica_id` of newcomers that failed while joining and were left out."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """News from rank 0, sent every second or so and with each result."""

    generation: int
    place: Place
    report: Any = None
    """An `adaptdl.goodput.JobReport`, once there is one."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The `adaptdl/…` columns a replica knows: batch_size, goodput, efficiency, progress, num_replicas, num_nodes."""


class Host(Protocol):
    """Whoever launched a replica, as its session sees it. Calls come from the training thread and return at once,
    except `report`."""

    def ready(self, position: Position) -> None:
        """A newcomer stands at a data loop and waits for its plan (or for `Advance`)."""

    def broken(self, generation: int, place: Place, reason: str) -> None:
        """This replica has lost its group, holds the state of its last step, and stands until it is told how to go on.
        `generation`: the newest one that it has been part of, or has tried to form.
        Raises if there is nobody who could tell it."""

    def missed(self, generation: int, place: Place) -> None:
        """The source was past the plan's target; the plan is void."""

    def switched(self, switched: Switched) -> None:
        """From rank 0 of the new generation; from the source, if it has no replicas."""

    def left(self, generation: int) -> None:
        """This replica is no longer a member; its function is unwinding, or it is parked."""

    def update(self, update: Update) -> None:
        """From rank 0."""

    def snapshot(self, data: bytes, steps: int) -> None:
        """From rank 0: the newest state of the trial, complete, as `adaptdl.torch` writes it."""

    def report(
        self, metrics: dict[str, Any], files: dict[str, bytes] | None, snapshot: bytes | None, number: int
    ) -> None:
        """From rank 0: a result for Tune, the files of the user's own checkpoint, and the state it goes with. Waits
        until the result before it was taken. Results of a job have numbers from 1; one that comes again is dropped."""
