"""AdaptDL's reallocations: a trial that a script grows, moves, shrinks, pauses and resumes, as often as wanted."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray import tune

from adaptdl.runtime import ElasticConfig
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator
from pauses.elastic_training import train
from pauses.scripted_policy import STEADY_S, Act, LoggedReallocation, ReallocationLines, Scripted, ScriptedPolicy
from pauses.step_log import Step, StepLog, Transition, median_step_s, steps_per_s, transitions

__all__ = ["Change", "Ours", "run_ours"]

_INTERVAL_S = 0.1
"""How often the policy is asked."""
_ELASTIC = ElasticConfig(gather_s=60.0, idle_process_s=0.0)
"""Two replicas that start together join together, however slowly the second one starts on a busy machine. And each
newcomer is a new process: a script that comes back to the same nodes all the time would find the old ones there."""
_LONGEST_CYCLE_S = 240.0
"""For one change of each kind; if they take longer, something is stuck."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One reallocation, as the steps show it."""

    pause_s: float
    """Last step → first batch."""
    extra_s: float
    """Last step's end → first step's end, less a step."""
    logged_s: float
    """The pause as the library logs it; of a pause and a resume, the time to hand over the state and the time from the
    plan to the first batch together."""
    redone: int
    left_out: int
    start_s: float
    """Decision → first batch."""
    share: float | None
    """Rate of steps from the decision to the last step, by the rate before; None if nobody started meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    changes: dict[str, list[Change]]
    """1→2, 2→2, 2→1, 1→0→1."""
    step_s: dict[int, float]
    """Number of replicas → median time of a step."""


def run_ours(count: int, directory: Path) -> Ours:
    """Makes `count` changes of each kind, on the cluster that this process is connected to.

    Args:
        directory: for the files of the run.

    Raises:
        RuntimeError: not all changes took place, or others did.
    """
    (directory / "steps").mkdir(parents=True)
    stop_file, log, lines = directory / "stop", StepLog(directory / "steps"), ReallocationLines()
    policy = ScriptedPolicy(count, log, lines, stop_file)
    logger = logging.getLogger("adaptdl")
    logger.addHandler(lines)
    try:
        tune.run(
            DistributedTrainableCreator(train),
            name="reallocation",
            config={"steps": str(directory / "steps"), "stop_file": str(stop_file)},
            scheduler=AdaptDLScheduler(policy=policy, interval_s=_INTERVAL_S, elastic=_ELASTIC),
            storage_path=str(directory / "results"),
            time_budget_s=_LONGEST_CYCLE_S * (count + 1),
            verbose=0,
        )
        log.read()
    finally:
        logger.removeHandler(lines)
        log.close()
    if not policy.is_over:
        newest = policy.decided[-1].act.value if policy.decided else "none"
        raise RuntimeError(f"the script did not come to its end; its last change was {newest} ({len(policy.decided)})")
    return _measure(policy.decided, lines.seen, log.generations)


def _measure(
    decided: Sequence[Scripted], logged: Sequence[LoggedReallocation], generations: Sequence[Sequence[Step]]
) -> Ours:
    found = list(transitions(generations))
    wanted = list(itertools.pairwise(sum(line.allocation.values()) for line in decided))
    if [(line.before, line.after) for line in logged[1:]] != wanted:
        raise RuntimeError(f"the log should tell of the changes {wanted}, but tells of {logged[1:]}")
    num_seen = sum(line.act not in (Act.START, Act.PAUSE) for line in decided)
    if len(found) != num_seen:
        raise RuntimeError(f"the steps should show {num_seen} changes, but show {len(found)}")

    changes: dict[str, list[Change]] = {}
    handed_over_s = 0.0
    for line, in_log in zip(decided[1:], logged[1:], strict=True):
        if line.act is Act.PAUSE:
            handed_over_s = in_log.pause_s
            continue
        transition = found.pop(0)
        resumed = line.act is Act.RESUME
        if transition.first.node_id not in line.allocation:
            raise RuntimeError(f"{line} was decided, but {transition.first} came of it")
        name = "1→0→1" if resumed else line.act.value
        logged_s = in_log.pause_s + (handed_over_s if resumed else 0.0)
        changes.setdefault(name, []).append(_change(line, transition, logged_s))
    return Ours(changes=changes, step_s=_step_times(generations))


def _change(line: Scripted, transition: Transition, logged_s: float) -> Change:
    share = None
    if line.act.starts_replicas:
        before = steps_per_s(transition.old, line.decided_s - STEADY_S, line.decided_s)
        meanwhile = steps_per_s(transition.old, line.decided_s, transition.last.done_s)
        share = meanwhile / before
    return Change(
        pause_s=transition.pause_s,
        extra_s=transition.extra_s,
        logged_s=logged_s,
        redone=transition.redone,
        left_out=transition.left_out,
        start_s=transition.first.handed_s - line.decided_s,
        share=share,
    )


def _step_times(generations: Sequence[Sequence[Step]]) -> dict[int, float]:
    times: dict[int, list[float]] = {}
    for steps in generations:
        times.setdefault(steps[0].num_replicas, []).append(median_step_s(steps))
    return {num_replicas: statistics.median(found) for num_replicas, found in sorted(times.items())}
