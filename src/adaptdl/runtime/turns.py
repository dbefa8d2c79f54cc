"""What one sender says, in the order in which it said it.

Ray hands the calls of one sender to an asyncio actor in any order. Mostly that is the order of sending, and under load it is
not. So senders count what they send, and whoever receives it waits for what comes before::

    async with turns.turn(sender, number):
        ...  # must not wait: what comes after does

What is large comes by way of the object store, long after what was sent later. It is not counted; its sender waits until it was
taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Turns"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
"""Something that was sent before, by a sender that lives, comes in milliseconds; if not, it is lost."""


class Turns:
    """Of all senders to one actor.

    Args:
        timeout_s: how long what is missing is waited for.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._next: dict[str, int] = {}
        self._waiting: dict[tuple[str, int], asyncio.Event] = {}

    @asynccontextmanager
    async def turn(self, sender: str, number: int) -> AsyncIterator[None]:
        """Entered when all messages before `number`, counted from 0, have left it."""
        if number > self._next.get(sender, 0):
            event = self._waiting[sender, number] = asyncio.Event()
            try:
                await asyncio.wait_for(event.wait(), self._timeout_s)
            except TimeoutError:
                logger.warning(
                    "message %d of %s has waited %g s for those before it, and goes on without",
                    number,
                    sender,
                    self._timeout_s,
                )
            finally:
                del self._waiting[sender, number]
        try:
            yield
        finally:
            after = self._next[sender] = max(self._next.get(sender, 0), number + 1)
            if (sender, after) in self._waiting:
                self._waiting[sender, after].set()
