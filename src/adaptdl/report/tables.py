"""Plain text tables of what simulations have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adaptdl.sim import JobResult, SimulationResult

__all__ = ["comparison_table", "job_table"]

_Row = tuple[str, str, Callable[[SimulationResult], str]]
"""What it says, its unit, and the cell of one result."""


def comparison_table(results: Mapping[str, SimulationResult]) -> str:
    """A column for each result, by name, and a row for each figure, with its unit.

    Early stopping, lost training and the best trial have rows only if there are any.
    """
    if not results:
        return ""
    rows: list[_Row] = [
        ("jobs", "", lambda r: f"{len(r.jobs):,}"),
        ("average completion time", "s", lambda r: _amount(r.average_completion_time_s)),
        ("median completion time", "s", lambda r: _amount(r.percentile_completion_time_s(50))),
        ("99th percentile", "s", lambda r: _amount(r.percentile_completion_time_s(99))),
        ("makespan", "s", lambda r: _amount(r.makespan_s)),
    ]
    if any(len({job.score for job in result.jobs}) > 1 for result in results.values()):
        rows.append(("best trial complete", "s", lambda r: _amount(r.best_completed_s()) if r.jobs else "-"))
    rows += [
        ("replicas held", "h", lambda r: _amount(r.service_hours)),
        ("utilisation", "%", lambda r: f"{100 * r.utilisation:.1f}"),
        ("reallocations per job", "", lambda r: f"{r.average_restarts:.2f}"),
        ("jobs waiting, average", "", lambda r: f"{r.average_waiting:.1f}"),
    ]
    if any(job.stopped for result in results.values() for job in result.jobs):
        rows.append(("stopped early", "", lambda r: f"{sum(job.stopped for job in r.jobs):,}"))
    if any(job.lost_progress for result in results.values() for job in result.jobs):
        rows.append(("training lost with nodes", "%", lambda r: f"{100 * _lost_share(r):.2f}"))
    if len(results) > 1:
        first = next(iter(results.values())).average_completion_time_s
        rows.append(("average, to the first", "×", lambda r: _ratio(r.average_completion_time_s, first)))
    cells = [[label, unit, *(cell(result) for result in results.values())] for label, unit, cell in rows]
    return _aligned([["", "", *results], *cells], num_left=2)


def job_table(result: SimulationResult) -> str:
    """A row for each job, in order of arrival."""
    header = ["job", "application", "submitted s", "completed s", "taken s", "waited s", "reallocations", "held h"]
    with_scores = len({job.score for job in result.jobs}) > 1
    rows = [_job_row(job, with_scores) for job in result.jobs]
    return _aligned([[*header, *(["score"] if with_scores else []), "end"], *rows], num_left=2)


def _job_row(job: JobResult, with_score: bool) -> list[str]:
    times = (job.submitted_s, job.completed_s, job.completion_time_s, job.waited_s)
    row = [job.job_id, job.application, *(f"{value:,.1f}" for value in times)]
    row += [str(job.num_restarts), f"{job.service_s / 3600:.2f}"]
    return [*row, *([f"{job.score:.4g}"] if with_score else []), "stopped" if job.stopped else "complete"]


def _lost_share(result: SimulationResult) -> float:
    """Of all progress made; each job counts by its own."""
    made = [job.progress + job.lost_progress for job in result.jobs]
    return sum(job.lost_progress / own for job, own in zip(result.jobs, made, strict=True) if own) / max(len(made), 1)


def _amount(value: float) -> str:
    """With as many decimals as are of use."""
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def _ratio(value: float, first: float) -> str:
    return f"{value / first:.2f}" if first else "-"


def _aligned(rows: Sequence[Sequence[str]], *, num_left: int) -> str:
    """Columns side by side, the first ones aligned left, the others right; a line under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
