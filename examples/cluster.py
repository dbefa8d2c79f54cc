"""The tutorial on a simulated cluster: three nodes on this machine, which Ray treats as three machines.

    python examples/cluster.py
    python examples/cluster.py --num-nodes 4 --cpus-per-node 1 --num-samples 6

The nodes share this machine's real CPUs, so it shows how trials spread, not how fast they are.
"""

from __future__ import annotations

import argparse
import sys

from ray.cluster_utils import Cluster

from hyperopt_example import make_parser, run


def start_cluster(num_nodes: int, cpus_per_node: int) -> Cluster:
    """A head without CPUs, where only the driver is, and `num_nodes` nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=cpus_per_node)
        cluster.wait_for_nodes()
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


def main(args: argparse.Namespace) -> str | None:
    cluster = start_cluster(args.num_nodes, args.cpus_per_node)
    try:
        args.address = cluster.address
        return run(args)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    parser = make_parser()
    parser.description = __doc__
    parser.add_argument("--num-nodes", type=int, default=3)
    parser.add_argument("--cpus-per-node", type=int, default=2)
    parser.set_defaults(epochs=20, stagger_s=10.0)
    sys.exit(main(parser.parse_args()))
