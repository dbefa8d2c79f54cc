"""An elastic job without Tune: an actor around a :class:`~adaptdl.runtime.replica_group.ReplicaGroup`.

::

    job = ray.remote(ElasticJob).options(num_cpus=0).remote(JobInfo(...), pickled_function, pickled_config)
    ray.get(job.set_allocation.remote({node_id: 2}, ElasticConfig(resources_per_replica={"CPU": 1}), "start"))
    while (metrics := ray.get(job.next_result.remote())) is not None:
        ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.messages import Event, JobInfo, JobStatus
from adaptdl.runtime.replica_group import ReplicaGroup
from adaptdl.runtime.results import Results, Saved

__all__ = ["ElasticJob"]


class ElasticJob:
    """The coordinator of one job, as an asyncio actor.

    Args:
        job: who it is.
        function: the training function of one argument, pickled with cloudpickle.
        config: its argument, pickled.
        snapshot: what to start from.
    """

    def __init__(self, job: JobInfo, function: bytes, config: bytes, snapshot: bytes | None = None) -> None:
        self._results = Results(Saved(snapshot=snapshot))
        self._group = ReplicaGroup(
            job=job,
            function=function,
            config=config,
            coordinator=ray.get_runtime_context().current_actor,
            results=self._results,
        )

    async def set_allocation(self, allocation: Mapping[str, int], elastic: ElasticConfig, reason: str) -> None:
        """See :meth:`ReplicaGroup.set_allocation`."""
        self._group.set_allocation(allocation, elastic, reason)

    async def status(self) -> JobStatus:
        return self._group.status()

    async def next_result(self) -> dict[str, Any] | None:
        """The next result's metrics; None when the job has ended. Raises what ended it otherwise."""
        result = await self._results.next()
        return None if result is None else result.metrics

    async def snapshot(self) -> bytes | None:
        """The newest state of the job."""
        return self._results.newest.snapshot

    async def stop(self) -> None:
        await self._group.stop()

    async def notify(self, replica_id: str, number: int | None, event: Event | None) -> None:
        """For replicas."""
        await self._group.notify(replica_id, number, event)

    async def report(self, replica_id: str, *result: Any) -> None:
        await self._group.report(replica_id, *result)
