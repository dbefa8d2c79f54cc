"""One trial under Tune on a cluster whose machines go: the experiment runs in a thread, and the test is what happens to it.

The trial trains `tests.faults.scripted`. Every optimizer step of every replica is written to a file, with its time: a test
sees what training itself has noticed of a fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.tune import Stopper
from ray.tune.experiment import Trial

from adaptdl.policy import Allocation, Decision, Job, Node, Policy
from adaptdl.runtime import ElasticConfig, JobStatus
from adaptdl.tune import AdaptDLScheduler
from tests.faults.experiments import Watches
from tests.faults.scripted import training_function
from tests.processes import is_alive

__all__ = ["DEADLINE_S", "Experiment", "Machines", "Spread", "Step", "undisturbed"]

DEADLINE_S = 60.0
"""Of a wait. Nothing takes as long, but starting a replica takes some 10 s if much else goes on."""

PACE_S = 0.25
"""Pause after each step until the test lets the training hurry to its end."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, as one replica made it."""

    number: int
    """From 1; of the trial."""
    rank: int
    num_replicas: int
    node_id: str
    pid: int
    made_at: float
    """Monotonic seconds; all processes of one computer have the same clock."""


def paced_function() -> Callable[[dict[str, Any]], None]:
    """The scripted function, with a log of its steps, and slow until the file `hurry` is there.

    Config: epochs; flags (a directory, for both files); the rest is the scripted function's.
    """
    function, pace_s = training_function(), PACE_S

    def train(config: dict[str, Any]) -> None:
        import json
        import os
        import time
        from pathlib import Path

        import ray
        import torch
        from ray import tune
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from adaptdl.torch.ambient import current_session

        session, flags = current_session(), Path(config["flags"])
        node_id = ray.get_runtime_context().get_node_id()

        def made(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if all(model._optimizer is not optimizer for model in session.models()):
                return  # of the warm-up
            step = {
                "number": session.num_steps + 1,
                "rank": session.rank,
                "num_replicas": session.num_replicas,
                "node_id": node_id,
                "pid": os.getpid(),
                "made_at": time.monotonic(),
            }
            with open(flags / "steps", "a") as log:  # a line is one write: those of several replicas do not mix
                log.write(json.dumps(step) + "\n")
            if not (flags / "hurry").exists():
                time.sleep(pace_s)

        hook = register_optimizer_step_post_hook(made)
        try:
            function({**config, "report": tune.report})
        finally:  # the process may be used again
            hook.remove()

    return train


def undisturbed(epochs: int) -> list[dict[str, Any]]:
    """What one replica reports, in this process and without Ray."""
    import torch

    from adaptdl.torch.ambient import close_local_session

    results: list[dict[str, Any]] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training_function()({"epochs": epochs, "report": results.append})
    finally:
        close_local_session()
        torch.set_num_threads(num_threads)
    return results


class Spread:
    """A policy: one replica of each job on each of `num_nodes` nodes, or on as many as there are; those that it has first."""

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        allocations: dict[str, Allocation] = {}
        for job in jobs:
            usable = [
                node.node_id
                for node in nodes
                if not node.draining
                and all(node.resources.get(name, 0.0) >= amount for name, amount in job.resources.items())
            ]
            here = current.get(job.job_id, {})
            chosen = sorted(usable, key=lambda node_id: (node_id not in here, node_id))[: self._num_nodes]
            allocations[job.job_id] = dict.fromkeys(sorted(chosen), 1)
        return Decision(allocations=allocations, objective=0.0, gap=None, message="spread")


class Machines:
    """Nodes of two CPUs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}
        self._draining: set[str] = set()

    def add(self) -> str:
        node = self._cluster.add_node(num_cpus=2)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def provide(self, number: int) -> list[str]:
        """`number` nodes, and no other one that Ray would use."""
        for node_id in self._draining & set(self._nodes):
            self.lose(node_id)
        for _ in range(number - len(self._nodes)):
            self.add()
        deadline = time.monotonic() + DEADLINE_S
        there = {*self._nodes, *self._draining, self._cluster.head_node.node_id}
        while ghosts := self.seem_alive() - there:
            assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for Ray to notice that {ghosts} are gone"
            time.sleep(0.1)
        return list(self._nodes)

    def drain(self, node_id: str, deadline_s: float) -> None:
        """Gives notice that the node will go in `deadline_s`, as providers of spot instances do."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        accepted, message = GcsClient(address=self._cluster.address).drain_node(
            node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "a test",
            int((time.time() + deadline_s) * 1000),
        )
        assert accepted, message
        self._draining.add(node_id)

    def lose(self, node_id: str) -> None:
        """The node is gone at once, with all its processes: a raylet that is asked to end takes its time."""
        node = self._nodes.pop(node_id)
        for info in node.all_processes["raylet"]:
            for pid in [info.process.pid, *_children(info.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @staticmethod
    def seem_alive() -> set[str]:
        """Those that Ray takes for alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _children(pid: int) -> list[int]:
    """Processes started by this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


class _StopsWhenTold(Stopper):
    told = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.told

    def stop_all(self) -> bool:
        return self.told


class _Watches(Watches):
    """Knows the trial and its errors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.trial: Trial | None = None
        self.num_errors = 0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.trial = trial

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.num_errors += 1

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.num_errors += 1


class Experiment:
    """A trial that runs while the test goes on. As a context it ends the experiment, whatever has happened.

    Args:
        flags: an empty directory.
        epochs: of 8 steps each.
        policy: divides the cluster; AdaptDL's own if None.
        elastic: of the trial.
    """

    def __init__(self, flags: Path, *, epochs: int, policy: Policy | None = None, elastic: ElasticConfig) -> None:
        self._flags = flags
        self._epochs = epochs
        self._scheduler = AdaptDLScheduler(policy=policy, interval_s=1.0, elastic=elastic)
        self._stopper = _StopsWhenTold()
        self._watches = _Watches()
        self._thread = threading.Thread(target=self._run, name="experiment", daemon=True)
        self._failure: BaseException | None = None
        self.status: JobStatus | None = None
        """What the coordinator has said last."""

    def __enter__(self) -> Experiment:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopper.told = True
        self._thread.join(DEADLINE_S)
        if error is None:
            assert not self._thread.is_alive(), f"waited {DEADLINE_S:g} s for the experiment to stop"

    def _run(self) -> None:
        try:
            tune.run(
                paced_function(),
                name="experiment",
                config={"epochs": self._epochs, "flags": str(self._flags)},
                scheduler=self._scheduler,
                stop=self._stopper,
                callbacks=[self._watches],
                storage_path=str(self._flags / "storage"),
                raise_on_failed_trial=False,
                verbose=0,
            )
        except BaseException as error:  # noqa: BLE001 (the test raises it)
            self._failure = error

    # -- what has happened so far -------------------------------------------------------------------------------------

    @property
    def results(self) -> Sequence[Mapping[str, Any]]:
        """What Tune has received."""
        return self._watches.results

    @property
    def num_errors(self) -> int:
        """Of which Tune was told."""
        return self._watches.num_errors

    @property
    def steps(self) -> list[Step]:
        """Those of all replicas, in the order of time."""
        path = self._flags / "steps"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        steps = [Step(**json.loads(line)) for line in lines if line.endswith("\n")]
        return sorted(steps, key=lambda step: step.made_at)

    @property
    def leading_steps(self) -> list[Step]:
        """Those of rank 0, whoever that was."""
        return [step for step in self.steps if step.rank == 0]

    @property
    def reasons(self) -> list[str]:
        """Of the reallocations."""
        return [] if self.status is None else [change.reason for change in self.status.reallocations]

    def living_replicas(self) -> set[int]:
        """Processes that have trained and are still there."""
        return {pid for pid in {step.pid for step in self.steps} if is_alive(pid)}

    # -- waiting ------------------------------------------------------------------------------------------------------

    def look(self) -> JobStatus | None:
        """Asks the coordinator; None if there is none that answers."""
        trial = self._watches.trial
        coordinator = None if trial is None else trial.temporary_state.ray_actor
        if coordinator is None:
            return None
        try:
            self.status = ray.get(coordinator.status.remote(), timeout=5)
        except RayError:
            return None
        return self.status

    def wait_until(self, condition: Callable[[JobStatus], Any], what: str, timeout_s: float = DEADLINE_S) -> JobStatus:
        """Looks at the trial until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.look()
            if status is not None and condition(status):
                return status
            assert self._thread.is_alive(), f"the experiment ended before {what}: {self._failure!r}, {self.status}"
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}: {self.status}"
            time.sleep(0.05)

    def wait_for_training(self, num_replicas: int, *, without: str = "", num_steps: int = 6) -> JobStatus:
        """Until so many steps were made from now on by so many replicas, none of which is on the node `without`."""
        began = time.monotonic()

        def trains(status: JobStatus) -> bool:
            steps = [step for step in self.leading_steps if step.made_at > began and step.num_replicas == num_replicas]
            return len(steps) >= num_steps and without not in status.allocation

        return self.wait_until(trains, f"{num_steps} steps of {num_replicas} replicas off {without[:8] or 'nothing'}")

    def finish(self, timeout_s: float = DEADLINE_S) -> Trial:
        """Lets the trial run to its end."""
        (self._flags / "hurry").touch()
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive():
            self.look()
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for the end of the experiment: {self.status}"
            self._thread.join(0.2)
        if self._failure is not None:
            raise self._failure
        assert self._watches.trial is not None
        return self._watches.trial
