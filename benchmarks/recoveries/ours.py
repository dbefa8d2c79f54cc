"""AdaptDL's recoveries: one trial on two nodes that loses a replica, or a node, again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storm.cluster import Nodes
from storm.experiment import Experiment, run_experiment

from adaptdl.runtime import ElasticConfig
from recoveries.elastic_training import train
from recoveries.measuring import Loss, Recovered, lose_and_measure
from recoveries.spread_policy import SpreadPolicy

__all__ = ["run_ours"]

_INTERVAL_S = 5.0


def run_ours(nodes: Nodes, count: int, directory: Path) -> dict[Loss, list[Recovered]]:
    """Makes each loss `count` times, with AdaptDL's defaults. For the rest see
    :func:`recoveries.measuring.lose_and_measure`."""
    return lose_and_measure(list(Loss) * count, nodes, directory, _tune)


def _tune(directory: Path, config: dict[str, str]) -> Any:
    """Runs one trial under Tune."""
    return run_experiment(
        Experiment(
            name="recovery",
            function=train,
            config=config,
            num_trials=1,
            policy=SpreadPolicy(),
            interval_s=_INTERVAL_S,
            elastic=ElasticConfig(),
            directory=directory,
        )
    )
