"""Waiting with a bound, and an error that says what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["within"]

T = TypeVar("T")


async def within(timeout_s: float, awaitable: Awaitable[T], what: str) -> T:
    """The result of `awaitable`, if it comes within `timeout_s`.

    Raises:
        TimeoutError: naming `what` was waited for.
    """
    future = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait([future], timeout=timeout_s)
    if not done:
        future.cancel()
        raise TimeoutError(f"waited {timeout_s:g} s for {what}")
    return future.result()
