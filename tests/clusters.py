"""Clusters of several nodes on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray
from ray.cluster_utils import Cluster

__all__ = ["connected_cluster"]


@contextlib.contextmanager
def connected_cluster(*, num_cpus: int) -> Iterator[Cluster]:
    """A cluster of a head with so many CPUs, to which this process is connected; tests add other nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
