"""Small simulations to make reports of."""

from __future__ import annotations

from adaptdl.policy import StaticPolicy
from adaptdl.sim import Costs, Simulation, SimulationResult, cluster_nodes
from tests.sim.workloads import FREE, spec


def simulated(num_jobs: int = 3, num_gpus: int = 2, **changes: object) -> SimulationResult:
    """Jobs of 100 s on one replica each, all submitted at once."""
    return Simulation(
        nodes=cluster_nodes(1, num_gpus),
        workload=[spec(f"job-{i}", **changes) for i in range(num_jobs)],  # type: ignore[arg-type]
        policy=StaticPolicy(),
        adaptive=False,
        immediate=True,
        costs=Costs(**FREE),
        resolution_s=0.0,
    ).run()
