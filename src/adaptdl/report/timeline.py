"""A picture of a simulation: who held how many replicas when, who waited, and how full the cluster was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptdl.errors import AdaptDLError, UsageError
from adaptdl.sim import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SUFFIXES", "check_plot", "plot_timeline"]

SUFFIXES = (".png", ".svg", ".pdf")

_WAITING = "#d9d9d9"
_LABELLED_JOBS = 60
"""More rows than these have no room for names."""

_UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "s"))
"""From which length on, seconds in one, name."""

_Bar = tuple[float, float, int]
"""From, to, replicas."""


def check_plot(file: str | Path) -> None:
    """Whether :func:`plot_timeline` could write `file`, before anything is simulated for it.

    Raises:
        UsageError: another kind of file.
        AdaptDLError: matplotlib is not installed.
    """
    if Path(file).suffix.lower() not in SUFFIXES:
        raise UsageError(f"the name of a picture must end with {', '.join(SUFFIXES)}, but is {str(file)!r}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise AdaptDLError("plots need matplotlib, which is not installed: pip install matplotlib") from error


def plot_timeline(result: SimulationResult, file: str | Path, *, title: str = "") -> None:
    """Draws one result: a row for each job, coloured by its replicas (grey: it waits); below, on the same time axis, the
    number of jobs that wait, and the share of the cluster that is held.

    Args:
        result: what is drawn.
        file: .png, .svg or .pdf.
        title: above it.

    Raises:
        UsageError: another kind of file.
        AdaptDLError: matplotlib is not installed.
    """
    check_plot(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit_s, unit = next((size, name) for least, size, name in _UNITS if result.ended_s >= least)
    height = min(max(1.5, 0.16 * len(result.jobs)), 11.0)
    figure = Figure(figsize=(11, height + 3), layout="constrained")
    FigureCanvasAgg(figure)
    rows, queue, used = figure.subplots(3, 1, sharex=True, height_ratios=[height, 1, 1])
    _draw_jobs(rows, result, unit_s)
    _draw_steps(queue, [(s.from_s, s.to_s, s.num_waiting) for s in result.samples], unit_s, "#b5403a")
    queue.set_ylabel("waiting\njobs")
    held = [(s.from_s, s.to_s, 100 * sum(s.replicas.values()) / max(result.num_replicas, 1)) for s in result.samples]
    _draw_steps(used, held, unit_s, "#3a6ea5")
    used.set_ylabel("replicas\nheld, %")
    used.set_ylim(0, 105)
    used.set_xlabel(f"time, {unit}")
    used.set_xlim(0, max(result.ended_s, 1e-9) / unit_s)
    rows.set_title(title)
    figure.savefig(file, dpi=130)


def _draw_jobs(axes: Axes, result: SimulationResult, unit_s: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    most = max([count for sample in result.samples for count in sample.replicas.values()], default=1)
    bounds = [0.5, *(2.0**k + 0.5 for k in range(math.ceil(math.log2(most)) + 1))]  # 1, 2, 3 to 4, 5 to 8, …
    colours: Any = colormaps["viridis_r"].resampled(len(bounds) - 1)
    norm = BoundaryNorm(bounds, len(bounds) - 1)
    bars = dict(_bars_by_job(result))
    for row, job in enumerate(result.jobs):
        spans = [(job.submitted_s / unit_s, (job.completed_s - job.submitted_s) / unit_s)]
        axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=_WAITING, linewidth=0)
        own = bars.get(job.job_id, [])
        spans = [(from_s / unit_s, (to_s - from_s) / unit_s) for from_s, to_s, _ in own]
        axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=[colours(norm(count)) for _, _, count in own], linewidth=0)
    axes.set_ylim(len(result.jobs) - 0.4, -0.6)
    axes.set_ylabel(f"{len(result.jobs)} jobs, by arrival")
    if len(result.jobs) <= _LABELLED_JOBS:
        axes.set_yticks(range(len(result.jobs)), [job.job_id for job in result.jobs], fontsize=6)
    _draw_key(axes, bounds, colours, norm)


def _draw_key(axes: Axes, bounds: list[float], colours: Any, norm: Any) -> None:
    from matplotlib.cm import ScalarMappable

    middles = [(low + high) / 2 for low, high in pairwise(bounds)]
    names = [_span(math.ceil(low), math.floor(high)) for low, high in pairwise(bounds)]
    key = axes.figure.colorbar(
        ScalarMappable(norm=norm, cmap=colours),
        ax=axes,
        spacing="uniform",
        ticks=middles,
        label="replicas",
        pad=0.01,
        aspect=40,
    )
    key.ax.set_yticklabels(names)
    key.ax.minorticks_off()


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _draw_steps(axes: Axes, steps: list[tuple[float, float, float]], unit_s: float, colour: str) -> None:
    times = [from_s / unit_s for from_s, _, _ in steps] + [to_s / unit_s for _, to_s, _ in steps[-1:]]
    axes.stairs([value for _, _, value in steps], times or None, fill=True, color=colour, alpha=0.7)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_ylim(bottom=0)


def _bars_by_job(result: SimulationResult) -> Iterator[tuple[str, list[_Bar]]]:
    """`job_id` and its bars; what follows without a change is one bar. The last one ends when the job does."""
    ends = {job.job_id: job.completed_s for job in result.jobs}
    entries = sorted(
        (job_id, sample.from_s, min(sample.to_s, ends[job_id]), count)
        for sample in result.samples
        for job_id, count in sample.replicas.items()
    )
    for job_id, own in groupby(entries, key=lambda entry: entry[0]):
        yield job_id, list(_merged((from_s, to_s, count) for _, from_s, to_s, count in own))


def _merged(bars: Iterable[_Bar]) -> Iterator[_Bar]:
    last: _Bar | None = None
    for from_s, to_s, count in bars:
        if last is not None and (last[1], last[2]) == (from_s, count):
            last = (last[0], to_s, count)
        else:
            if last is not None:
                yield last
            last = (from_s, to_s, count)
    if last is not None:
        yield last
