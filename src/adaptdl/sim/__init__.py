"""A cluster in simulated time, with the real goodput model, the real fit and the real policies. numpy and scipy only."""

from adaptdl.sim.application import Application, BatchSplit, ModelApplication, StepTimes
from adaptdl.sim.job import JobSpec
from adaptdl.sim.pollux import TracedApplication, read_applications, read_workload
from adaptdl.sim.results import JobResult, Reallocation, Sample, SimulationResult
from adaptdl.sim.simulator import Costs, Outage, Simulation, Stopper, cluster_nodes

__all__ = [
    "Application",
    "BatchSplit",
    "Costs",
    "JobResult",
    "JobSpec",
    "ModelApplication",
    "Outage",
    "Reallocation",
    "Sample",
    "Simulation",
    "SimulationResult",
    "StepTimes",
    "Stopper",
    "TracedApplication",
    "cluster_nodes",
    "read_applications",
    "read_workload",
]
