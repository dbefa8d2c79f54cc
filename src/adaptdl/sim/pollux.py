"""The published profiles of Pollux (OSDI 2021 artifact) as applications.

Files in the folder that is given (all CSV with a header):

  traces/<app>/placements.csv      placement, local_bsz, step_time, sync_time: seconds, 1 to 4 nodes of up to 4 GPUs;
                                   the digits of a placement are GPUs per node, the smallest rotation is listed
  traces/<app>/scalability.csv     num_nodes, num_replicas, local_bsz, step_time, sync_time: 6 to 16 nodes
  traces/<app>/validation-<B>.csv  progress, iteration, metric, grad_sqr, grad_var: a row per epoch at batch size B
  workloads/workload-<k>.csv       jobs, see `adaptdl.sim.workload`
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptdl.errors import UsageError
from adaptdl.goodput import BatchSizeBounds, GradParams
from adaptdl.sim.application import StepTimes

__all__ = ["TracedApplication", "read_applications"]

_LARGEST_NODES = 16
"""Step times of more nodes were not measured, and are taken to be those of as many."""

_LARGEST_LOCAL = {"yolov3": 8}
"""Local batch sizes that the published policies stop at, though the profile goes on."""

_ONE_REPLICA = {"ncf": 32768}
"""Applications that the published policies leave on one replica, with this batch size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedApplication:
    """One application of the published data. Between measured points values are interpolated, never beyond them."""

    name: str
    init_batch_size: int
    bounds: BatchSizeBounds
    max_replicas: int
    epoch_ends: Sequence[float]
    placements: Mapping[tuple[int, ...], NDArray[np.float64]] = field(repr=False)
    """Shape of an allocation → (points, 3): local batch size, step time, sync time; by local batch size."""
    scalability: NDArray[np.float64] = field(repr=False)
    """(points, 5): nodes, replicas, local batch size, step time, sync time."""
    validation: Mapping[int, NDArray[np.float64]] = field(repr=False)
    """Batch size → (epochs, 4): progress, iteration, |g|², tr Σ."""
    _memory: dict[tuple[tuple[int, ...], int], StepTimes] = field(default_factory=dict, repr=False)

    def step_times(self, shape: tuple[int, ...], atomic_batch_size: int) -> StepTimes:
        """Raises UsageError beyond what was measured."""
        key = (shape, atomic_batch_size)
        if key not in self._memory:
            self._memory[key] = self._step_times(_smallest_rotation(shape), atomic_batch_size)
        return self._memory[key]

    def grad_params(self, epoch: int, batch_size: int) -> GradParams:
        row = self._at(epoch, batch_size)
        return GradParams(grad_sqr=float(row[2]), grad_var=float(row[3]))

    def iterations(self, epoch: int, batch_size: int) -> float:
        """Optimizer steps that a training with M samples per step has made after that epoch (0-based)."""
        return float(self._at(epoch, batch_size)[1])

    def _at(self, epoch: int, batch_size: int) -> NDArray[np.float64]:
        sizes = sorted(self.validation)
        if not sizes[0] <= batch_size <= sizes[-1]:
            raise UsageError(
                f"{self.name}: a batch size of {batch_size} was not measured, only {sizes[0]} to {sizes[-1]}."
            )
        right = next(i for i, size in enumerate(sizes) if batch_size <= size)
        if sizes[right] == batch_size:
            return np.asarray(self.validation[sizes[right]][epoch])
        low, high = sizes[right - 1], sizes[right]
        share = (batch_size - low) / (high - low)
        return np.asarray(self.validation[low][epoch] * (1 - share) + self.validation[high][epoch] * share)

    def _step_times(self, shape: tuple[int, ...], atomic_batch_size: int) -> StepTimes:
        if shape in self.placements:
            points = self.placements[shape]
            local = points[:, 0]
            if local[0] <= atomic_batch_size <= local[-1]:
                return StepTimes(
                    float(np.interp(atomic_batch_size, local, points[:, 1])),
                    float(np.interp(atomic_batch_size, local, points[:, 2])),
                )
        else:
            num_nodes = min(len(shape), _LARGEST_NODES)
            step, sync = self._interpolate(np.array([[num_nodes, sum(shape), atomic_batch_size]], dtype=np.float64))[0]
            if np.isfinite(step):
                return StepTimes(float(step), float(sync))
        raise UsageError(
            f"{self.name}: {atomic_batch_size} samples per replica on nodes with {shape} replicas were not measured."
        )

    @cached_property
    def _interpolate(self) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """(n, 3) nodes, replicas, local batch size → (n, 2) step and sync time, piecewise linear.

        The points lie on a grid, so that their triangulation depends on their order: the one of the artifact.
        """
        from scipy.interpolate import LinearNDInterpolator

        means: dict[tuple[int, int, float], list[NDArray[np.float64]]] = defaultdict(list)
        for shape, points in self.placements.items():
            for local, *times in points:
                means[len(shape), sum(shape), local].append(np.array(times))
        rows = [(*key, *np.mean(means[key], axis=0)) for key in sorted(means)]
        table = np.concatenate([np.array(rows), self.scalability])
        interpolator: Callable[[NDArray[np.float64]], NDArray[np.float64]]
        interpolator = LinearNDInterpolator(table[:, :3], table[:, 3:])
        return interpolator


def read_applications(folder: Path) -> dict[str, TracedApplication]:
    """All applications of the published data, by name. Raises UsageError if `folder` does not hold them."""
    traces = Path(folder) / "traces"
    names = sorted(path.parent.name for path in traces.glob("*/placements.csv"))
    if not names:
        raise UsageError(
            f"`{folder}` must hold the published traces (traces/<application>/placements.csv), but holds none."
        )
    return {name: _read_application(traces / name) for name in names}


def _read_application(folder: Path) -> TracedApplication:
    name = folder.name
    points: dict[tuple[int, ...], list[tuple[float, float, float]]] = defaultdict(list)
    for row in _read(folder / "placements.csv"):
        shape = tuple(int(digit) for digit in row["placement"])
        points[shape].append((float(row["local_bsz"]), float(row["step_time"]), float(row["sync_time"])))
    placements = {shape: np.array(sorted(rows)) for shape, rows in points.items()}
    columns = ("num_nodes", "num_replicas", "local_bsz", "step_time", "sync_time")
    scalability = np.array(
        [[float(row[column]) for column in columns] for row in _read(folder / "scalability.csv")]
    ).reshape(-1, 5)
    fields = ("progress", "iteration", "grad_sqr", "grad_var")
    validation = {
        int(file.stem.rpartition("-")[2]): np.array([[float(row[column]) for column in fields] for row in _read(file)])
        for file in folder.glob("validation-*.csv")
    }
    sizes = sorted(validation)
    low = int(min(rows[0, 0] for rows in placements.values()))
    high = _LARGEST_LOCAL.get(name, int(max(rows[-1, 0] for rows in placements.values())))
    fixed = _ONE_REPLICA.get(name)
    bounds = BatchSizeBounds(
        init_batch_size=fixed or sizes[0],
        max_batch_size=fixed or sizes[-1],
        local_bsz_bounds=(low, high),
        gradient_accumulation=True,
    )
    ends = np.min([table[:, 0] for table in validation.values()], axis=0)
    return TracedApplication(
        name=name,
        init_batch_size=sizes[0],
        bounds=bounds,
        max_replicas=1 if fixed else sizes[-1] // low,
        epoch_ends=[float(end) for end in ends],
        placements=placements,
        scalability=scalability,
        validation=validation,
    )


def _read(file: Path) -> list[dict[str, str]]:
    try:
        with open(file, newline="") as lines:
            return list(csv.DictReader(lines))
    except OSError as error:
        raise UsageError(f"`{file}` must be a readable CSV file of the published data: {error}.") from error


def _smallest_rotation(shape: tuple[int, ...]) -> tuple[int, ...]:
    return min(shape[i:] + shape[:i] for i in range(len(shape)))
