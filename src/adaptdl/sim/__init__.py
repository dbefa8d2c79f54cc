"""A cluster in simulated time, with the real goodput model, the real fit and the real policies. numpy and scipy only."""

from adaptdl.sim.application import Application, BatchSplit, ModelApplication, StepTimes
from adaptdl.sim.asha import AshaStopper, asha_rungs
from adaptdl.sim.job import JobSpec
from adaptdl.sim.outages import random_outages
from adaptdl.sim.pollux import TracedApplication, read_applications
from adaptdl.sim.results import JobResult, Reallocation, Sample, SimulationResult
from adaptdl.sim.simulator import Costs, Outage, Simulation, Stopper, cluster_nodes
from adaptdl.sim.tune_results import ReplayedApplication, tune_workload
from adaptdl.sim.tuning import TunedModel, built_in_models, tuning_workload
from adaptdl.sim.workload import read_model_applications, read_workload, write_model_applications, write_workload

__all__ = [
    "Application",
    "AshaStopper",
    "BatchSplit",
    "Costs",
    "JobResult",
    "JobSpec",
    "ModelApplication",
    "Outage",
    "Reallocation",
    "ReplayedApplication",
    "Sample",
    "Simulation",
    "SimulationResult",
    "StepTimes",
    "Stopper",
    "TracedApplication",
    "TunedModel",
    "asha_rungs",
    "built_in_models",
    "cluster_nodes",
    "random_outages",
    "read_applications",
    "read_model_applications",
    "read_workload",
    "tune_workload",
    "tuning_workload",
    "write_model_applications",
    "write_workload",
]
