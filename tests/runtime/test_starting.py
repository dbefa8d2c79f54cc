"""What becomes of a replica whose start fails in a way that nobody has thought of. No Ray: the process is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectStoreFullError

from adaptdl.runtime import JobStatus, Phase
from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import JobInfo
from adaptdl.runtime.placement import Reservation
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results

NODE = "a" * 56
ELASTIC = ElasticConfig(resources_per_replica={"CPU": 1}, boot_timeout_s=0.3, progress_timeout_s=0.2)


def group(*, ping: Callable[[], Any], run: Callable[..., Any]) -> ReplicaGroup:
    """A coordinator whose replicas' processes answer so."""
    job = JobInfo(job_id="job", name="job", experiment="tests")
    group = ReplicaGroup(job=job, function=b"", config=b"", coordinator=None, results=Results())  # type: ignore[arg-type]
    actor = SimpleNamespace(ping=SimpleNamespace(remote=ping), run=SimpleNamespace(remote=run))
    made = SimpleNamespace(remote=lambda: actor)
    group._launcher._actor_class = SimpleNamespace(options=lambda **_: made)

    async def reserve(node_id: str, resources: Any, *, timeout_s: float) -> Reservation:
        place = SimpleNamespace(id=SimpleNamespace(hex=lambda: "00"))
        return Reservation(node_id=node_id, resources=resources, group=place)  # type: ignore[arg-type]

    group._reservations.reserve = reserve  # type: ignore[method-assign]
    group._reservations.release = lambda _: None  # type: ignore[method-assign]
    return group


def trouble_of(group: ReplicaGroup, monkeypatch: pytest.MonkeyPatch) -> JobStatus:
    """Starts one replica; the job's status once it says that there is trouble."""
    monkeypatch.setattr("adaptdl.runtime.launching._kill", lambda _: None)

    async def main() -> JobStatus:
        group.set_allocation({NODE: 1}, ELASTIC, "test")
        try:
            async with asyncio.timeout(10):
                while not group.status().trouble:
                    await asyncio.sleep(0.01)
            return group.status()
        finally:
            await group.stop()

    return asyncio.run(main())


async def answer() -> int:
    return 1


@pytest.mark.parametrize(
    "error", [ObjectStoreFullError("the store is full"), OSError("no space"), KeyError("a mistake")]
)
def test_what_hinders_the_first_replica_is_said_and_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        raise error

    status = trouble_of(group(ping=answer, run=run), monkeypatch)
    assert str(error.args[0]) in status.trouble
    assert status.num_replicas == 0
    assert status.phase is not Phase.ENDED  # the next one may come


def test_a_first_replica_that_is_never_told_to_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = group(ping=answer, run=lambda *_: None)

    async def forever(*_: Any) -> None:
        await asyncio.Event().wait()

    waits._launcher.start_process = forever  # type: ignore[method-assign]
    assert "it was not running after 0 s" in trouble_of(waits, monkeypatch).trouble


def test_a_mistake_in_watching_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look() -> None:
        raise ZeroDivisionError

    group_ = group(ping=answer, run=lambda *_: asyncio.Event().wait())
    monkeypatch.setattr(group_, "_watch", look)

    async def main() -> None:
        group_.set_allocation({}, ELASTIC, "test")
        async with asyncio.timeout(10):
            while group_.status().phase is not Phase.ENDED:
                await asyncio.sleep(0.01)
        assert "ZeroDivisionError" in str(group_._results._error)

    asyncio.run(main())
