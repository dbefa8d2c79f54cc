"""Running out of memory: how it is noticed, and what is made of it.

An exception that leaves the user's loop looks like a ``break`` to the loader. So a model notes the error as it passes through
its forward pass, and of a backward pass the allocator of CUDA knows (on the CPU nobody does).

A replica whose pass did not fit goes back to the state after its last step, runs the user's function again from there in the same
process, as a job that is resumed does, and gets at most half as many samples in a pass from then on.
"""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory", "num_out_of_memory", "release_memory", "smaller_pass"]

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


def smaller_pass(size: int, low: int) -> int | None:
    """Samples to try when `size` did not fit, at least `low`; None: there is nothing smaller."""
    return max(low, size // 2) if size > low else None


def release_memory() -> None:
    """Gives what torch keeps for later back to the device."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
