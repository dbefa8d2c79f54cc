"""A simulated job trains on while the replicas it gets are starting."""

from __future__ import annotations

import math

import pytest

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GradParams, PerfParams
from adaptdl.policy import OptimalPolicy
from adaptdl.sim import Costs, JobSpec, ModelApplication, Simulation, cluster_nodes
from adaptdl.sim.job import SimulatedJob

APPLICATION = ModelApplication(
    name="perfect",
    perf_params=PerfParams(alpha_c=0, beta_c=1 / 12, alpha_n=0, beta_n=0, alpha_r=0, beta_r=0, gamma=1),
    bounds=BatchSizeBounds(init_batch_size=12, max_batch_size=12),
    num_epochs=1,
    epoch_progress=100,
    first_grad_params=GradParams(grad_sqr=1.0, grad_var=0.0),
    last_grad_params=GradParams(grad_sqr=1.0, grad_var=0.0),
)
"""One step per second and replica, for numbers of replicas that divide 12."""
SPEC = JobSpec(job_id="one", application=APPLICATION, submitted_s=0.0)


def running(**allocation: int) -> SimulatedJob:
    """Has just begun to train on `allocation`."""
    job = SimulatedJob(spec=SPEC, adaptive=True)
    job.reallocate(allocation, 0.0, 0.0, boot_s=10.0)
    return job


def progress_after(job: SimulatedJob, duration_s: float) -> float:
    before = job.progress
    job.advance(duration_s, 0.0)
    return job.progress - before


def test_a_job_without_replicas_starts_and_does_not_wait_for_newcomers() -> None:
    assert progress_after(running(a=2), 5.0) == pytest.approx(10.0)


def test_newcomers_join_when_they_have_started_and_the_job_pauses_only_then() -> None:
    job = running(a=1)
    job.reallocate({"a": 2}, 3.0, 0.0, boot_s=10.0)
    assert job.settles_s == 13.0
    assert progress_after(job, 10.0) == pytest.approx(10.0)
    assert progress_after(job, 3.0) == 0.0
    assert progress_after(job, 5.0) == pytest.approx(10.0)
    assert {key.num_replicas for key in job.profile} == {1, 2}
    assert job.service_s == pytest.approx(2 * 18.0)  # newcomers hold their places from the beginning


def test_replicas_that_leave_do_so_at_once() -> None:
    job = running(a=2, b=1)
    job.reallocate({"a": 1}, 3.0, 0.0, boot_s=10.0)
    assert job.settles_s == 3.0
    assert progress_after(job, 4.0) == pytest.approx(1.0)


def test_a_job_that_loses_some_and_gets_others_trains_on_with_those_that_stay() -> None:
    job = running(a=2)
    job.reallocate({"a": 1, "b": 2}, 1.0, 0.0, boot_s=10.0)
    assert progress_after(job, 10.0) == pytest.approx(9.0)
    assert progress_after(job, 2.0) == pytest.approx(3.0)


def test_a_job_that_moves_trains_where_it_was_until_the_others_have_started() -> None:
    job = running(a=1)
    job.reallocate({"b": 1}, 1.0, 0.0, boot_s=10.0)
    assert progress_after(job, 10.0) == pytest.approx(10.0)
    assert progress_after(job, 2.0) == pytest.approx(1.0)


def test_newcomers_that_are_given_up_cost_nothing() -> None:
    job = running(a=1)
    job.reallocate({"a": 2}, 3.0, 0.0, boot_s=10.0)
    assert progress_after(job, 4.0) == pytest.approx(4.0)
    job.reallocate({"a": 1}, 3.0, 4.0, boot_s=10.0)
    assert job.settles_s == 0.0
    assert progress_after(job, 10.0) == pytest.approx(10.0)


def test_of_several_newcomers_those_that_are_still_wanted_go_on_starting() -> None:
    job = running(a=1)
    job.reallocate({"a": 1, "b": 2}, 1.0, 0.0, boot_s=10.0)
    job.advance(4.0, 0.0)
    job.reallocate({"a": 1, "b": 1}, 1.0, 4.0, boot_s=10.0)
    assert job.settles_s == pytest.approx(7.0)


def test_a_job_that_is_paused_forgets_its_newcomers() -> None:
    job = running(a=1)
    job.reallocate({"a": 2}, 3.0, 0.0, boot_s=10.0)
    job.reallocate({}, 3.0, 1.0, boot_s=10.0)
    assert (job.rate(), job.batch_size, job.boot_s) == (0.0, 0, 0.0)
    job.reallocate({"b": 1}, 3.0, 2.0, boot_s=10.0)
    assert progress_after(job, 4.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("costs", "completed_s"), [({"growth_s": 8.0}, 56.0), ({"pause_s": 8.0}, 60.0)])
def test_a_simulation_charges_for_growth_what_its_costs_say(costs: dict[str, float], completed_s: float) -> None:
    """Profiled after 4 s; then it is given the second replica."""
    result = Simulation(
        nodes=cluster_nodes(1, 2),
        workload=[SPEC],
        policy=OptimalPolicy(),
        interval_s=1000.0,
        costs=Costs(**{"start_s": 0.0, "pause_s": 0.0, **costs}),
        immediate=True,
        profile_s=4.0,
        resolution_s=0.0,
    ).run()
    assert result.jobs[0].completed_s == pytest.approx(completed_s)


def test_a_negative_or_endless_growth_is_refused() -> None:
    for growth_s in (-1.0, math.inf):
        with pytest.raises(UsageError, match="`growth_s` must be finite and >= 0"):
            Costs(growth_s=growth_s)
