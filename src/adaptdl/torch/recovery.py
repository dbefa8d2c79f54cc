"""Losing a replica: a survivor leaves the broken group, stands, and goes on in another one.

``adaptdl/plan.py`` has the whole story. A survivor can stand in a data loop or where accumulators are summed between
loops: these are the places at which it learns that its group is broken.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from adaptdl.plan import Advance, Plan
from adaptdl.torch import reallocation
from adaptdl.torch.group import GroupBroken

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["recover"]

logger = logging.getLogger(__name__)


def recover(session: ElasticSession, error: GroupBroken) -> None:
    """Returns when this replica is a member again, or was told to run on, without a group, to where the others stand.

    Raises:
        Leave: it is no longer wanted.
        AdaptDLError: there is no coordinator to go on with, or torchrun holds the group.
    """
    reason = str(error).splitlines()[0]
    logger.info(
        "replica %s has lost its group of %d in step %d: %s",
        session.replica.replica_id,
        session.num_replicas,
        session.num_steps,
        reason,
    )
    session.lose_group(error)
    was_first = session.rank_before == 0
    while not session.joined:
        session.host.broken(session.tried, session.place(), reason)
        order = session.next_order()
        if isinstance(order, Advance):
            if session.runs_on_to(order.place):
                return
        elif isinstance(order, Plan):
            try:
                reallocation.join(session, order)
            except GroupBroken as again:
                reason = str(again).splitlines()[0]
                session.lose_group(again)
    session.regained_group(reports_again=not was_first)
