"""A small experiment on a real Ray and its simulation come to the same.

Everything is real but the computing: the training function sleeps for as long as a model of the step time says, and the
library times these steps, fits them, reports them, and moves replicas that are real processes. The simulation has the
same model, policy and interval, the arrivals of the real run, and as costs the means of what starts and reallocations
took there.

Three trials on two nodes of two CPUs. A and B can use two replicas each (their batches have two samples), C can use four:
A grows to two, B comes and grows to two, C comes and takes one of B's, which is the one that is worth least, B ends and C
grows to two, A ends and C grows to four. Each change waits for what must have happened before, not for a time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams
from adaptdl.policy import Allocation, Decision, Job, Node, OptimalPolicy, num_replicas
from adaptdl.runtime import ElasticConfig
from adaptdl.sim import (
    Costs,
    JobSpec,
    ModelApplication,
    Reallocation,
    Simulation,
    SimulationResult,
    cluster_nodes,
)
from adaptdl.tune import AdaptDLScheduler, DistributedTrainableCreator

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.quiet]

NUM_NODES, CPUS_PER_NODE = 2, 2
INTERVAL_S = 5.0
STEPS_PER_EPOCH = 20
RESULTS_BEFORE_THE_NEXT = 2
"""A trial comes when the one before has reported so many results on two replicas."""
SIMULTANEOUS_S = 2.0
"""Changes no further apart may come in any order."""
TOLERANCE = 0.1
LONGEST_S = 180.0
"""For the real run; about 90 s are the rule."""
ELASTIC = ElasticConfig(idle_process_s=0.0, gather_s=60.0)
"""As it is simulated: each newcomer is a new process, so that all take about as long to start, and those that start
together join together."""


def make_perf_params(**times_s: float) -> PerfParams:
    return PerfParams(beta_n=0.0, beta_r=0.0, gamma=1.5, **times_s)


def application(name: str, batch_size: int, num_epochs: int, perf_params: PerfParams) -> ModelApplication:
    """A training whose batch size is fixed, so that it does not matter how noisy its gradients are."""
    noiseless = GradParams(grad_sqr=1.0, grad_var=0.0)
    return ModelApplication(
        name=name,
        perf_params=perf_params,
        bounds=BatchSizeBounds(init_batch_size=batch_size, max_batch_size=batch_size),
        num_epochs=num_epochs,
        epoch_progress=STEPS_PER_EPOCH,
        first_grad_params=noiseless,
        last_grad_params=noiseless,
    )


# Two replicas are 1.9 times as fast as one for A, 1.2 for B and 2 for C; four 3.8 for C. What nobody knows before it was
# tried leaves no doubt either: the communication of C across nodes, which the fit takes for 4 times as slow as on one.
APPLICATIONS = [
    application("A", 2, 28, make_perf_params(alpha_c=0.01, beta_c=0.095, alpha_n=0.005, alpha_r=0.005)),
    application("B", 2, 8, make_perf_params(alpha_c=0.08, beta_c=0.06, alpha_n=0.08, alpha_r=0.06)),
    application("C", 4, 9, make_perf_params(alpha_c=0.0, beta_c=0.1, alpha_n=0.02, alpha_r=0.005)),
]


# -- the real run ---------------------------------------------------------------------------------------------------


def emulated_training() -> Callable[[dict[str, Any]], None]:
    """Its steps take the time that the parameters in ``config["perf_params"]`` say; rank 0 of each generation leaves a
    file in ``config["directory"]`` when it begins: the trial's name, the replicas, and when that was, monotonic seconds.

    Rank 0 has its gradients after T_grad, and the others theirs when the step should end: so the time that rank 0 waits
    for them is the communication that computing does not hide. What the steps really cost is taken off their sleep.
    """

    def train(config: dict[str, Any]) -> None:
        import time
        from pathlib import Path

        import torch
        from ray import tune

        import adaptdl.torch as adl
        from adaptdl.goodput import PerfParams, grad_time_s, step_time_s

        perf_params, batch_size = PerfParams(**config["perf_params"]), config["batch_size"]
        session = adl.current_session()
        data = torch.utils.data.TensorDataset(torch.ones(batch_size * config["steps_per_epoch"], 1))
        loader = adl.AdaptiveDataLoader(data, batch_size=batch_size)
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        model = adl.AdaptiveDataParallel(network, optimizer)
        generation, due = -1, 0.0
        for epoch in adl.remaining_epochs_until(config["num_epochs"]):
            for (x,) in loader:
                now = time.monotonic()
                if session.generation != generation:
                    generation, due = session.generation, now
                    if session.rank == 0:
                        path = Path(config["directory"], f"{config['name']}-{generation:03}")
                        path.write_text(f"{config['name']} {session.num_replicas} {now}")
                largest_share = -(-batch_size // session.num_replicas)
                grad_s = float(grad_time_s(perf_params, largest_share))
                step_s = float(step_time_s(perf_params, session.num_nodes, session.num_replicas, largest_share))
                began = due if now - due < step_s else now
                due = began + step_s
                ready = began + grad_s if session.rank == 0 else due
                time.sleep(max(0.0, ready - time.monotonic()))
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
            tune.report({"epoch": epoch})

    return train


class OneByOne(Searcher):
    """Trials of the applications, each when the one before has trained on two replicas for a while."""

    def __init__(self, directory: Path) -> None:
        super().__init__(metric="epoch", mode="max")
        self._directory = directory
        self._left = list(APPLICATIONS)
        self._newest, self._results = "", RESULTS_BEFORE_THE_NEXT

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._left:
            return Searcher.FINISHED
        if self._results < RESULTS_BEFORE_THE_NEXT:
            return None
        self._newest, self._results = trial_id, 0
        next_one = self._left.pop(0)
        return {
            "name": next_one.name,
            "batch_size": next_one.init_batch_size,
            "num_epochs": next_one.num_epochs,
            "steps_per_epoch": STEPS_PER_EPOCH,
            "perf_params": asdict(next_one.perf_params),
            "directory": str(self._directory),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id == self._newest and result["adaptdl/num_replicas"] == 2:
            self._results += 1

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id == self._newest:  # it failed: do not wait for it
            self._results = RESULTS_BEFORE_THE_NEXT

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class Clocked(FIFOScheduler):
    """Notes when trials come and end, monotonic seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        """Trial id → name."""
        self.submitted_s: dict[str, float] = {}
        self.completed_s: dict[str, float] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        name = self.names[trial.trial_id] = trial.config["name"]
        self.submitted_s[name] = time.monotonic()

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.completed_s[self.names[trial.trial_id]] = time.monotonic()
        super().on_trial_complete(tune_controller, trial, result)


class Noted:
    """A policy that keeps what it has decided."""

    def __init__(self) -> None:
        self._policy = OptimalPolicy()
        self.changes: list[Reallocation] = []
        """At monotonic seconds."""

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        decision = self._policy.allocate(nodes, jobs, current)
        now_s = time.monotonic()
        for job in jobs:
            before, after = current.get(job.job_id, {}), decision.allocations[job.job_id]
            if dict(before) != dict(after):
                self.changes.append(Reallocation(time_s=now_s, job_id=job.job_id, before=before, after=after))
        return decision


@dataclass(kw_only=True)
class Run:
    """What has happened, in seconds from the first arrival."""

    submitted_s: dict[str, float]
    completed_s: dict[str, float]
    changes: list[Reallocation]
    """As they were decided."""
    joined: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Per trial, each generation's replicas and when it began to train."""
    pause_s: float = 0.0
    """Of a reallocation, on average."""

    @property
    def start_s(self) -> float:
        """From a trial's arrival to its first step, on average."""
        return statistics.mean(self.joined[name][0][1] - self.submitted_s[name] for name in self.joined)

    @property
    def growth_s(self) -> float:
        """From the decision to add replicas to the pause in which they join, on average."""
        took_s = []
        for change in self.changes:
            wanted = num_replicas(change.after)
            joined_s = [
                at_s for number, at_s in self.joined[change.job_id] if number == wanted and at_s > change.time_s
            ]
            if 0 < num_replicas(change.before) < wanted and joined_s:
                took_s.append(joined_s[0] - change.time_s)
        return statistics.mean(took_s) - self.pause_s

    @property
    def profile_s(self) -> float:
        """From the first step of A and B, for which there is room, to the decision that they grow; on average."""
        return statistics.mean(
            next(change.time_s for change in self.changes if change.job_id == name and num_replicas(change.after) == 2)
            - self.joined[name][0][1]
            for name in ("A", "B")
        )


@pytest.fixture
def simulated_nodes() -> Iterator[None]:
    """This process is connected to a cluster of a head without CPUs and the nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(NUM_NODES):
            cluster.add_node(num_cpus=CPUS_PER_NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_for_real(tmp_path: Path) -> Run:
    (tmp_path / "generations").mkdir()
    clocked, noted = Clocked(), Noted()
    analysis = tune.run(
        DistributedTrainableCreator(emulated_training()),
        search_alg=OneByOne(tmp_path / "generations"),
        num_samples=len(APPLICATIONS),
        scheduler=AdaptDLScheduler(
            clocked,
            policy=noted,
            interval_s=INTERVAL_S,
            elastic=ELASTIC,
            kind_of=lambda trial: str(trial.trial_id),  # each is an application of its own
        ),
        storage_path=str(tmp_path / "results"),
        time_budget_s=LONGEST_S,
        verbose=1,
    )
    assert len(analysis.trials) == len(APPLICATIONS), f"{len(analysis.trials)} trials came in {LONGEST_S} s"
    for trial, wanted in zip(analysis.trials, APPLICATIONS, strict=True):
        done = trial.last_result.get("epoch", -1) + 1
        assert done == wanted.num_epochs, f"{wanted.name} made {done} of {wanted.num_epochs} epochs in {LONGEST_S} s"
    return _as_run(clocked, noted, tmp_path / "generations", [trial.last_result for trial in analysis.trials])


def _as_run(clocked: Clocked, noted: Noted, generations: Path, last: Sequence[Mapping[str, Any]]) -> Run:
    first_s = min(clocked.submitted_s.values())
    run = Run(
        submitted_s={name: at_s - first_s for name, at_s in clocked.submitted_s.items()},
        completed_s={name: at_s - first_s for name, at_s in clocked.completed_s.items()},
        changes=[
            Reallocation(
                time_s=change.time_s - first_s,
                job_id=clocked.names[change.job_id],
                before=change.before,
                after=change.after,
            )
            for change in noted.changes
        ],
        pause_s=sum(result["adaptdl/pause_s"] for result in last)
        / sum(result["adaptdl/num_restarts"] for result in last),
    )
    for path in sorted(generations.iterdir()):
        name, replicas, at_s = path.read_text().split()
        run.joined.setdefault(name, []).append((int(replicas), float(at_s) - first_s))
    return run


# -- its simulation, and what is compared ---------------------------------------------------------------------------


def simulate(run: Run) -> SimulationResult:
    return Simulation(
        nodes=cluster_nodes(NUM_NODES, CPUS_PER_NODE),
        workload=[
            JobSpec(job_id=one.name, application=one, submitted_s=run.submitted_s[one.name]) for one in APPLICATIONS
        ],
        policy=OptimalPolicy(),
        interval_s=INTERVAL_S,
        costs=Costs(start_s=run.start_s, growth_s=run.growth_s, pause_s=run.pause_s),
        immediate=True,
        profile_s=run.profile_s,
        resolution_s=0.0,
    ).run()


def sizes(changes: Sequence[Reallocation]) -> dict[str, list[int]]:
    """Per trial, its numbers of replicas in order."""
    return {
        name: [num_replicas(change.after) for change in changes if change.job_id == name]
        for name in sorted({change.job_id for change in changes})
    }


def told(changes: Sequence[Reallocation]) -> str:
    return ", ".join(f"{change.job_id}→{num_replicas(change.after)} at {change.time_s:.1f} s" for change in changes)


def in_order(changes: Sequence[Reallocation], apart_s: float) -> set[tuple[str, str]]:
    """Pairs of changes of which the first was decided at least `apart_s` before the second."""
    steps: dict[str, int] = {}
    at_s: dict[str, float] = {}
    for change in changes:
        steps[change.job_id] = number = steps.get(change.job_id, 0) + 1
        at_s[f"{change.job_id}{number}: {num_replicas(change.after)}"] = change.time_s
    return {(one, other) for one, other in itertools.permutations(at_s, 2) if at_s[other] - at_s[one] > apart_s}


@pytest.mark.timeout(LONGEST_S + 60)
@pytest.mark.usefixtures("simulated_nodes")
def test_an_experiment_and_its_simulation_come_to_the_same(tmp_path: Path) -> None:
    run = run_for_real(tmp_path)
    print("real:", told(run.changes))
    grown = sizes(run.changes)
    assert (grown["A"][:2], grown["B"][:3], grown["C"]) == ([1, 2], [1, 2, 1], [1, 2, 4])

    simulated = simulate(run)
    print("simulated:", told(simulated.reallocations))
    measured = {"start_s": run.start_s, "growth_s": run.growth_s, "pause_s": run.pause_s, "profile_s": run.profile_s}
    print("measured:", {name: round(value, 2) for name, value in measured.items()})
    assert sizes(simulated.reallocations) == grown
    assert in_order(run.changes, SIMULTANEOUS_S) <= in_order(simulated.reallocations, 0.0)
    for job in simulated.jobs:
        really_s = run.completed_s[job.job_id] - run.submitted_s[job.job_id]
        print(f"{job.job_id}: {really_s:.1f} s, simulated {job.completion_time_s:.1f} s")
        assert job.completion_time_s == pytest.approx(really_s, rel=TOLERANCE)
