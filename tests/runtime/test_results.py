"""Results are handed over one by one, and a snapshot never runs ahead of the results that go with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adaptdl.runtime.messages import JobError
from adaptdl.runtime.results import Results, Saved


async def put(results: Results, number: int, snapshot: bytes | None = None, **more: Any) -> None:
    await results.put({"number": number}, more.get("files"), snapshot, valid=more.get("valid", lambda: True))


def test_a_result_waits_until_the_one_before_was_taken() -> None:
    async def main() -> None:
        results = Results()
        await put(results, 1)
        second = asyncio.ensure_future(put(results, 2))
        await asyncio.sleep(0.01)
        assert not second.done()
        first_taken = await results.next()
        assert first_taken is not None
        assert first_taken.metrics == {"number": 1}
        await asyncio.wait_for(second, 1)

    asyncio.run(main())


def test_the_last_result_can_be_taken_after_the_end_and_then_comes_none() -> None:
    async def main() -> None:
        results = Results()
        await put(results, 1)
        await results.end()
        assert await results.next() is not None
        assert await results.next() is None

    asyncio.run(main())


def test_an_error_comes_after_the_last_result() -> None:
    async def main() -> None:
        results = Results()
        await put(results, 1)
        await results.end(JobError("broken"))
        assert await results.next() is not None
        with pytest.raises(JobError, match="broken"):
            await results.next()

    asyncio.run(main())


def test_a_snapshot_that_contains_a_result_nobody_has_seen_is_not_saved() -> None:
    async def main() -> None:
        results = Results(Saved(snapshot=b"restored"))
        assert results.saved(0) == Saved(snapshot=b"restored")
        await put(results, 1, b"after 1")
        assert (results.saved(0).snapshot, results.newest.snapshot) == (b"restored", b"after 1")
        results.keep_snapshot(b"later than 1")
        assert results.saved(0).snapshot == b"restored"
        await results.next()
        assert results.saved(0).snapshot == b"restored"
        assert results.saved(1) == Saved(snapshot=b"later than 1")
        await put(results, 2)
        await results.next()
        assert results.saved(2) == Saved(snapshot=b"later than 1", num_ahead=1)

    asyncio.run(main())


def test_results_that_were_seen_are_not_reported_twice_when_replicas_are_lost() -> None:
    async def main() -> None:
        results = Results()
        for number, snapshot in ((1, b"after 1"), (2, None), (3, None)):
            await put(results, number, snapshot)
            if number < 3:
                await results.next()
        assert (await results.rewind()).snapshot == b"after 1"
        for number in (2, 3):
            await asyncio.wait_for(put(results, number, b"again"), 1)
        assert results.saved(2) == Saved(snapshot=b"again")
        fourth = asyncio.ensure_future(put(results, 4))
        taken = [(await results.next()), (await results.next())]
        await fourth
        assert [result.metrics["number"] for result in taken if result is not None] == [3, 4]

    asyncio.run(main())


def test_results_that_were_seen_are_not_reported_twice_after_a_restore() -> None:
    async def main() -> None:
        results = Results(Saved(snapshot=b"after 1", num_ahead=2))
        for number in (2, 3, 4):
            await asyncio.wait_for(put(results, number), 1)
        taken = await results.next()
        assert taken is not None
        assert taken.metrics == {"number": 4}
        assert results.saved(3) == Saved(snapshot=b"after 1", num_ahead=3)

    asyncio.run(main())


def test_the_users_files_go_with_their_result() -> None:
    async def main() -> None:
        results = Results()
        await put(results, 1, files={"weights": b"1"})
        assert results.saved(0).files is None
        taken = await results.next()
        assert taken is not None
        assert taken.files == results.saved(1).files == {"weights": b"1"}

    asyncio.run(main())


def test_a_result_of_a_replica_that_is_gone_is_dropped() -> None:
    async def main() -> None:
        results = Results()
        await put(results, 1)
        alive = True
        late = asyncio.ensure_future(put(results, 2, valid=lambda: alive))
        await asyncio.sleep(0.01)
        alive = False
        await results.rewind()
        await asyncio.wait_for(late, 1)
        assert await results.next() is not None
        with pytest.raises(TimeoutError):
            await results.next(0.01)

    asyncio.run(main())


def test_waiting_for_a_result_is_bounded() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Results().next(0.01)

    asyncio.run(main())
