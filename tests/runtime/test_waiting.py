"""Waiting with a bound."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from adaptdl.runtime.waiting import within


def test_what_comes_in_time_is_returned_or_raised() -> None:
    async def fail() -> None:
        raise KeyError("no")

    assert asyncio.run(within(10.0, asyncio.sleep(0, "here"), "it")) == "here"
    with pytest.raises(KeyError):
        asyncio.run(within(10.0, fail(), "it"))


def test_what_does_not_come_is_named_and_cancelled() -> None:
    async def main() -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError, match=r"waited 0.01 s for a train"):
            await within(0.01, future, "a train")
        return future

    assert asyncio.run(main()).cancelled()


@pytest.mark.parametrize("fails_at_once", [False, True])
def test_an_error_that_nobody_waits_for_any_more_is_not_complained_of(fails_at_once: bool) -> None:
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        come = asyncio.Event()

        async def fail() -> None:
            try:
                await come.wait()
            finally:
                raise KeyError("the place is gone")

        waiting = asyncio.ensure_future(within(10.0, fail(), "a place"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if fails_at_once:
            come.set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert complaints == []
