"""Who gets what: nodes and jobs in, allocations out. numpy and scipy only."""

from adaptdl.policy.cluster import Allocation, Job, Node, num_nodes, num_replicas
from adaptdl.policy.fair_share import FairSharePolicy
from adaptdl.policy.feasibility import violations
from adaptdl.policy.objective import Objective
from adaptdl.policy.optimal import OptimalPolicy
from adaptdl.policy.optimus import OptimusPolicy
from adaptdl.policy.policy import Decision, Policy
from adaptdl.policy.sizing import Advice, advise
from adaptdl.policy.static import StaticPolicy
from adaptdl.policy.tiresias import TiresiasPolicy

__all__ = [
    "Advice",
    "Allocation",
    "Decision",
    "FairSharePolicy",
    "Job",
    "Node",
    "Objective",
    "OptimalPolicy",
    "OptimusPolicy",
    "Policy",
    "StaticPolicy",
    "TiresiasPolicy",
    "advise",
    "num_nodes",
    "num_replicas",
    "violations",
]
