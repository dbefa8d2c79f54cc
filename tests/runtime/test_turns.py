"""Messages that arrive in any order are taken in that of their numbers."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from adaptdl.runtime.turns import Turns


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_what_was_sent_first_is_taken_first(order: tuple[int, ...]) -> None:
    turns, taken = Turns(), []

    async def receive(sender: str, number: int) -> None:
        async with turns.turn(sender, number):
            taken.append((sender, number))

    async def main() -> None:
        for number in order:
            await asyncio.sleep(0)
            receiving.append(asyncio.ensure_future(receive("a", number)))
            receiving.append(asyncio.ensure_future(receive("b", 3 - number)))
        await asyncio.gather(*receiving)

    receiving: list[asyncio.Future[None]] = []
    asyncio.run(main())
    for sender in "ab":
        assert [number for name, number in taken if name == sender] == [0, 1, 2, 3]


def test_an_error_while_one_is_taken_does_not_hold_up_the_next() -> None:
    turns = Turns()

    async def main() -> None:
        with pytest.raises(KeyError):
            async with turns.turn("a", 0):
                raise KeyError
        async with asyncio.timeout(1), turns.turn("a", 1):
            pass

    asyncio.run(main())


def test_what_was_lost_is_not_waited_for_forever(caplog: pytest.LogCaptureFixture) -> None:
    turns, taken = Turns(timeout_s=0.05), []

    async def receive(number: int) -> None:
        async with turns.turn("replica 1", number):
            taken.append(number)

    async def main() -> None:
        await asyncio.gather(receive(2), receive(3))
        await receive(1)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert taken == [2, 3, 1]
    assert "message 2 of replica 1 has waited 0.05 s for those before it" in caplog.text
