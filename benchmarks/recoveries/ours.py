"""AdaptDL's recoveries: one trial on two nodes that loses a replica, or a node, again and again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from storm.batch_log import TrialLog
from storm.cluster import Nodes
from storm.driver import Driver
from storm.experiment import Experiment, run_experiment

from adaptdl.runtime import ElasticConfig
from recoveries.elastic_training import train
from recoveries.measuring import Loss, Recovered, lose_and_measure
from recoveries.spread_policy import SpreadPolicy

__all__ = ["run_ours"]

_INTERVAL_S = 5.0


def run_ours(nodes: Nodes, count: int, directory: Path) -> dict[Loss, list[Recovered]]:
    """Makes each loss `count` times, with AdaptDL's defaults.

    Args:
        nodes: two, of one CPU each; as many are there afterwards.
        directory: for the files of the run.

    Raises:
        TimeoutError, RuntimeError: see :func:`recoveries.measuring.lose_and_measure`.
    """
    directory.mkdir()
    stop_file, log = directory / "stop", TrialLog(directory / "batches")
    experiment = Experiment(
        name="recovery",
        function=train,
        config={"batches": str(directory / "batches"), "stop_file": str(stop_file)},
        num_trials=1,
        policy=SpreadPolicy(),
        interval_s=_INTERVAL_S,
        elastic=ElasticConfig(),
        directory=directory,
    )
    driver = Driver(partial(run_experiment, experiment), nodes.address, directory / "driver.log")
    try:
        return lose_and_measure(list(Loss) * count, nodes, log, driver)
    finally:
        stop_file.touch()
        driver.end()
        log.close()
