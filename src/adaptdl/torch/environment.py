"""The only module of this package that reads environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Launch", "read_launch"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was started."""

    rank: int = 0
    num_replicas: int = 1
    num_nodes: int = 1
    under_torchrun: bool = False
    checkpoint_dir: str | None = None
    """From ``ADAPTDL_CHECKPOINT_DIR``: where a session that is not told otherwise keeps its snapshots."""


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Reads torchrun's variables (``RANK``, ``WORLD_SIZE``, ``GROUP_WORLD_SIZE`` or ``LOCAL_WORLD_SIZE``) if there are any."""
    environ = os.environ if environ is None else environ
    checkpoint_dir = environ.get("ADAPTDL_CHECKPOINT_DIR") or None
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environ):
        return Launch(checkpoint_dir=checkpoint_dir)
    num_replicas = int(environ["WORLD_SIZE"])
    per_node = int(environ.get("LOCAL_WORLD_SIZE", num_replicas))
    return Launch(
        rank=int(environ["RANK"]),
        num_replicas=num_replicas,
        num_nodes=int(environ.get("GROUP_WORLD_SIZE", -(-num_replicas // per_node))),
        under_torchrun=True,
        checkpoint_dir=checkpoint_dir,
    )
