"""What torch does only once per process, done before anybody waits for it."""

from __future__ import annotations

import functools
import gc

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from adaptdl.torch.group import Group
from adaptdl.torch.modes import in_no_mode

__all__ = ["warm_up"]


@functools.cache
@in_no_mode
def warm_up() -> None:
    """Makes a process group (if there is none) and a DistributedDataParallel, and throws them away.

    The first DistributedDataParallel of a process imports for a second, and an exception caught there keeps it alive
    (with its hooks, and with its group) until the next garbage collection: it had better be this one. If it were the group of a
    training, its threads would not be waited for as it is destroyed; one that still has a Python object in hand then asks for the
    interpreter while that is ending, which aborts the process.
    """
    group = None if dist.is_initialized() else Group.form(None, "warm-up", 0, 1, timeout_s=30.0)
    with torch.random.fork_rng(devices=[]):  # the user's own numbers are left alone
        model = torch.nn.Linear(1, 1, device="cpu")
    ddp = DistributedDataParallel(model, forward_sync_buffers=False, init_sync=False)
    if group is not None:  # a step costs more the first time, too
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        ddp(torch.zeros(1, 1, device="cpu")).sum().backward()
        optimizer.step()
    del ddp
    gc.collect()
    if group is not None:
        group.close()
