"""How long a trial pauses when its replicas change, beside Tune's own way of changing them, in one run.

    python benchmarks/reallocation.py
    python benchmarks/reallocation.py --count 3 --peer-count 1 --json reallocation.json

A multilayer perceptron of 5 M parameters is trained (gloo, one thread per replica) on a cluster simulated on this
machine: three nodes of two CPUs. A script changes its replicas 1→2, 2→2 on another node, 2→1 and 1→0→1. Then Tune's
`ResourceChangingScheduler` makes the changes 1→2 and 2→1 with DDP workers. All times are read from the steps that were
made, in one clock. It takes about ten minutes, and exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pauses.ours import Change, Ours, run_ours
from pauses.peer import run_peer
from pauses.step_log import Transition
from ray.cluster_utils import Cluster

_NUM_NODES, _CPUS_PER_NODE = 3, 2

MAX_PAUSE_S = 0.25
MIN_SHARE = 0.9
MIN_RATIO = 20.0


@contextmanager
def simulated_cluster() -> Iterator[None]:
    """Connected to a head without CPUs and a few nodes; everything is gone afterwards."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(_NUM_NODES):
            cluster.add_node(num_cpus=_CPUS_PER_NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Something that must hold, and whether it does."""

    text: str
    value: str
    holds: bool
