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
from adaptdl.runtime.messages import Cargo, JobInfo
from adaptdl.runtime.placement import Reservation
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results

NODE = "a" * 56
ELASTIC = ElasticConfig(resources_per_replica={"CPU": 1}, boot_timeout_s=0.3, progress_timeout_s=0.2)


def group(*, ping: Callable[[], Any], run: Callable[..., Any], load: Callable[..., Any] | None = None) -> ReplicaGroup:
    """A coordinator whose replicas' processes answer so."""
    job = JobInfo(job_id="job", name="job", experiment="tests")
    group = ReplicaGroup(job=job, function=b"", config=b"", coordinator=None, results=Results())  # type: ignore[arg-type]
    methods = {"ping": ping, "load": load or (lambda _: answer()), "run": run}
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})
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


@pytest.mark.parametrize("where", ["load", "run"])
@pytest.mark.parametrize(
    "error", [ObjectStoreFullError("the store is full"), OSError("no space"), KeyError("a mistake")]
)
def test_what_hinders_the_first_replica_is_said_and_tried_again(
    error: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    methods: dict[str, Any] = {"ping": answer, "run": lambda *_: asyncio.Event().wait(), where: fail}
    status = trouble_of(group(**methods), monkeypatch)
    assert str(error.args[0]) in status.trouble
    assert status.num_replicas == 0
    assert status.phase is not Phase.ENDED  # the next one may come


def test_replicas_that_start_together_share_one_copy_of_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[Cargo] = []
    monkeypatch.setattr("ray.put", lambda cargo: put.append(cargo) or len(put))
    launcher = group(ping=answer, run=answer)._launcher
    large, files = bytes(10**6), {"model.pt": b"weights"}
    with launcher._shared(large, files) as one, launcher._shared(large, files) as other:
        assert (one, other) == (1, 1)
        with launcher._shared(bytes(10**6), files) as newer:
            assert newer == 2
        with launcher._shared(large, files) as late:
            assert late == 3
    assert launcher._loading is None
    assert put[0] == Cargo(function=b"", config=b"", snapshot=large, files=files)
    with launcher._shared(None, files) as small:
        assert small.files is files
    assert len(put) == 3


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
