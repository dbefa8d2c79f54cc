"""The command `adaptdl`. What it needs is imported when it is needed: `adaptdl --help` is quick."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptdl.errors import AdaptDLError, UsageError

if TYPE_CHECKING:
    from adaptdl.policy import Node, Policy
    from adaptdl.sim import Application, Costs, JobSpec, Outage, SimulationResult

__all__ = ["main"]

_FAILURES_UNTIL_S = 30 * 86400.0
"""Nodes fail until so long after the last submission."""

_DESCRIPTION = """\
Runs a workload on a cluster in simulated time, with the real goodput model and the real policies.

  adaptdl simulate --nodes 8 --gpus 4 --tuning 64 --asha --policy optimal,static:1,static:4
  adaptdl simulate --nodes 2 --gpus 8 --tune-results ~/ray_results/mnist --policy optimal,fair-share
  adaptdl simulate --cluster 16x4,4x8 --csv jobs.csv --failures 86400 --plot timeline.png
  adaptdl simulate --nodes 16 --gpus 4 --traces pollux/ --workload 1 --policy optimal,tiresias
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, 1 if it failed, 2 if it cannot be done like that."""
    args = _parser().parse_args(argv)
    try:
        _simulate(args)
    except UsageError as error:
        print(f"adaptdl: error: {error}", file=sys.stderr)
        return 2
    except AdaptDLError as error:
        print(f"adaptdl: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


# -- arguments ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptdl", description="Elastic, goodput-driven training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    simulate = commands.add_parser(
        "simulate",
        help="what would a policy do for a cluster and its workload?",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_cluster(simulate.add_argument_group("cluster"))
    _add_workload(simulate.add_argument_group("workload, one of --traces, --csv, --tune-results, --tuning"))
    _add_policy(simulate.add_argument_group("policy and its times"))
    _add_output(simulate.add_argument_group("output, besides a table"))
    return parser


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    group.add_argument("--gpus", type=int, metavar="G", help="GPUs of each; a replica takes one (default: 4)")
    group.add_argument("--cluster", metavar="NxG,…", help="instead: nodes of several kinds, such as 16x4,4x8")
    group.add_argument("--failures", type=float, metavar="S", help="every node fails, on average so long after it came")
    group.add_argument("--away", type=float, metavar="S", help="and is away so long on average (default: 600)")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--traces", type=Path, metavar="DIR", help="the published data of Pollux: traces/, workloads/")
    group.add_argument("--workload", type=int, metavar="K", help="which of its workloads (default: 1)")
    group.add_argument(
        "--csv", type=Path, metavar="FILE", help="jobs: name, time, application, num_replicas, batch_size"
    )
    group.add_argument(
        "--applications", type=Path, metavar="FILE", help="JSON: what they train, besides what is built in"
    )
    group.add_argument(
        "--tune-results", type=Path, metavar="DIR", help="a finished Ray Tune experiment of AdaptDL trials"
    )
    group.add_argument(
        "--metric", metavar="NAME", help="its column that says which trial is best (-NAME: least is best)"
    )
    group.add_argument(
        "--max-batch-size", type=int, metavar="M", help="what its batches may grow to (default: as seen)"
    )
    group.add_argument("--together", action="store_true", help="its trials all come at once, not when they did")
    group.add_argument("--tuning", type=int, metavar="N", help="N trials of one model with random hyperparameters")
    group.add_argument("--model", metavar="NAME", help="convnet, resnet18 or transformer (default: resnet18)")
    group.add_argument("--epochs", type=int, metavar="N", help="of a trial (default: the model's)")
    group.add_argument("--asha", action="store_true", help="stop trials early by asynchronous successive halving")
    group.add_argument("--max-concurrent", type=int, metavar="N", help="so many jobs at a time; the next when one ends")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of hyperparameters and failures (default: 0)")


def _add_policy(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policy",
        default="optimal",
        metavar="NAME,…",
        help="optimal, fair-share, static (:N for N replicas each), tiresias (:N), optimus; the last three train with the "
        "requested batch size; several are compared (default: optimal)",
    )
    group.add_argument("--fairness", type=float, metavar="F", help="of optimal: 0 total speedup to 1 smallest speedup")
    group.add_argument("--interval", type=float, default=60.0, metavar="S", help="between its decisions (default: 60)")
    group.add_argument(
        "--immediate",
        action=argparse.BooleanOptionalAction,
        help="decide when something happens, too, as on a real cluster (default: unless --traces, which has rounds only)",
    )
    group.add_argument("--pause", type=float, metavar="S", help="cost of a reallocation (default: 1; with --traces 30)")
    group.add_argument("--start", type=float, metavar="S", help="nothing to first step (default: 5; with --traces 30)")
    group.add_argument(
        "--growth",
        type=float,
        metavar="S",
        help="new replicas start beside training (default: as --start; with --traces 0)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--jobs", action="store_true", help="list the jobs")
    group.add_argument("--json", type=Path, metavar="FILE", help="everything that happened")
    group.add_argument("--plot", type=Path, metavar="FILE", help="allocations over time, .png, .svg or .pdf, by policy")


# -- adaptdl simulate ---------------------------------------------------------------------------------------------------


def _simulate(args: argparse.Namespace) -> None:
    from adaptdl.report import comparison_table, job_table

    entrants = [_Entrant.of(name.strip(), args.fairness) for name in args.policy.split(",")]
    _check_output(args)
    nodes, workload = _nodes(args), _workload(args)
    outages = _outages(args, nodes, workload)
    results = {entrant.name: _run(args, entrant, nodes, workload, outages) for entrant in entrants}
    print(comparison_table(results))
    for name, result in results.items():
        if args.jobs:
            print(f"\n{name}\n{job_table(result)}")
    _write(args, results)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entrant:
    """A policy as it was named."""

    name: str
    make: Callable[[], Policy]
    adaptive: bool = True
    """Whether jobs choose their batch size."""
    exclusive: bool = True
    num_replicas: int | None = None
    """What each job asks for, if not what the workload says."""

    @classmethod
    def of(cls, text: str, fairness: float | None) -> _Entrant:
        from adaptdl.policy import FairSharePolicy, OptimalPolicy, OptimusPolicy, StaticPolicy, TiresiasPolicy

        name, colon, number = text.partition(":")
        if name == "optimal" and not colon:
            if fairness is None:
                return cls(name=text, make=OptimalPolicy)
            return cls(name=text, make=lambda: OptimalPolicy(fairness=fairness))
        if name == "fair-share" and not colon:
            return cls(name=text, make=FairSharePolicy)
        if name == "optimus" and not colon:
            return cls(name=text, make=lambda: OptimusPolicy(exclusive=False), adaptive=False, exclusive=False)
        if name in ("static", "tiresias") and (not colon or (number.isdecimal() and int(number) >= 1)):
            asked = int(number) if colon else None
            if name == "static":
                return cls(name=text, make=StaticPolicy, adaptive=False, num_replicas=asked)
            return cls(
                name=text,
                make=lambda: TiresiasPolicy(exclusive=False),
                adaptive=False,
                exclusive=False,
                num_replicas=asked,
            )
        raise UsageError(
            "`--policy` must be optimal, fair-share, static, static:N, tiresias, tiresias:N or optimus, or several with "
            f"commas, but is {text!r}."
        )


def _run(
    args: argparse.Namespace,
    entrant: _Entrant,
    nodes: Sequence[Node],
    workload: Sequence[JobSpec],
    outages: Sequence[Outage],
) -> SimulationResult:
    from adaptdl.report import ProgressLine
    from adaptdl.sim import AshaStopper, Simulation

    if entrant.num_replicas is not None:
        workload = [dataclasses.replace(spec, requested_replicas=entrant.num_replicas) for spec in workload]
    immediate = args.traces is None if args.immediate is None else args.immediate
    line = ProgressLine(sys.stderr, entrant.name, len(workload))
    try:
        return Simulation(
            nodes=nodes,
            workload=workload,
            policy=entrant.make(),
            interval_s=args.interval,
            costs=_costs(args),
            immediate=immediate,
            adaptive=entrant.adaptive,
            exclusive=entrant.exclusive,
            outages=outages,
            stopper=AshaStopper() if args.asha else None,
            max_concurrent=args.max_concurrent,
            resolution_s=0.0 if args.traces is None else 1.0,
            on_turn=line,
        ).run()
    finally:
        line.close()


def _costs(args: argparse.Namespace) -> Costs:
    from adaptdl.sim import Costs

    published = args.traces is not None
    start_s = args.start if args.start is not None else 30.0 if published else 5.0
    pause_s = args.pause if args.pause is not None else 30.0 if published else 1.0
    growth_s = args.growth if args.growth is not None else 0.0 if published else start_s
    return Costs(start_s=start_s, pause_s=pause_s, growth_s=growth_s)


def _nodes(args: argparse.Namespace) -> list[Node]:
    from adaptdl.sim import cluster_nodes

    if (args.nodes is None) == (args.cluster is None) or (args.cluster is not None and args.gpus is not None):
        raise UsageError("the cluster must be given as --nodes N --gpus G or as --cluster NxG,…, one of the two.")
    kinds = [f"{args.nodes}x{args.gpus or 4}"] if args.cluster is None else args.cluster.split(",")
    nodes: list[Node] = []
    for i, kind in enumerate(kinds):
        count, _, gpus = kind.strip().partition("x")
        if not (count.isdecimal() and gpus.isdecimal() and int(count) >= 1 and int(gpus) >= 1):
            raise UsageError(f"a kind of node must be given as NxG, N nodes of G GPUs, but got {kind!r}.")
        nodes += cluster_nodes(int(count), int(gpus), prefix="node" if len(kinds) == 1 else f"node-{i}")
    return nodes


_ONLY_WITH = {
    "workload": ("traces",),
    "applications": ("csv",),
    "metric": ("tune_results",),
    "max_batch_size": ("tune_results",),
    "together": ("tune_results",),
    "model": ("tuning",),
    "epochs": ("tuning",),
    "asha": ("tuning",),
    "away": ("failures",),
}
"""Arguments that say something about others only."""


def _workload(args: argparse.Namespace) -> list[JobSpec]:
    from adaptdl.sim import read_workload, tune_workload, tuning_workload

    given = [name for name in ("csv", "tune_results", "tuning") if getattr(args, name) is not None]
    if len(given) > 1 or (args.traces is not None and given not in ([], ["csv"])) or not (given or args.traces):
        raise UsageError("the workload must be one of --traces DIR, --csv FILE, --tune-results DIR, --tuning N.")
    for name, others in _ONLY_WITH.items():
        if getattr(args, name) not in (None, False) and all(getattr(args, other) is None for other in others):
            raise UsageError(f"--{_dashed(name)} is for --{_dashed(others[0])} only.")
    if args.tuning is not None:
        return tuning_workload(args.tuning, model=args.model or "resnet18", seed=args.seed, num_epochs=args.epochs)
    if args.tune_results is not None:
        metric = args.metric and args.metric.removeprefix("-")
        return tune_workload(
            args.tune_results,
            metric=metric,
            mode="max" if metric == args.metric else "min",
            max_batch_size=args.max_batch_size,
            together=args.together,
        )
    file = args.csv or args.traces / "workloads" / f"workload-{args.workload or 1}.csv"
    return read_workload(file, _applications(args))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _applications(args: argparse.Namespace) -> dict[str, Application]:
    from adaptdl.sim import built_in_models, read_applications, read_model_applications

    applications: dict[str, Application] = {}
    if args.csv is not None:
        applications |= {name: model.application() for name, model in built_in_models().items()}
    if args.traces is not None:
        applications |= read_applications(args.traces)
    if args.applications is not None:
        applications |= read_model_applications(args.applications)
    return applications


def _outages(args: argparse.Namespace, nodes: Sequence[Node], workload: Sequence[JobSpec]) -> list[Outage]:
    from adaptdl.sim import random_outages

    if args.failures is None:
        return []
    return random_outages(
        nodes,
        seed=args.seed,
        mean_between_s=args.failures,
        mean_away_s=600.0 if args.away is None else args.away,
        until_s=max((spec.submitted_s for spec in workload), default=0.0) + _FAILURES_UNTIL_S,
    )


def _check_output(args: argparse.Namespace) -> None:
    """Before anything takes time: whether it could be written in the end."""
    from adaptdl.report import check_plot

    for file in (args.json, args.plot):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"`{file}` cannot be written: there is no directory `{file.parent}`.")
    if args.plot is not None:
        check_plot(args.plot)


def _write(args: argparse.Namespace, results: dict[str, SimulationResult]) -> None:
    from adaptdl.report import plot_timeline

    if args.json is not None:
        values: dict[str, Any] = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
        data = {"arguments": values, "results": {name: result.to_dict() for name, result in results.items()}}
        args.json.write_text(json.dumps(data) + "\n", encoding="utf-8")
    if args.plot is not None:
        for name, result in results.items():
            stem = args.plot.stem if len(results) == 1 else f"{args.plot.stem}-{name.replace(':', '-')}"
            plot_timeline(result, args.plot.with_name(stem + args.plot.suffix), title=name)
