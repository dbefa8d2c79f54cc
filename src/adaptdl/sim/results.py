"""What a simulation has shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["JobResult", "Reallocation", "Sample", "SimulationResult"]


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How one job fared. Times are seconds from the start of the simulation."""

    job_id: str
    application: str
    submitted_s: float
    completed_s: float
    stopped: bool
    """Whether it ended early, by a stopping rule."""
    num_restarts: int
    """Reallocations after its first start."""
    service_s: float
    """Replicas held × seconds."""
    waited_s: float
    """Seconds without replicas, from the first round that knew of it."""
    progress: float
    lost_progress: float
    """Progress made twice, since it was lost with nodes."""
    score: float

    @property
    def completion_time_s(self) -> float:
        """JCT: from submission to the end."""
        return self.completed_s - self.submitted_s


@dataclass(frozen=True, kw_only=True)
class Reallocation:
    """One change of one job's allocation."""

    time_s: float
    job_id: str
    before: Mapping[str, int]
    after: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The cluster from one decision to the next."""

    from_s: float
    to_s: float
    num_waiting: int
    num_running: int
    replicas: Mapping[str, int]
    """`job_id` → replicas held, of those that hold any."""
    batch_sizes: Mapping[str, int]
    num_nodes: int
    """Nodes that were there."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """All that happened."""

    jobs: tuple[JobResult, ...]
    """In order of arrival."""
    samples: tuple[Sample, ...]
    reallocations: tuple[Reallocation, ...]
    num_replicas: int
    """Replicas that the whole cluster has room for."""
    ended_s: float

    @property
    def average_completion_time_s(self) -> float:
        return float(np.mean([job.completion_time_s for job in self.jobs])) if self.jobs else 0.0

    def percentile_completion_time_s(self, percent: float) -> float:
        return float(np.percentile([job.completion_time_s for job in self.jobs], percent)) if self.jobs else 0.0

    @property
    def makespan_s(self) -> float:
        """From the first submission to the last end."""
        if not self.jobs:
            return 0.0
        return max(job.completed_s for job in self.jobs) - min(job.submitted_s for job in self.jobs)

    @property
    def average_restarts(self) -> float:
        return float(np.mean([job.num_restarts for job in self.jobs])) if self.jobs else 0.0

    @property
    def service_hours(self) -> float:
        """Replica-hours held."""
        return sum(job.service_s for job in self.jobs) / 3600

    @property
    def utilisation(self) -> float:
        """Share of the cluster's replicas that was held, from the first submission to the last end."""
        return self.service_hours * 3600 / (self.num_replicas * self.makespan_s) if self.makespan_s else 0.0

    @property
    def average_waiting(self) -> float:
        """Jobs without replicas, average over time."""
        total_s = sum(sample.to_s - sample.from_s for sample in self.samples)
        if not total_s:
            return 0.0
        return sum(sample.num_waiting * (sample.to_s - sample.from_s) for sample in self.samples) / total_s

    def best_completed_s(self) -> float:
        """When the job with the highest score was complete."""
        return max(self.jobs, key=lambda job: job.score).completed_s

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: the summary, and every job, sample and reallocation."""
        return {
            "summary": self.summary(),
            "jobs": [{**asdict(job), "completion_time_s": job.completion_time_s} for job in self.jobs],
            "samples": [asdict(sample) for sample in self.samples],
            "reallocations": [asdict(change) for change in self.reallocations],
        }

    def summary(self) -> dict[str, float]:
        """The figures of the table."""
        return {
            "num_jobs": len(self.jobs),
            "average_completion_time_s": self.average_completion_time_s,
            "median_completion_time_s": self.percentile_completion_time_s(50),
            "p99_completion_time_s": self.percentile_completion_time_s(99),
            "makespan_s": self.makespan_s,
            "average_restarts": self.average_restarts,
            "service_hours": self.service_hours,
            "utilisation": self.utilisation,
            "average_waiting": self.average_waiting,
            "num_stopped": sum(job.stopped for job in self.jobs),
        }
