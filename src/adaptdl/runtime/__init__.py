"""Ray core: the allocator, and the replica groups that carry out what it decides."""

from adaptdl.runtime.config import ElasticConfig
from adaptdl.runtime.elastic_job import ElasticJob
from adaptdl.runtime.messages import JobError, JobInfo, JobStatus, Phase, Reallocation, TrainingFunctionError
from adaptdl.runtime.replica_group import ReplicaGroup

__all__ = [
    "ElasticConfig",
    "ElasticJob",
    "JobError",
    "JobInfo",
    "JobStatus",
    "Phase",
    "Reallocation",
    "ReplicaGroup",
    "TrainingFunctionError",
]
