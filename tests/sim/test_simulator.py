"""Small clusters whose every second is worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from adaptdl.errors import AdaptDLError, UsageError
from adaptdl.policy import Allocation, Decision, Job, Node, OptimalPolicy, StaticPolicy
from adaptdl.sim import Costs, JobSpec, Outage, Simulation, SimulationResult, Stopper, cluster_nodes
from adaptdl.sim.job import SimulatedJob
from tests.sim.workloads import FREE, perfect, spec


def simulated(
    workload: Sequence[JobSpec], num_nodes: int = 1, num_gpus: int = 1, **changes: object
) -> SimulationResult:
    """Static policy, batch sizes as requested, asked at events only."""
    values: dict[str, object] = {
        "policy": StaticPolicy(),
        "adaptive": False,
        "immediate": True,
        "interval_s": 1000.0,
        "costs": Costs(**FREE),
        "resolution_s": 0.0,
        **changes,
    }
    return Simulation(nodes=cluster_nodes(num_nodes, num_gpus), workload=workload, **values).run()  # type: ignore[arg-type]


def ends(result: SimulationResult) -> dict[str, float]:
    return {job.job_id: pytest.approx(job.completed_s) for job in result.jobs}


# -- rounds, as in the published simulator ------------------------------------------------------------------------------

ROUNDS: dict[str, object] = {"immediate": False, "interval_s": 60.0, "costs": Costs(), "resolution_s": 1.0}


def test_a_job_is_first_looked_at_in_the_first_round_at_or_after_its_submission() -> None:
    result = simulated([spec("early", 60.0), spec("late", 61.0)], num_gpus=2, **ROUNDS)
    assert [change.time_s for change in result.reallocations] == [60.0, 120.0]
    assert ends(result) == {"early": 60 + 30 + 100, "late": 120 + 30 + 100}


def test_a_job_that_is_submitted_at_once_waits_for_the_first_round() -> None:
    assert ends(simulated([spec("only")], **ROUNDS)) == {"only": 60 + 30 + 100}


def test_a_complete_job_holds_its_replicas_to_the_end_of_the_round() -> None:
    result = simulated([spec("first"), spec("second")], **ROUNDS)
    assert ends(result) == {"first": 190, "second": 240 + 30 + 100}  # 190 lies in the round that ends at 240
    assert result.jobs[0].service_s == 190 - 60
    assert result.jobs[1].waited_s == 240 - 60


def test_a_delay_counts_down_only_while_there_are_replicas_and_starts_anew_with_new_ones() -> None:
    job = SimulatedJob(spec=spec("only"), adaptive=False)
    job.reallocate({"a": 1}, 30.0, 0.0)
    job.advance(10.0, 0.0)
    job.reallocate({}, 30.0, 10.0)
    job.advance(60.0, 10.0)
    assert (job.delay_s, job.waited_s, job.service_s, job.progress) == (20.0, 60.0, 10.0, 0.0)
    job.reallocate({"b": 1}, 30.0, 70.0)
    job.advance(31.0, 70.0)
    assert (job.delay_s, job.progress, job.num_restarts) == (0.0, pytest.approx(1.0), 1)


@pytest.mark.parametrize(("resolution_s", "completed_s"), [(1.0, 3 * 2.0), (0.0, 3 * 1.6)])
def test_epochs_end_at_multiples_of_the_resolution(resolution_s: float, completed_s: float) -> None:
    job = spec("only", application=perfect(4.8, num_epochs=3))
    assert ends(simulated([job], resolution_s=resolution_s)) == {"only": completed_s}


# -- at events, as on a real cluster ------------------------------------------------------------------------------------


def test_the_policy_is_asked_at_arrivals_and_completions() -> None:
    turns: list[float] = []
    result = simulated(
        [spec("first"), spec("second", 10.0), spec("third", 20.0)],
        num_gpus=2,
        costs=Costs(start_s=5.0, pause_s=1.0),
        on_turn=lambda now_s, num_complete: turns.append(now_s),
    )
    assert turns == pytest.approx([0, 10, 20, 105, 115, 210])
    assert ends(result) == {"first": 105, "second": 115, "third": 210}


def test_the_interval_asks_in_between() -> None:
    turns: list[float] = []
    simulated([spec("only", 10.0)], interval_s=40.0, on_turn=lambda now_s, _: turns.append(now_s))
    assert turns == pytest.approx([10, 40, 80, 110])


def test_an_elastic_job_grows_once_its_speed_is_known() -> None:
    """One replica for the first 10 s, then as many as were seen four times over."""
    result = simulated([spec("only")], num_gpus=6, policy=OptimalPolicy(), adaptive=True)
    assert [sum(change.after.values()) for change in result.reallocations] == [1, 4, 6]
    assert [change.time_s for change in result.reallocations] == pytest.approx([0, 10, 20])
    assert ends(result) == {"only": 20 + (100 - 10 - 40) / 6}


@pytest.mark.parametrize(("kin", "sizes"), [(True, [6]), (False, [1, 4, 6])])
def test_the_next_job_of_an_application_need_not_be_profiled(kin: bool, sizes: list[int]) -> None:
    jobs = [spec("first"), spec("second", submitted_s=1000.0)]
    result = simulated(jobs, num_gpus=6, policy=OptimalPolicy(), adaptive=True, kin=kin)
    given = [sum(change.after.values()) for change in result.reallocations if change.job_id == "second"]
    assert given == sizes


def test_many_short_epochs_at_odd_moments_come_to_an_end() -> None:
    """Sums of seconds are never exact; an end that is missed by a rounding error must not be waited for forever."""
    jobs = [spec(f"j{i}", i / 7, application=perfect(33 / 7, num_epochs=11)) for i in range(30)]
    result = simulated(jobs, num_gpus=3, interval_s=0.7, stopper=Stopper())
    assert result.makespan_s == pytest.approx(2 / 7 + 10 * 33 / 7, abs=0.01)  # ten on each of three GPUs, no gap


def test_so_many_jobs_at_a_time_as_max_concurrent_says() -> None:
    jobs = [spec("first"), spec("second"), spec("third", 150.0), spec("fourth", 450.0)]
    result = simulated(jobs, num_gpus=4, max_concurrent=1)
    assert ends(result) == {"first": 100, "second": 200, "third": 300, "fourth": 550}
    assert [job.submitted_s for job in result.jobs] == pytest.approx([0, 100, 200, 450])
    assert [job.waited_s for job in result.jobs] == [0, 0, 0, 0]


def test_jobs_held_back_come_in_rounds_too() -> None:
    result = simulated([spec("first"), spec("second")], num_gpus=2, max_concurrent=1, **ROUNDS)
    assert ends(result) == {"first": 190, "second": 240 + 30 + 100}
    assert result.jobs[1].submitted_s == 240


# -- faults -------------------------------------------------------------------------------------------------------------


def test_a_job_that_loses_some_replicas_goes_on_with_the_others() -> None:
    outage = Outage(node_id="node-1", from_s=10.0, to_s=20.0)
    costs = Costs(start_s=0.0, pause_s=3.0)
    result = simulated([spec("only", 0, 4)], num_nodes=2, num_gpus=2, costs=costs, outages=[outage])
    assert ends(result) == {"only": 10 + 3 + (100 - 40) / 2}
    assert (result.jobs[0].num_restarts, result.jobs[0].lost_progress, result.jobs[0].waited_s) == (1, 0, 0)


@pytest.mark.parametrize(("snapshot_interval_s", "lost"), [(1000.0, 20.0), (15.0, 10.0), (5.0, 0.0)])
def test_a_job_that_loses_all_replicas_starts_again_from_its_snapshot(snapshot_interval_s: float, lost: float) -> None:
    """Started at 0, failed at 25, of which 5 were its start; snapshots are taken at multiples of their interval."""
    costs = Costs(start_s=5.0, pause_s=3.0, snapshot_interval_s=snapshot_interval_s)
    result = simulated([spec("only")], costs=costs, outages=[Outage(node_id="node-0", from_s=25.0, to_s=50.0)])
    (job,) = result.jobs
    assert (job.lost_progress, job.waited_s) == pytest.approx((lost, 25.0))
    assert job.completed_s == pytest.approx(50 + 5 + 100 - (20 - lost))
    assert {sample.num_nodes for sample in result.samples if 25 <= sample.from_s < 50} == {0}


def test_in_rounds_a_failure_is_seen_at_the_end_of_the_round_and_what_was_trained_since_is_lost() -> None:
    outage = Outage(node_id="node-0", from_s=110.0, to_s=115.0)
    result = simulated([spec("only")], outages=[outage], **ROUNDS)
    assert [change.time_s for change in result.reallocations] == [60, 120, 120]
    assert result.jobs[0].lost_progress == pytest.approx(30)  # of 20 since the snapshot and 10 since the failure
    assert ends(result) == {"only": 120 + 30 + 100}


# -- early stopping -----------------------------------------------------------------------------------------------------


class Worse(Stopper):
    """Stops what scores less than 0.5."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, float]] = []

    def goes_on(self, spec: JobSpec, rung: int, score: float) -> bool:
        self.asked.append((spec.job_id, rung, score))
        return score >= 0.5


@pytest.mark.parametrize("immediate", [True, False])
def test_a_trial_is_stopped_at_the_rung_that_it_fails(immediate: bool) -> None:
    application = perfect(100, num_epochs=10)
    jobs = [
        spec("good", application=application, rungs=((1, 0.9), (4, 0.8))),
        spec("bad", application=application, rungs=((1, 0.6), (4, 0.4), (8, 0.9))),
    ]
    stopper = Worse()
    result = simulated(jobs, num_gpus=2, stopper=stopper, immediate=immediate, interval_s=50.0)
    first_s = 0 if immediate else 50
    assert ends(result) == {"good": first_s + 100, "bad": first_s + 40}
    assert [(job.stopped, job.progress) for job in result.jobs] == [(False, 100), (True, 40)]
    assert stopper.asked == [("good", 0, 0.9), ("bad", 0, 0.6), ("good", 1, 0.8), ("bad", 1, 0.4)]


# -- what is wrong ------------------------------------------------------------------------------------------------------


class Generous:
    """Gives everybody everything."""

    def allocate(self, nodes: Sequence[Node], jobs: Sequence[Job], current: Mapping[str, Allocation]) -> Decision:
        everything = {node.node_id: int(node.resources["GPU"]) for node in nodes}
        return Decision(
            allocations={job.job_id: everything for job in jobs}, objective=0.0, gap=None, message="generous"
        )


def test_impossible_allocations_are_an_error() -> None:
    with pytest.raises(AdaptDLError, match="allocations are not possible"):
        simulated([spec("a"), spec("b")], num_gpus=2, policy=Generous())


def test_a_run_that_gets_nowhere_is_given_up() -> None:
    with pytest.raises(AdaptDLError, match=r"after 2000 simulated seconds jobs were not complete: only"):
        simulated([spec("only", min_replicas=2)], longest_s=1500.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval_s": 0.0}, "`interval_s > 0`"),
        ({"max_concurrent": 0}, "`max_concurrent >= 1` must hold"),
        ({"outages": [Outage(node_id="nobody", from_s=0, to_s=1)]}, "must be of nodes of the cluster, but got nobody"),
    ],
)
def test_arguments_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulated([spec("only")], **changes)


def test_jobs_need_names_of_their_own() -> None:
    with pytest.raises(UsageError, match="a name of its own"):
        simulated([spec("same"), spec("same")])
