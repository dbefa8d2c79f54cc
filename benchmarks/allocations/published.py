"""One round of cluster scheduling each, as published, and the optimal policy's answers to them.

The policy maximises what the published one does (the sum over jobs of speedup × dominant share × number of nodes, × 0.9
for a job whose allocation changes) by weights and a cost of moving. Answers are scored by the instances' own script.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy import Allocation, Decision, Job, Node, OptimalPolicy

__all__ = ["Answer", "Collection"]

NUM_BATCH_SIZES = 50
PENALTY = 0.1
EPS = 1e-8
UNFINISHED_CPU_S = 610.0
"""Of one call of the genetic algorithm on 500 jobs and 128 nodes, which did not finish: as its folder extrapolates."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the policy makes of one instance."""

    name: str
    num_jobs: int
    num_nodes: int
    cpu_s: float
    """Of one call, the making of the tables included; median."""
    tables_s: float
    """Of the making of the tables; median."""
    peer_cpu_s: float
    """Of one call of the genetic algorithm."""
    gap: float | None
    violations: int
    scaled_first: float
    """After one call."""
    scaled_last: float
    """After three, each from its predecessor's answer."""
    peer_first: float | None
    """The best of all recorded searches after one call; None if none is recorded."""
    peer_last: float | None
    peer: str
    """The search with the best last value."""
    moved: int
    """Running jobs whose allocation changed."""
    for_nothing: int
    """Those of them that could have stayed at no loss, everybody else being where the decision puts him."""
    changed_later: int
    """Jobs that the second and third call changed."""
    objective_error: float
    """Between the policy's own objective and the script's, relative."""
    table_error: float
    """Between the tables and the script's speedups, relative; the largest."""


class Collection:
    """A folder of instances. Raises FileNotFoundError if something is missing."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted((folder / "instances").glob("*.json"), key=_size)
        if not self._files:
            raise FileNotFoundError(f"{folder / 'instances'} has no instances (*.json)")
        self._recorded: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "recorded.json").read_text())
        self._script = _import_file(folder / "evaluate.py")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Any:
        return iter(self._files)

    def answer(self, file: Path, count: int) -> Answer:
        """Asks the policy, `count` times for the time it takes."""
        name, instance = file.stem, json.loads(file.read_text())
        policy, current = OptimalPolicy(fairness=0), _counted(instance["prev"])
        nodes = [Node(node_id=node["key"], resources=node["resources"]) for node in instance["nodes"]]
        cpu_s, tables_s = [], []
        for _ in range(count):
            started_s = time.process_time()
            jobs = make_jobs(instance)
            made_s = time.process_time()
            decision = policy.allocate(nodes, jobs, current)
            cpu_s.append(time.process_time() - started_s)
            tables_s.append(made_s - started_s)
        score = self._score(instance, decision, instance["prev"])
        previous, last, changed_later = decision, decision, 0
        for _ in range(2):
            previous, last = last, policy.allocate(nodes, jobs, last.allocations)
            changed_later += _changes(previous.allocations, last.allocations)
        recorded = self._recorded.get(name, {})
        genetic = recorded.get("compiled") or recorded.get("fixed") or {"cpu_s_median": UNFINISHED_CPU_S}
        peer = max(recorded, key=lambda search: recorded[search]["scaled_last"], default="")
        return Answer(
            name=name,
            num_jobs=len(jobs),
            num_nodes=len(nodes),
            cpu_s=statistics.median(cpu_s),
            tables_s=statistics.median(tables_s),
            peer_cpu_s=genetic["cpu_s_median"],
            gap=decision.gap,
            violations=len(score["violations"]),
            scaled_first=score["scaled"],
            scaled_last=self._score(instance, last, _listed(previous.allocations))["scaled"],
            peer_first=max((search["scaled_first"] for search in recorded.values()), default=None),
            peer_last=recorded[peer]["scaled_last"] if peer else None,
            peer=peer,
            moved=score["restarts"],
            for_nothing=self._moved_for_nothing(instance, decision, score["scaled"]),
            changed_later=changed_later,
            objective_error=abs(decision.objective / score["scaled"] - 1) if score["scaled"] else decision.objective,
            table_error=self._table_error(instance, jobs),
        )

    def _score(self, instance: Any, decision: Decision, previous: Mapping[str, Sequence[str]]) -> Any:
        return self._script.evaluate(instance, _listed(decision.allocations), previous, PENALTY)

    def _moved_for_nothing(self, instance: Any, decision: Decision, scaled: float) -> int:
        """Jobs that could be put back, each alone, where they were without loss."""
        allocation, found = _listed(decision.allocations), 0
        for job_id, before in instance["prev"].items():
            if not before or Counter(before) == Counter(allocation.get(job_id, [])):
                continue
            put_back = {**allocation, job_id: before}
            if not self._script.violations(instance, put_back, instance["prev"]):
                found += self._script.evaluate(instance, put_back, instance["prev"], PENALTY)["scaled"] >= scaled
        return found

    def _table_error(self, instance: Any, jobs: Sequence[Job], most_jobs: int = 32) -> float:
        """Over up to so many jobs, all numbers of replicas, on one node and on two."""
        speedups, largest = self._script.Speedups(instance), 0.0
        for job in jobs[:: max(1, len(jobs) // most_jobs)]:
            for num_nodes in (1, 2):
                for num_replicas in range(num_nodes, job.speedup.shape[1]):
                    places = ["first"] * (num_replicas - num_nodes + 1) + ["second"] * (num_nodes - 1)
                    expected = speedups(job.job_id, places)
                    largest = max(largest, abs(job.speedup[num_nodes, num_replicas] / expected - 1))
        return largest


def make_jobs(instance: Any) -> list[Job]:
    """The jobs with their tables; jobs with the same parameters share one."""
    nodes = [node["resources"] for node in instance["nodes"]]
    doubled = [*nodes, *[instance["node_template"]["resources"]] * len(nodes)]
    names = sorted(set().union(*(job["resources"] for job in instance["jobs"])))
    total = {name: sum(node.get(name, 0) for node in doubled) for name in names}
    tables: dict[str, NDArray[np.float64]] = {}
    jobs = []
    for job in instance["jobs"]:
        needed = job["resources"]
        room = sum(min(node.get(name, 0) // amount for name, amount in needed.items() if amount) for node in nodes)
        parameters = [job[key] for key in ("perf_params", "grad_params", "init_batch_size", "max_batch_size")]
        key = repr([*parameters, job["atomic_bsz_range"], job["accumulation"], room, job["max_replicas"]])
        if key not in tables:
            tables[key] = speedup_table(job, max(1, min(job["max_replicas"], room)))
        share = max(needed.get(name, 0) / total[name] for name in names)
        jobs.append(
            Job(
                job_id=job["key"],
                resources=needed,
                min_replicas=max(job["min_replicas"], 1),
                max_replicas=job["max_replicas"],
                speedup=tables[key],
                weight=share * len(doubled),
                move_cost=PENALTY,
                pinned=not job["preemptible"],
                arrival=job["creation"],
            )
        )
    return jobs


def speedup_table(job: Any, max_replicas: int) -> NDArray[np.float64]:
    """Goodput by (N, K) relative to (1, 1), the best of 50 batch sizes, shape (3, max_replicas + 1): with one node, and
    with any larger number."""
    alpha_c, beta_c, alpha_n, beta_n, alpha_r, beta_r, gamma = job["perf_params"]
    grad_sqr, grad_var = job["grad_params"]
    initial, (low, high) = job["init_batch_size"], job["atomic_bsz_range"]
    replicas = np.arange(1, max_replicas + 1)[:, None]  # (K, 1)
    smallest = np.maximum(initial, low * replicas[:, 0])
    local = np.geomspace(smallest, job["max_batch_size"], NUM_BATCH_SIZES, axis=1) / replicas  # (K, 50)
    steps = np.zeros(local.shape, dtype=np.int64)
    if job["accumulation"]:
        steps = np.ceil(local / high - EPS).astype(np.int64) - 1
        steps[0] = np.where(local[0] > initial + EPS, np.maximum(steps[0], 1), steps[0])
        atomic = np.ceil(local / (steps + 1) - EPS)
    else:
        atomic = np.ceil(local - EPS)
        atomic[0] = initial
    atomic = atomic.clip(low, high)
    total = replicas * atomic * (steps + 1)
    scale = total / initial
    efficiency = (grad_var + grad_sqr) / (grad_var / scale + grad_sqr) / scale
    grad_s = alpha_c + beta_c * atomic
    more = np.maximum(replicas - 2, EPS)
    alone, together, across = EPS + EPS * EPS, alpha_r + beta_r * more, alpha_n + beta_n * more
    table = np.zeros((3, max_replicas + 1))
    for num_nodes, sync_s in ((1, np.where(replicas > 1, together, alone)), (2, across)):
        step_s = steps * grad_s + (grad_s**gamma + sync_s**gamma) ** (1 / gamma)
        goodput = np.where(total >= initial, total / step_s * efficiency, 0.0)
        table[num_nodes, num_nodes:] = goodput.max(axis=1)[num_nodes - 1 :]
    table /= table[1, 1]
    return table


def _counted(allocation: Mapping[str, Sequence[str]]) -> dict[str, Allocation]:
    return {job_id: dict(Counter(places)) for job_id, places in allocation.items() if places}


def _listed(allocations: Mapping[str, Allocation]) -> dict[str, list[str]]:
    return {
        job_id: [node for node, count in allocation.items() for _ in range(count)]
        for job_id, allocation in allocations.items()
    }


def _changes(before: Mapping[str, Allocation], after: Mapping[str, Allocation]) -> int:
    return sum(dict(before[job_id]) != dict(after[job_id]) for job_id in after)


def _size(file: Path) -> tuple[int, int, str]:
    jobs, nodes, _ = (int(part) for part in file.stem.split("-")[1].split("x"))
    return jobs, nodes, file.stem


def _import_file(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.exists():
        raise FileNotFoundError(f"{file} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
