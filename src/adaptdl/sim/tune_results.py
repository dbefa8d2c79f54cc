"""Last week's tuning as a workload: the results of a finished Ray Tune experiment, read without Ray.

A result has the ``adaptdl/*`` columns of one moment of one trial. From them:

  M₀          ``init_batch_size``: the smallest batch size of the trial's results         samples
  throughput  ``adaptdl/goodput`` / ``adaptdl/efficiency``                                samples/s
  T           step time: batch size / throughput, median over results of equal (N, K, M)  s
  r           share of noise, tr Σ / (tr Σ + |g|²): (M/M₀ − 1/efficiency) / (M/M₀ − 1)    [0, 1], where M > M₀
  T_grad      from a fit to the results of one replica; T − T_grad is communication       s

Each result is taken as the end of an epoch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from adaptdl.errors import UsageError
from adaptdl.goodput import (
    BatchSizeBounds,
    GradParams,
    Observation,
    PerfParams,
    ProfileKey,
    fit_perf_params,
    gain,
    grad_time_s,
    noise_scale,
    step_time_s,
)
from adaptdl.sim.application import StepTimes
from adaptdl.sim.job import JobSpec
from adaptdl.sim.tune_files import TrialRecord, TuneResult, read_experiment

__all__ = ["ReplayedApplication", "tune_workload"]

_STEPS_OF_A_RESULT = 20
"""Steps that the step time of one result stands for: the median of its last ones, of up to 50."""

_BORROWED_STEPS = 1
"""Of a step time that comes from another trial of the experiment: it counts where the trial itself has none."""

_NUM_LENDERS = 50
"""Trials whose step times are lent to others: enough to see all that was seen."""


@dataclass(frozen=True, kw_only=True)
class ReplayedApplication:
    """The training that one trial has made, as far as its results tell."""

    name: str
    perf_params: PerfParams
    bounds: BatchSizeBounds
    epoch_ends: Sequence[float]
    """Progress at each result, steps at M₀."""
    noise: Sequence[GradParams] = field(repr=False)
    """In each epoch."""
    max_replicas: int = 1_000_000

    @property
    def init_batch_size(self) -> int:
        return self.bounds.init_batch_size

    def step_times(self, shape: tuple[int, ...], atomic_batch_size: int) -> StepTimes:
        step = float(step_time_s(self.perf_params, len(shape), sum(shape), atomic_batch_size))
        return StepTimes(step, step - float(grad_time_s(self.perf_params, atomic_batch_size)))

    def grad_params(self, epoch: int, batch_size: int) -> GradParams:
        return self.noise[epoch]

    def iterations(self, epoch: int, batch_size: int) -> float:
        lengths = np.diff([0.0, *self.epoch_ends[: epoch + 1]])
        gains = [float(gain(noise, self.init_batch_size, batch_size)) for noise in self.noise[: epoch + 1]]
        return float(np.sum(lengths / np.array(gains)))


def tune_workload(
    experiment_dir: str | Path,
    *,
    metric: str | None = None,
    mode: str = "max",
    max_batch_size: int | None = None,
    together: bool = False,
) -> list[JobSpec]:
    """The trials of a finished experiment, to be replayed under another policy.

    A trial starts when it first got replicas and ends with its last result, whoever ended it then: one that was stopped
    early is stopped at the same progress. Trials that made no progress are left out. If the folder has several runs, the
    newest counts.

    What was not seen is taken from priors. Step times are the real fit to those that the trial was seen with and,
    where it has none, to those of other trials, scaled to its speed; with more replicas, or on more nodes, than any
    trial was seen on they follow the fit's priors, which are optimistic. A trial whose batch size never grew has the
    noise scale of the others (none at all if nobody's grew), and no trial's batch size grows beyond what was seen in the
    experiment unless `max_batch_size` says so, nor a replica's share beyond the largest. Time outside of training steps
    (tests, checkpoints) is not replayed.

    Args:
        experiment_dir: the folder that Tune has written, with a folder for each trial.
        metric: column that says how good a trial is, its best value being the trial's score; None: no scores.
        mode: "max" or "min": whether more of it is better.
        max_batch_size: what batches may grow to, as it was passed to `autoscale_batch_size`.
        together: whether all trials are submitted at once, instead of when each of them was.

    Raises:
        UsageError: nothing in the folder is such an experiment, or it has no `metric`.
    """
    if mode not in ("max", "min"):
        raise UsageError(f'`mode` must be "max" or "min", but is {mode!r}.')
    trials = [_Seen.of(record) for record in read_experiment(Path(experiment_dir))]
    trials = [trial for trial in trials if trial.results and trial.init_batch_size]
    if not trials:
        raise UsageError(
            f"`{experiment_dir}` must hold trials with results of AdaptDL (adaptdl/progress, adaptdl/goodput, …), but no "
            "trial has made progress."
        )
    pooled = _Pool.of(trials, max_batch_size)
    began_s = min(trial.submitted_s for trial in trials)
    return [
        JobSpec(
            job_id=trial.trial_id,
            application=_application(trial, pooled),
            submitted_s=0.0 if together else trial.submitted_s - began_s,
            requested_replicas=Counter(r.num_replicas for r in trial.results).most_common(1)[0][0],
            requested_batch_size=trial.init_batch_size,
            score=0.0 if metric is None else _score(trial, metric, mode),
        )
        for trial in sorted(trials, key=lambda trial: (trial.submitted_s, trial.trial_id))
    ]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one trial's results tell of it."""

    trial_id: str
    submitted_s: float
    results: Sequence[TuneResult]
    """Those with progress, by progress."""
    init_batch_size: int
    """0 if nobody knows."""
    profile: Mapping[ProfileKey, Observation]
    """Communication is not known in it."""

    @classmethod
    def of(cls, record: TrialRecord) -> _Seen:
        results: list[TuneResult] = []
        for result in record.results:
            if result.progress > (results[-1].progress if results else 0.0):
                results.append(result)
        sizes = [result.batch_size for result in results if result.batch_size > 0]
        times: defaultdict[ProfileKey, list[float]] = defaultdict(list)
        for result in results:
            if result.step_time_s is not None:
                times[_key(result)].append(result.step_time_s)
        profile = {
            key: Observation(step_time_s=median(seen), sync_time_s=0.0, count=_STEPS_OF_A_RESULT * len(seen))
            for key, seen in times.items()
        }
        return cls(
            trial_id=record.trial_id,
            submitted_s=record.began_s,
            results=results,
            init_batch_size=min(sizes, default=0),
            profile=profile,
        )

    def noise_shares(self) -> dict[int, float]:
        """Number of the result (0-based) → r, where its batch size tells."""
        shares = {}
        for number, result in enumerate(self.results):
            scale = result.batch_size / self.init_batch_size
            if scale > 1 and 0 < result.efficiency < 1:  # exactly 1: no estimate yet
                share = (scale - 1 / result.efficiency) / (scale - 1)
                shares[number] = min(max(share, 0.0), 1 - 1e-6)
        return shares


def _key(result: TuneResult) -> ProfileKey:
    return ProfileKey(
        num_nodes=result.num_nodes,
        num_replicas=result.num_replicas,
        atomic_batch_size=-(-result.batch_size // result.num_replicas),
        accum_steps=0,
    )


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """What all trials together tell of the model."""

    lenders: Sequence[_Seen]
    """Those trials that were seen in most configurations."""
    noise_scale: float | None
    """φ, median over trials; None if no batch size ever grew."""
    max_batch_size: int | None
    """None: batch sizes are fixed."""
    max_local_batch_size: int

    @classmethod
    def of(cls, trials: Sequence[_Seen], max_batch_size: int | None) -> _Pool:
        scales = []
        for trial in trials:
            if shares := list(trial.noise_shares().values()):
                scales.append(float(noise_scale(_grad_params(median(shares)), trial.init_batch_size)))
        grown = any(result.batch_size > trial.init_batch_size for trial in trials for result in trial.results)
        largest = max(result.batch_size for trial in trials for result in trial.results)
        shares_of_replicas = [-(-r.batch_size // r.num_replicas) for trial in trials for r in trial.results]
        return cls(
            lenders=sorted(trials, key=lambda trial: (-len(trial.profile), trial.trial_id))[:_NUM_LENDERS],
            noise_scale=median(scales) if scales else None,
            max_batch_size=max_batch_size if max_batch_size is not None else largest if grown else None,
            max_local_batch_size=max([*shares_of_replicas, *(trial.init_batch_size for trial in trials)]),
        )

    def for_trial(self, trial: _Seen) -> dict[ProfileKey, Observation]:
        """Step times of other trials, each scaled to this one's speed where both were seen on as many replicas."""
        own = _perf_params(trial.profile)
        shapes = {_shape(key) for key in trial.profile}
        times: defaultdict[ProfileKey, list[float]] = defaultdict(list)
        for lender in self.lenders:
            ratios = [_predicted_s(own, k) / o.step_time_s for k, o in lender.profile.items() if _shape(k) in shapes]
            factor = median(ratios) if ratios else 1.0
            for key, seen in lender.profile.items():
                times[key].append(factor * seen.step_time_s)
        return {
            key: Observation(step_time_s=median(seen), sync_time_s=0.0, count=_BORROWED_STEPS)
            for key, seen in times.items()
        }


def _shape(key: ProfileKey) -> tuple[int, int]:
    return min(key.num_nodes, 2), key.num_replicas


def _predicted_s(perf_params: PerfParams, key: ProfileKey) -> float:
    return float(step_time_s(perf_params, key.num_nodes, key.num_replicas, key.atomic_batch_size))


def _application(trial: _Seen, pool: _Pool) -> ReplayedApplication:
    init = trial.init_batch_size
    return ReplayedApplication(
        name=trial.trial_id,
        perf_params=_perf_params({**pool.for_trial(trial), **trial.profile}),
        bounds=BatchSizeBounds(
            init_batch_size=init,
            max_batch_size=max(init, pool.max_batch_size or init),
            local_bsz_bounds=(1, pool.max_local_batch_size),
        ),
        epoch_ends=tuple(result.progress for result in trial.results),
        noise=_noise(trial, pool),
        max_replicas=init if pool.max_batch_size is None else max(init, pool.max_batch_size),
    )


def _perf_params(profile: Mapping[ProfileKey, Observation]) -> PerfParams:
    """The fit, with communication told apart by means of what one replica does."""
    alone = {key: seen for key, seen in profile.items() if key.num_replicas == 1}
    if not alone:
        return fit_perf_params(profile).perf_params
    computing = fit_perf_params(alone).perf_params
    split = dict(alone)
    for key, seen in profile.items():
        if key.num_replicas > 1:
            sync_s = max(seen.step_time_s - float(grad_time_s(computing, key.atomic_batch_size)), 0.0)
            split[key] = Observation(step_time_s=seen.step_time_s, sync_time_s=sync_s, count=seen.count)
    return fit_perf_params(split).perf_params


def _noise(trial: _Seen, pool: _Pool) -> list[GradParams]:
    """In each epoch: as seen, in between by interpolation over progress; from other trials if never seen."""
    shares = trial.noise_shares()
    if shares:
        progress = np.array([result.progress for result in trial.results])
        seen = np.interp(progress, progress[list(shares)], list(shares.values()))
        return [_grad_params(float(share)) for share in seen]
    ratio = (pool.noise_scale or 0.0) / trial.init_batch_size  # tr Σ / |g|²
    return [_grad_params(ratio / (1 + ratio))] * len(trial.results)


def _grad_params(share: float) -> GradParams:
    return GradParams(grad_sqr=1 - share, grad_var=share)


def _score(trial: _Seen, metric: str, mode: str) -> float:
    values = [result.metrics[metric] for result in trial.results if metric in result.metrics]
    if not values:
        names = sorted({name for result in trial.results for name in result.metrics})
        raise UsageError(f"`metric` must be a column of numbers ({', '.join(names)}), but is {metric!r}.")
    return max(values) if mode == "max" else -min(values)
