"""A Ray cluster with a real autoscaler, whose nodes are processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.util import get_node_ip_address

from tests.waiting import wait_until

__all__ = ["DRIVER_ENVIRONMENT", "scaling_cluster"]

DRIVER_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}
"""What a process that connects to it needs: a `ray.init` that starts a cluster leaves "token" to the processes started later."""


@contextlib.contextmanager
def scaling_cluster(node: dict[str, float], *, max_nodes: int) -> Iterator[str]:
    """Gives the address of a cluster that has a head without CPUs, and starts nodes with these resources when they are needed."""
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the names of Ray's sockets may not be long
    address = f"{get_node_ip_address()}:{_free_port()}"
    config = directory / "autoscaling.json"
    config.write_text(json.dumps(_config(address, node, max_nodes)))
    environment = {
        **os.environ,
        **DRIVER_ENVIRONMENT,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--port={address.rpartition(':')[2]}", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--temp-dir={directory / 'ray'}", f"--autoscaling-config={config}"]
    log = directory / "head.log"
    with log.open("wb") as file:
        head = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: _says(log, "Ray runtime started") or head.poll() is not None, "the head node", timeout_s=60)
        assert head.poll() is None, log.read_text()
        yield address
    finally:
        head.kill()  # an end in order takes its time to drain each node
        head.wait(10)
        wait_until(lambda: not _kill_processes_of(directory), "the cluster's processes to be gone")
        shutil.rmtree(directory, ignore_errors=True)


def _config(address: str, node: dict[str, float], max_nodes: int) -> dict[str, Any]:
    nothing: dict[str, Any] = {"node_config": {}, "min_workers": 0}
    lists = [f"{who}setup_commands" for who in ("", "head_", "worker_")]
    lists += ["initialization_commands", "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    return {
        "cluster_name": "test",
        "max_workers": max_nodes,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {**nothing, "resources": {"CPU": 0}, "max_workers": 0},
            "worker": {**nothing, "resources": node, "max_workers": max_nodes},
        },
        **{name: [] for name in lists},
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def _says(log: Path, text: str) -> bool:
    return text in log.read_text(errors="replace")


def _kill_processes_of(directory: Path) -> int:
    """Says how many there were."""
    num_found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                num_found += 1
    return num_found
