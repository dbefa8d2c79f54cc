"""The same changes by Tune's own means: `ResourceChangingScheduler`, and DDP workers in the trial's placement group.

Written as Tune's documentation has it, and kindly: there is a checkpoint at every result, so that no step is made twice;
workers start side by side; the trial's own process does not import torch; workers are placed in bundles that were
reserved for them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Checkpoint, CheckpointConfig, PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, ResourceChangingScheduler
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pauses.ddp_worker import DDPWorker
from pauses.step_log import StepLog, Transition, transitions

__all__ = ["run_peer"]

logger = logging.getLogger(__name__)

_STEPS_PER_RESULT = 20
_RESULTS_PER_SIZE = 3
_LONGEST_CHANGE_S = 120.0
"""If a change takes longer, something is stuck."""


def run_peer(count: int, directory: Path) -> dict[str, list[Transition]]:
    """Makes `count` changes 1→2 and as many 2→1, on the cluster that this process is connected to.

    Args:
        directory: for the files of the run.

    Raises:
        RuntimeError: not all changes took place.
    """
    (directory / "steps").mkdir(parents=True)
    num_changes = 2 * count
    tune.run(
        train_with_workers,
        name="resource-changing",
        config={"steps": str(directory / "steps"), "num_results": _RESULTS_PER_SIZE * (num_changes + 1)},
        resources_per_trial=_resources(1),
        scheduler=ResourceChangingScheduler(FIFOScheduler(), _alternating(num_changes)),
        checkpoint_config=CheckpointConfig(num_to_keep=10),
        storage_path=str(directory / "results"),
        time_budget_s=_LONGEST_CHANGE_S * (num_changes + 1),
        verbose=0,
    )
    log = StepLog(directory / "steps")
    log.read()
    log.close()
    found = list(transitions(log.generations))
    if len(found) != num_changes:
        raise RuntimeError(f"Tune's scheduler should have made {num_changes} changes, but made {len(found)}")
    changes: dict[str, list[Transition]] = {}
    for transition in found:
        name = f"{transition.last.num_replicas}→{transition.first.num_replicas}"
        changes.setdefault(name, []).append(transition)
    return changes


def _resources(num_workers: int) -> PlacementGroupFactory:
    """Nothing for the trial itself, one CPU for each worker."""
    return PlacementGroupFactory([{}, *[{"CPU": 1.0}] * num_workers])


def _alternating(num_changes: int) -> Callable[..., PlacementGroupFactory]:
    """A function that says what resources a trial should have: one worker, two, one, ..."""

    def allocate(tune_controller: Any, trial: Any, result: dict[str, Any], scheduler: Any) -> PlacementGroupFactory:
        changes = min(result["results"] // _RESULTS_PER_SIZE, num_changes)
        if result["results"] % _RESULTS_PER_SIZE == 0:
            logger.info("ResourceChangingScheduler: change %d of %d", changes, num_changes)
        return _resources(1 + changes % 2)

    return allocate


def train_with_workers(config: dict[str, Any]) -> None:
    """A trial: commands its workers, and reports a result with a checkpoint every few steps."""
    num_results, generation, state = 0, 0, None
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        num_results, generation = (checkpoint.get_metadata()[name] for name in ("results", "generation"))
        with checkpoint.as_directory() as directory:
            state = ray.put(Path(directory, "state.pt").read_bytes())

    workers = _start_workers(generation + 1, config["steps"], state)
    while num_results < config["num_results"]:
        steps, *_ = ray.get([worker.train.remote(_STEPS_PER_RESULT) for worker in workers])
        num_results += 1
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "state.pt").write_bytes(ray.get(workers[0].state.remote()))
            checkpoint = Checkpoint.from_directory(directory)
            checkpoint.set_metadata({"results": num_results, "generation": generation + 1})
            tune.report({"steps": steps, "results": num_results}, checkpoint=checkpoint)


def _start_workers(generation: int, steps_directory: str, state: Any) -> list[Any]:
    """One worker in each bundle of the trial's placement group, all in one process group."""
    num_workers = len(tune.get_context().get_trial_resources().bundles)
    group = ray.util.get_current_placement_group()
    assert group is not None
    worker_class: Any = ray.remote(DDPWorker)
    workers = [
        worker_class.options(
            num_cpus=1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(rank, num_workers, generation, steps_directory)
        for rank in range(num_workers)
    ]
    address = workers[0].address.remote()
    ray.get([worker.setup.remote(address, state) for worker in workers])
    return workers
