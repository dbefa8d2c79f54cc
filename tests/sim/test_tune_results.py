"""A finished experiment becomes a workload that trains as its trials did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from adaptdl.errors import UsageError
from adaptdl.goodput import GradParams, PerfParams, noise_scale
from adaptdl.policy import OptimalPolicy, StaticPolicy
from adaptdl.sim import Costs, JobSpec, ReplayedApplication, Simulation, cluster_nodes, tune_workload
from tests.sim.tune_folder import Stage, rows_of, write_state, write_trial
from tests.sim.workloads import FREE

PERF = PerfParams(alpha_c=0.02, beta_c=0.001, alpha_n=0.08, beta_n=0.001, alpha_r=0.01, beta_r=0.002, gamma=1.5)
NOISE = GradParams(grad_sqr=1.0, grad_var=8.0)
ADAPTIVE: list[Stage] = [(1, 1, 32, 3), (1, 1, 48, 2), (1, 2, 64, 3), (1, 4, 160, 2), (2, 6, 240, 3), (2, 8, 256, 2)]


def rows(trial_id: str = "t1", stages: list[Stage] | None = None, **changes: Any) -> list[dict[str, Any]]:
    values = {"perf_params": PERF, "noise": NOISE, "init_batch_size": 32, **changes}
    return rows_of(trial_id, stages or ADAPTIVE, **values)


def application(job: JobSpec) -> ReplayedApplication:
    assert isinstance(job.application, ReplayedApplication)
    return job.application


@pytest.mark.parametrize("as_csv", [False, True], ids=["result.json", "progress.csv"])
def test_step_times_and_noise_are_found_again(tmp_path: Path, as_csv: bool) -> None:
    write_trial(tmp_path, rows(), as_csv=as_csv)
    (job,) = tune_workload(tmp_path)
    made = application(job)
    assert (job.job_id, job.submitted_s, job.requested_batch_size) == ("t1", 0.0, 32)
    assert (made.init_batch_size, made.bounds.max_batch_size) == (32, 256)
    assert list(made.epoch_ends) == [100.0 * (i + 1) for i in range(15)]
    for num_nodes, num_replicas, batch_size, _ in ADAPTIVE:
        shape = (num_replicas - num_nodes + 1, *[1] * (num_nodes - 1))
        local = -(-batch_size // num_replicas)
        seen = next(row for row in rows() if row["adaptdl/batch_size"] == batch_size)
        step_s = batch_size * seen["adaptdl/efficiency"] / seen["adaptdl/goodput"]
        assert made.step_times(shape, local).step_time_s == pytest.approx(step_s, rel=0.03)
    assert float(noise_scale(made.grad_params(14, 32), 32)) == pytest.approx(32 * 8)
    assert float(noise_scale(made.grad_params(0, 32), 32)) == pytest.approx(32 * 8)  # from later ones


def test_a_replay_takes_as_long_as_the_trial_did(tmp_path: Path) -> None:
    """On one replica throughout, with nothing else to take time."""
    trial = rows(stages=[(1, 1, 32, 10)])
    write_trial(tmp_path, trial)
    result = Simulation(
        nodes=cluster_nodes(1, 1),
        workload=tune_workload(tmp_path),
        policy=StaticPolicy(),
        adaptive=False,
        costs=Costs(**FREE),
        immediate=True,
        resolution_s=0.0,
    ).run()
    assert result.jobs[0].completed_s == pytest.approx(trial[-1]["time_total_s"], rel=1e-6)
    assert result.jobs[0].progress == 1000


def test_a_replay_under_another_policy_uses_what_other_trials_have_seen(tmp_path: Path) -> None:
    """The second trial is half as fast and never had more than one replica."""
    slow = PerfParams(**{**vars(PERF), **{k: 2 * v for k, v in vars(PERF).items() if k != "gamma"}})
    write_trial(tmp_path, rows("fast"))
    write_trial(tmp_path, rows("slow", [(1, 1, 32, 10)], perf_params=slow, began_s=1_000_010.0))
    fast, other = tune_workload(tmp_path)
    assert (other.job_id, other.submitted_s) == ("slow", pytest.approx(10.0))
    for shape in ((1,), (4,), (4, 4)):
        times = [application(job).step_times(shape, 32).step_time_s for job in (fast, other)]
        assert times[1] / times[0] == pytest.approx(2, rel=0.1)
    assert float(noise_scale(other.application.grad_params(0, 32), 32)) == pytest.approx(32 * 8)
    nodes = cluster_nodes(2, 4)
    result = Simulation(nodes=nodes, workload=[fast, other], policy=OptimalPolicy(), immediate=True).run()
    assert {job.job_id: job.progress for job in result.jobs} == {"fast": 1500, "slow": 1000}


def test_batch_sizes_that_never_grew_stay_fixed_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    write_trial(tmp_path, rows(stages=[(1, 1, 32, 2), (1, 2, 32, 2)]))
    (job,), (grown,) = tune_workload(tmp_path), tune_workload(tmp_path, max_batch_size=512)
    assert application(job).bounds.fixed
    assert application(job).grad_params(0, 32).grad_var == 0
    assert application(grown).bounds.max_batch_size == 512


def test_an_estimate_that_was_not_there_yet_is_not_taken_for_endless_noise(tmp_path: Path) -> None:
    trial = rows()
    for row in trial[:8]:
        row["adaptdl/efficiency"] = 1.0
    trial[8]["adaptdl/efficiency"] = trial[8]["adaptdl/goodput"] = math.nan
    write_trial(tmp_path, trial)
    (job,) = tune_workload(tmp_path)
    assert float(noise_scale(job.application.grad_params(0, 32), 32)) == pytest.approx(32 * 8)


def test_trials_come_when_they_did_or_together(tmp_path: Path) -> None:
    for i in range(3):
        write_trial(tmp_path, rows(f"t{i}", began_s=5000.0 - 10 * i))
    assert [(job.job_id, job.submitted_s) for job in tune_workload(tmp_path)] == [
        ("t2", 0.0),
        ("t1", pytest.approx(10.0)),
        ("t0", pytest.approx(20.0)),
    ]
    assert [(job.job_id, job.submitted_s) for job in tune_workload(tmp_path, together=True)] == [
        ("t2", 0.0),
        ("t1", 0.0),
        ("t0", 0.0),
    ]


def test_results_made_again_after_a_failure_count_once(tmp_path: Path) -> None:
    first, again = rows(stages=[(1, 1, 32, 5)]), rows(stages=[(1, 1, 32, 8)], began_s=1_000_100.0)
    write_trial(tmp_path, [*first, *again[3:]])
    (job,) = tune_workload(tmp_path)
    assert list(application(job).epoch_ends) == [100.0 * (i + 1) for i in range(8)]


def test_of_several_runs_in_a_folder_the_newest_counts(tmp_path: Path) -> None:
    for trial_id in ("old", "new"):
        write_trial(tmp_path, rows(trial_id))
    write_state(tmp_path, "2026-01-01_00-00-00", ["old"])
    write_state(tmp_path, "2026-01-02_00-00-00", ["new"])
    assert [job.job_id for job in tune_workload(tmp_path)] == ["new"]
    (tmp_path / "experiment_state-2026-01-02_00-00-00.json").write_text("{}")  # of some other version
    assert [job.job_id for job in tune_workload(tmp_path)] == ["new", "old"]


def test_a_metric_is_the_score(tmp_path: Path) -> None:
    write_trial(tmp_path, rows())
    assert tune_workload(tmp_path)[0].score == 0.0
    assert tune_workload(tmp_path, metric="accuracy")[0].score == 1 - 1 / 15
    assert tune_workload(tmp_path, metric="accuracy", mode="min")[0].score == 0.0
    with pytest.raises(UsageError, match=r"`metric` must be a column of numbers \(accuracy, .*, but is 'acc'"):
        tune_workload(tmp_path, metric="acc")


def test_the_last_line_may_be_cut_off_but_no_other(tmp_path: Path) -> None:
    write_trial(tmp_path, rows())
    (file,) = tmp_path.glob("*/result.json")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    assert len(tune_workload(tmp_path)[0].application.epoch_ends) == 14
    file.write_text("\n".join([lines[0], lines[1][:40], lines[2]]))
    with pytest.raises(UsageError, match=r"result.json, line 2: must be a result in JSON"):
        tune_workload(tmp_path)


def test_a_folder_that_is_no_experiment_of_adaptdl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be the folder of a Ray Tune experiment"):
        tune_workload(tmp_path)
    others = [{name: value for name, value in row.items() if not name.startswith("adaptdl/")} for row in rows()]
    write_trial(tmp_path, others)
    with pytest.raises(UsageError, match="must hold results with AdaptDL's columns"):
        tune_workload(tmp_path)
    write_trial(tmp_path, [{**row, "adaptdl/progress": 0.0} for row in rows()])
    with pytest.raises(UsageError, match="no trial has made progress"):
        tune_workload(tmp_path)
