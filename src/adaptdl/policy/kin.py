"""What was learnt of one job, for others of its kind: one rule for the real allocator and for the simulator.

Trials of an experiment train much the same model, so not each of them has to find out how fast that is on so many replicas. What
is lent is the fit of the job of a kind that was profiled furthest, and how far that was. How noisy its gradients are, and what it
has still to do, a job knows itself or nobody does.

==========================  =====================================================================
the job has said            it is taken to be
==========================  =====================================================================
nothing                     like the furthest of its kind, which shows that such jobs have a loop
less than the furthest has  like it, if both compute as fast on one replica
otherwise                   what it says
==========================  =====================================================================
"""

from __future__ import annotations

from dataclasses import replace

from adaptdl.goodput import JobReport, grad_time_s

__all__ = ["Kin"]

_ALIKE = 1.25
"""Two jobs whose passes take so many times as long as each other's, at most, are taken to train the same model."""


class Kin:
    """The furthest job of each kind, as it was when it last reported; ended ones are remembered."""

    def __init__(self) -> None:
        self._furthest: dict[str, JobReport] = {}

    def learn(self, kind: str, report: JobReport | None) -> None:
        """A job of this kind has reported."""
        if report is None or report.perf_params is None:
            return
        known = self._furthest.get(kind)
        if known is None or report.max_profiled_replicas >= known.max_profiled_replicas:
            self._furthest[kind] = report

    def informed(self, kind: str, report: JobReport | None) -> JobReport | None:
        """A job's own report, with what it lacks."""
        known = self._furthest.get(kind)
        if known is None:
            return report
        if report is None:
            return JobReport(
                bounds=known.bounds,
                perf_params=known.perf_params,
                max_profiled_replicas=known.max_profiled_replicas,
            )
        if report.max_profiled_replicas >= known.max_profiled_replicas or not _are_alike(report, known):
            return report
        return replace(report, perf_params=known.perf_params, max_profiled_replicas=known.max_profiled_replicas)


def _are_alike(one: JobReport, other: JobReport) -> bool:
    """Whether a pass of `one` takes about as long as one of `other` with as many samples."""
    assert other.perf_params is not None
    if one.perf_params is None:
        return True
    size = one.batch_size / one.num_replicas if one.batch_size and one.num_replicas else 1.0
    ratio = float(grad_time_s(one.perf_params, size)) / float(grad_time_s(other.perf_params, size))
    return 1 / _ALIKE <= ratio <= _ALIKE
