"""How replicas part at the end of a loop: nobody goes on before all have left it, and nothing of it is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adaptdl.torch.group import GroupBroken
from adaptdl.torch.loop import Loop, Micro
from adaptdl.torch.recovery import recover

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["lost_positions", "part"]


def part(session: ElasticSession, loop: Loop, micro: Micro | None) -> None:
    """Returns when all members have left the loop; then sums and buffers are those of all of them. A replica that was lost by
    the others on the way, which are further, goes on without them."""
    while session.joined:
        try:
            _part(session, loop, micro)
        except GroupBroken as error:
            micro = None
            recover(session, error)
        else:
            return


def _part(session: ElasticSession, loop: Loop, micro: Micro | None) -> None:
    session.sound_group()
    assert session.exchange is not None
    if session.exchange.launched and micro is not None:
        loop.training, loop.steady_since = True, None
        if not session.take_exchange().num_left:
            session.count(loop, micro.batch_size, time.monotonic())
    if session.num_replicas == 1:
        return
    if not loop.training or _keep_company(session):
        session.sums.fold()
    if loop.training:
        for model in session.models():
            model.broadcast_buffers()


def _keep_company(session: ElasticSession) -> bool:
    """Takes part in exchanges, and with zeros in steps, until all replicas have left the loop. Returns whether one of them has
    accumulators."""
    while True:
        for model in session.models():
            model.rebuild_buckets()
        session.launch_exchange(left=True)
        seen = session.take_exchange()
        if seen.num_left == session.num_replicas:
            return seen.has_sums
        session.is_matching, session.was_carried = True, seen.was_carried
        try:
            for model in session.stepped or session.stepped_before or session.models():
                model.match_step()
        finally:
            session.is_matching = session.was_carried = False
        session.sound_group()


def lost_positions(session: ElasticSession, loop: Loop, num_covered: int) -> list[int]:
    """At the end of a loop without steps: positions of the pass which no replica that is left has done, since others were lost,
    and which this one should do now. Empty once there are none, or this replica is to run on.

    Args:
        num_covered: the loop covers positions from `loop.covers_from` to this one.
    """
    while session.num_replicas > 1 or session.is_broken or loop.lost_replicas:
        try:
            group = session.sound_group()
            gathered = group.all_gather_object((loop.lost_replicas, loop.shares))
        except GroupBroken as error:
            recover(session, error)
            if not session.joined:
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
        return left[group.rank :: group.num_replicas]
    return []
