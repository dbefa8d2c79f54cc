"""Running out of memory: how it is noticed, and what is made of it.

An exception that leaves the user's loop looks like a ``break`` to the loader. So a model notes the error as it passes through
its forward pass, and of a backward pass the allocator of CUDA knows (on the CPU nobody does).

A replica whose pass did not fit goes back to the state after its last step, runs the user's function again from there in the same
process, as a job that is resumed does, and gets at most half as many samples in a pass from then on.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

import torch

from adaptdl.torch.group import GroupBroken
from adaptdl.torch.transfer import write_snapshot

if TYPE_CHECKING:
    from adaptdl.torch.session import ElasticSession

__all__ = ["is_out_of_memory", "makes_do_with_less", "num_out_of_memory"]

logger = logging.getLogger(__name__)

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get the memory it wanted, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def num_out_of_memory() -> int:
    """How often a CUDA device of this process has had no memory left."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0
    return sum(int(torch.cuda.memory_stats(device).get("num_ooms", 0)) for device in range(torch.cuda.device_count()))


def makes_do_with_less(session: ElasticSession, error: Exception) -> bool:
    """After `error` has ended the user's function: whether it can run again from the last step, with fewer samples in a pass."""
    loop, micro, group = session.loop, session.micro, session.group
    if not session.ran_out_of_memory or loop is None or micro is None or group is None or not is_out_of_memory(error):
        return False
    if group.num_replicas > 1 and not group.may_be_left:
        return False
    loader = loop.loader
    low = (loader.bounds.local_bsz_bounds or (1, 1))[0] if loader.is_adaptive else 1
    if micro.size <= low:
        return False
    most = session.most_samples[loader.name] = max(low, micro.size // 2)
    logger.warning(
        "out of memory with %d samples in one pass of %s: at most %d from now on (%s)",
        micro.size,
        loader.name,
        most,
        str(error).splitlines()[0],
    )
    broken = None
    if group.num_replicas > 1:
        broken = GroupBroken(f"out of memory with {micro.size} samples in one pass")
    for accumulator in session.sums.accumulators():
        accumulator.roll_back()
    session.flush_report()
    snapshot = write_snapshot(session.capture())
    _let_go_of_frames(error)
    if broken is not None:
        session.lose_group(broken)
    session.restart_from(snapshot, broken)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return True


def _let_go_of_frames(error: BaseException | None) -> None:
    """Frees what the frames of the user's function hold: on a device memory, and the Reducers of its models. One that outlived
    the group would wait for the group's threads while it holds the interpreter lock (see `ElasticSession.drop_group`)."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
