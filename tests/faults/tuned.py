"""One trial under Tune on a cluster whose nodes go: the experiment runs in a thread, and the test is what happens to it.

What the trial trains is `tests.faults.scripted`. Every optimizer step of every replica is written to a file, with its time, so
that a test sees what training itself has noticed of a fault.
"""

from __future__ import annotations

import json
import os
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
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from adaptdl.policy import Allocation, Decision, Job, Node, Policy
from adaptdl.runtime import ElasticConfig, JobStatus
from adaptdl.tune import AdaptDLScheduler
from tests.faults.scripted import training_function

__all__ = ["Experiment", "Nodes", "Spread", "Step", "is_loss", "undisturbed"]

PACE_S = 0.05
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
    at: float
    """Monotonic seconds, of the machine."""


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
        from ray import tune
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from adaptdl.torch.ambient import current_session

        session, flags = current_session(), Path(config["flags"])
        node_id = ray.get_runtime_context().get_node_id()
        pid = os.getpid()

        def made(*_: Any) -> None:
            line = {
                "number": session.num_steps + 1,
                "rank": session.rank,
                "num_replicas": session.num_replicas,
                "node_id": node_id,
                "pid": pid,
                "at": time.monotonic(),
            }
            with open(flags / "steps", "a") as log:  # one write of one line: those of several replicas do not mix
                log.write(json.dumps(line) + "\n")
            if not (flags / "hurry").exists():
                time.sleep(pace_s)

        hook = register_optimizer_step_post_hook(made)
        try:
            function({**config, "report": tune.report})
        finally:  # the process may be used again
            hook.remove()

    return train


def undisturbed(epochs: int) -> list[dict[str, Any]]:
    """What one replica reports, in this process, without Ray."""
    from adaptdl.torch.ambient import close_local_session

    results: list[dict[str, Any]] = []
    try:
        training_function()({"epochs": epochs, "report": results.append})
    finally:
        close_local_session()
    return results


class Spread:
    """A policy that puts one replica of each job on each of `num_nodes` nodes, as far as there are so many.

    Jobs stay where they are as long as they can.
    """

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        usable = sorted(node.node_id for node in nodes if not node.draining and node.resources.get("CPU", 0.0) >= 1)
        allocations: dict[str, Allocation] = {}
        for job in jobs:
            here = current.get(job.job_id, {})
            chosen = sorted(usable, key=lambda node_id: node_id not in here)[: self._num_nodes]
            allocations[job.job_id] = {node_id: 1 for node_id in sorted(chosen)}
        return Decision(allocations=allocations, objective=0.0, gap=None, message="spread")


class Nodes:
    """The nodes of a cluster with two CPUs each. They have no memory for coordinators: those stay on the head."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}

    def add(self) -> str:
        node = self._cluster.add_node(num_cpus=2, memory=0)
        self._nodes[node.node_id] = node
        return str(node.node_id)

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

    def kill(self, node_id: str) -> None:
        """The node is gone, without notice."""
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)

    @staticmethod
    def seem_alive() -> set[str]:
        """Those that Ray takes for alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class _StopsWhenTold(Stopper):
    def __init__(self) -> None:
        self.told = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.told.is_set()

    def stop_all(self) -> bool:
        return self.told.is_set()


class Experiment(Callback):
    """A trial that runs while the test goes on. As a context it ends the experiment, whatever has happened.

    Args:
        flags: an empty directory.
        epochs: of 8 steps each.
        policy: divides the cluster; AdaptDL's own if None.
        elastic: of the trial.
    """

    def __init__(
        self, flags: Path, *, epochs: int, policy: Policy | None = None, elastic: ElasticConfig | None = None
    ) -> None:
        self._flags = flags
        self._stopper = _StopsWhenTold()
        self._scheduler = AdaptDLScheduler(policy=policy, interval_s=1.0, elastic=elastic)
        self._epochs = epochs
        self._thread = threading.Thread(target=self._run, name="experiment", daemon=True)
        self._failure: BaseException | None = None
        self._trial: Trial | None = None
        self.results: list[dict[str, Any]] = []
        """What Tune has received."""
        self.num_errors = 0
        """Of which Tune was told."""
        self.status: JobStatus | None = None
        """The last that the coordinator has said."""

    def __enter__(self) -> Experiment:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopper.told.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), "waited 20 s for the experiment to stop"

    def _run(self) -> None:
        try:
            tune.run(
                paced_function(),
                name="experiment",
                config={"epochs": self._epochs, "flags": str(self._flags)},
                scheduler=self._scheduler,
                stop=self._stopper,
                callbacks=[self],
                storage_path=str(self._flags / "storage"),
                raise_on_failed_trial=False,
                verbose=0,
            )
        except BaseException as error:  # noqa: BLE001 (the test is told)
            self._failure = error

    # -- from Tune ------------------------------------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._trial = trial

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.results.append(dict(result))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.num_errors += 1

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.num_errors += 1

    # -- for the test ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[Step]:
        """All that was made so far, in the order of time."""
        path = self._flags / "steps"
        if not path.exists():
            return []
        whole = path.read_text().rpartition("\n")[0]
        return sorted((Step(**json.loads(line)) for line in whole.splitlines()), key=lambda step: step.at)

    @property
    def first_steps(self) -> list[Step]:
        """Those of rank 0, whoever that was."""
        return [step for step in self.steps if step.rank == 0]

    def look(self) -> JobStatus | None:
        """Asks the coordinator; None if there is none, or if it does not answer."""
        coordinator = None if self._trial is None else self._trial.temporary_state.ray_actor
        if coordinator is None:
            return None
        try:
            self.status = ray.get(coordinator.status.remote(), timeout=5)
        except RayError:
            return None
        return self.status

    def wait_until(self, condition: Callable[[JobStatus], Any], what: str, timeout_s: float = 30.0) -> JobStatus:
        """Looks at the trial until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.look()
            if status is not None and condition(status):
                return status
            assert self._thread.is_alive(), f"the experiment ended before {what}: {self._failure!r}, {self.status}"
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}: {self.status}"
            time.sleep(0.05)

    def wait_for_training(self, allocation: Callable[[Mapping[str, int]], bool], what: str, timeout_s: float = 30.0) -> JobStatus:
        """Until the trial has made ten steps with replicas as `allocation` wants them."""
        since: float | None = None

        def trains(status: JobStatus) -> bool:
            nonlocal since
            if not allocation(status.allocation):
                since = None
                return False
            since = since or time.monotonic()
            return sum(step.at > since for step in self.first_steps) >= 10

        return self.wait_until(trains, what, timeout_s)

    def finish(self, timeout_s: float = 30.0) -> Trial:
        """Lets the trial run to its end."""
        (self._flags / "hurry").touch()
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive():
            self.look()
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for the end of the experiment: {self.status}"
            self._thread.join(0.2)
        if self._failure is not None:
            raise self._failure
        assert self._trial is not None
        return self._trial

    def pids_alive(self) -> set[int]:
        """Processes of replicas that are still there."""
        return {pid for pid in {step.pid for step in self.steps} if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def is_loss(reason: str) -> bool:
    """Whether a reallocation was made since something was lost; not if the allocator saw it coming."""
    return reason.startswith(("lost ", "a group of "))
