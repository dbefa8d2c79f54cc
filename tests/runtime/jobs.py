"""Jobs on a real Ray, as tests run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import cloudpickle

from adaptdl.runtime import ElasticConfig, ElasticJob, JobInfo, JobStatus
from tests.runtime.functions import TrainingFunction
from tests.waiting import wait_until

__all__ = ["DEADLINE_S", "ELASTIC", "RunningJob", "wait_until_free"]

ELASTIC = ElasticConfig(resources_per_replica={"CPU": 1}, gather_s=10.0, reservation_timeout_s=1.5)
DEADLINE_S = 60.0


class RunningJob:
    """A job, and what it has reported."""

    def __init__(
        self,
        name: str,
        function: TrainingFunction,
        config: dict[str, Any],
        runtime_env: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.info = JobInfo(job_id=name, name=name, experiment="tests")
        self.actor = (
            ray.remote(ElasticJob)
            .options(num_cpus=0, runtime_env=dict(runtime_env or {}))
            .remote(self.info, cloudpickle.dumps(function), cloudpickle.dumps(config), **more)
        )
        self.results: list[dict[str, Any]] = []
        self._next = self.actor.next_result.remote()

    def allocate(self, allocation: Mapping[str, int], elastic: ElasticConfig = ELASTIC) -> None:
        ray.get(self.actor.set_allocation.remote(allocation, elastic, f"to {sum(allocation.values())}"))

    def status(self) -> JobStatus:
        status: JobStatus = ray.get(self.actor.status.remote())
        return status

    def wait_until(self, condition: Callable[[JobStatus], bool], what: str) -> JobStatus:
        """Takes results as they come until `condition` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            status = self.status()
            if condition(status):
                return status
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}: {status}"
            if ray.wait([self._next], timeout=0.05)[0] and not self._take():
                time.sleep(0.05)

    def wait_for(self, allocation: Mapping[str, int]) -> JobStatus:
        return self.wait_until(
            lambda status: (
                dict(status.allocation) == dict(allocation)
                and bool(status.reallocations)
                and status.reallocations[-1].after == sum(allocation.values())
            ),
            f"the allocation {allocation}",
        )

    def wait_for_idle_processes(self, number: int) -> None:
        """Until so many are kept that replicas have left: a function unwinds while the others already train again."""
        of_job: Any = self.actor.__ray_call__
        wait_until(
            lambda: ray.get(of_job.remote(lambda job: len(job._group._launcher._idle))) == number,
            f"{number} idle processes",
        )

    def pids(self) -> list[int]:
        """Of the members' processes, in rank order."""
        of_job: Any = self.actor.__ray_call__
        actors = ray.get(of_job.remote(lambda job: [record.actor for record in job._group._roster.members]))
        found: list[int] = ray.get([actor.ping.remote() for actor in actors])
        return found

    def finish(self) -> list[dict[str, Any]]:
        """All results to the end."""
        while self._take():
            pass
        return self.results

    def _take(self) -> bool:
        metrics = ray.get(self._next, timeout=DEADLINE_S)
        if metrics is None:
            return False
        self.results.append(metrics)
        self._next = self.actor.next_result.remote()
        return True

    def stop(self) -> None:
        ray.get(self.actor.stop.remote(), timeout=10)


def wait_until_free(**resources: float) -> None:
    deadline = time.monotonic() + 10
    while not resources.items() <= ray.available_resources().items():
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.05)
