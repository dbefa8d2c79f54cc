"""A folder of made-up data in the published format."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptdl.errors import UsageError
from adaptdl.policy import StaticPolicy
from adaptdl.sim import Simulation, TracedApplication, cluster_nodes, read_applications, read_workload

PLACEMENTS = ["1", "2", "4", "11", "12", "22", "112"]
SCALABILITY = [(6, 6), (6, 12), (8, 8), (8, 16)]


def step_time_s(num_nodes: int, num_replicas: int, local: int) -> float:
    """Linear, so that interpolation is exact."""
    return 0.1 + 0.05 * local + 0.02 * num_nodes + 0.01 * num_replicas


def sync_time_s(num_nodes: int, num_replicas: int, local: int) -> float:
    return 0.01 * num_nodes + 0.005 * num_replicas - 0.001 * local + 0.02


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    app = tmp_path / "traces" / "tiny"
    app.mkdir(parents=True)
    lines = ["placement,local_bsz,step_time,sync_time"]
    for placement in PLACEMENTS:
        shape = (len(placement), sum(map(int, placement)))
        lines += [f"{placement},{m},{step_time_s(*shape, m)},{sync_time_s(*shape, m)}" for m in (8, 4, 16)]
    (app / "placements.csv").write_text("\n".join(lines) + "\n")
    lines = ["num_nodes,num_replicas,local_bsz,step_time,sync_time"]
    for shape in SCALABILITY:
        lines += [f"{shape[0]},{shape[1]},{m},{step_time_s(*shape, m)},{sync_time_s(*shape, m)}" for m in (4, 16)]
    (app / "scalability.csv").write_text("\n".join(lines) + "\n")
    header = "progress,iteration,metric,grad_sqr,grad_var\n"
    (app / "validation-8.csv").write_text(header + "10,10,0.1,2,1\n20,20,0.2,1,1\n")
    (app / "validation-32.csv").write_text(header + "11,4,0.1,2,3\n21,8,0.2,1,5\n")
    (tmp_path / "workloads").mkdir()
    header = "name,time,application,num_replicas,batch_size\n"
    (tmp_path / "workloads" / "workload-1.csv").write_text(header + "a,0,tiny,1,8\nb,70,tiny,2,16\n")
    return tmp_path


@pytest.fixture
def tiny(folder: Path) -> TracedApplication:
    return read_applications(folder)["tiny"]


def test_limits_come_from_the_files(tiny: TracedApplication) -> None:
    assert (tiny.init_batch_size, tiny.bounds.max_batch_size, tiny.bounds.local_bsz_bounds) == (8, 32, (4, 16))
    assert (tiny.max_replicas, tiny.epoch_ends) == (8, [10.0, 20.0])  # of each epoch the smallest


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2), (2, 1), (1, 2, 1), (2, 1, 1), (2, 1, 1, 1, 1)])
@pytest.mark.parametrize("local", [4, 6, 16])
def test_step_times_are_interpolated_for_any_rotation_and_any_number_of_nodes(
    tiny: TracedApplication, shape: tuple[int, ...], local: int
) -> None:
    expected = (step_time_s(len(shape), sum(shape), local), sync_time_s(len(shape), sum(shape), local))
    assert tiny.step_times(shape, local) == pytest.approx(expected)


def test_passes_without_synchronisation_take_no_time_for_it(tiny: TracedApplication) -> None:
    step_s, sync_s = step_time_s(1, 2, 8), sync_time_s(1, 2, 8)
    assert tiny.step_times((2,), 8).with_accumulation(2) == pytest.approx(3 * step_s - 2 * sync_s)


def test_nothing_is_extrapolated(tiny: TracedApplication) -> None:
    for shape, local in (((1,), 3), ((1,), 17), ((2, 1, 1, 1, 1), 17)):
        with pytest.raises(UsageError, match="were not measured"):
            tiny.step_times(shape, local)
    with pytest.raises(UsageError, match="a batch size of 33 was not measured, only 8 to 32"):
        tiny.grad_params(0, 33)


def test_gradients_and_iterations_are_interpolated_between_batch_sizes(tiny: TracedApplication) -> None:
    at = tiny.grad_params(1, 20)
    assert (at.grad_sqr, at.grad_var) == (1.0, 3.0)
    assert tiny.grad_params(0, 32).grad_var == 3.0
    assert tiny.iterations(1, 20) == 14.0


def test_a_workload_runs_on_them(folder: Path) -> None:
    """One step of 8 samples on one GPU takes 0.53 s: epochs of 10 steps, in whole seconds 5. Two GPUs train 16 samples in
    0.54 s with a gain of 4/3 and then 1.5 to the noise of there."""
    jobs = read_workload(folder / "workloads" / "workload-1.csv", read_applications(folder))
    result = Simulation(nodes=cluster_nodes(1, 4), workload=jobs, policy=StaticPolicy(), adaptive=False).run()
    first, second = result.jobs
    assert first.completed_s == 60 + 30 + 5 + 5
    gains = [(v + g) / (v / 2 + g) for g, v in ((2, 1 + 2 / 3), (1, 1 + 4 / 3))]
    assert second.completed_s == 120 + 30 + sum(round(10 / (gain / step_time_s(1, 2, 8))) for gain in gains)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must hold the published traces"):
        read_applications(tmp_path)
