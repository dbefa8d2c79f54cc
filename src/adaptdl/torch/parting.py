"""How replicas part at the end of a loop: nobody goes on before all have left it, and nothing of it is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adaptdl.torch.exchange import Exchanged
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
        if session.num_replicas > 1:  # the others may have to do something at its end
            session.end_step(loop, micro.batch_size)
        elif not session.take_exchange().num_left:
            session.count(loop, micro.batch_size, time.monotonic())
    if session.num_replicas == 1:
        return
    if not loop.training:
        session.sums.fold()
        return
    seen = _keep_company(session)
    if seen.has_sums:
        session.sums.fold()
    if seen.parted:
        _agree_on_data(session, loop)
    for model in session.models():
        model.broadcast_buffers()


def _agree_on_data(session: ElasticSession, loop: Loop) -> None:
    """Who went on longest has begun a step that was void, and perhaps another pass: where the data stands is what rank 0 says."""
    group = session.sound_group()
    state = group.broadcast_object(loop.loader.state_dict() if group.rank == 0 else None)
    if group.rank != 0:
        loop.loader.load_state_dict(state)
    for model in session.models():
        model.drop_void_step()


def _keep_company(session: ElasticSession) -> Exchanged:
    """Takes part in exchanges, and with zeros in steps, until all replicas have left the loop. Returns the last exchange."""
    while True:
        for model in session.models():
            model.rebuild_buckets()
        session.launch_exchange(left=True)
        seen = session.take_exchange()
        if seen.num_left == session.num_replicas:
            return seen
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
