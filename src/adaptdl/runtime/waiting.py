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
    future.add_done_callback(_take_note)
    try:
        done, _ = await asyncio.wait([future], timeout=timeout_s)
    finally:
        future.cancel()  # nobody waits for it any more, if it has not come
    if not done:
        raise TimeoutError(f"waited {timeout_s:g} s for {what}")
    return future.result()


def _take_note(future: asyncio.Future[T]) -> None:
    """Of an error that nobody waits for: or else the log complains."""
    if not future.cancelled():
        future.exception()
