"""Fixed replicas, first come, first served: how a cluster without elastic jobs is run. For comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptdl.policy.cluster import Allocation, Job, Node
from adaptdl.policy.emptiest import emptiest_places, named_in_order, wanted_replicas
from adaptdl.policy.instance import Instance
from adaptdl.policy.policy import Decision

__all__ = ["StaticPolicy"]


class StaticPolicy:
    """Each job gets its `requested_replicas` (`min_replicas` if nobody asked for any) or nothing, in order of arrival;
    where one does not fit, later ones that do go first (backfill).

    Whoever runs stays as it is, with any number of replicas, until it ends. Only a job whose node drains, is gone or no
    longer holds it waits in line again, by its arrival. Speedups, weights and the cost of moving play no part. The
    objective is the number of jobs that run.
    """

    def objective(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        current: Mapping[str, Allocation],
        allocations: Mapping[str, Allocation],
    ) -> float:
        """Number of jobs that have anything."""
        return float(sum(bool(allocations.get(job.job_id)) for job in jobs))

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        """Leaves everybody who runs alone and starts those who fit beside them."""
        instance = Instance.of(nodes, jobs, current)
        places = _places(instance)
        allocations = named_in_order(instance, places)
        started = sum(bool(taken) and not standing for taken, standing in zip(places, instance.standing, strict=True))
        return Decision(
            allocations=allocations,
            objective=self.objective(nodes, jobs, current, allocations),
            gap=None,
            message=f"first come, first served: {started} started",
        )


def _places(instance: Instance) -> list[Mapping[int, int]]:
    """By job, by node's index: number of replicas."""
    room = instance.room.copy()
    for need, standing in zip(instance.need, instance.standing, strict=True):
        room.take(need, standing)
    places = list(instance.standing)
    for j, job in enumerate(instance.jobs):
        if not places[j]:
            places[j] = emptiest_places(room, instance.need[j], wanted_replicas(job))
            room.take(instance.need[j], places[j])
    return places
