"""From measured step times to the parameters of the step time.

  i                           one key of the profile: (N, K, m, s)
  θ                           the six times (α_c, β_c, α_n, β_n, α_r, β_r), all ≥ 0, s
  t_i                         measured time of a pass, (step time − communication) / (s + 1), s
  T_i                         measured time of the whole step, s
  T_grad(θ), T_sync(θ)        linear in θ (see `throughput`)
  T_iter(θ, γ)                s·T_grad + (T_grad^γ + T_sync^γ)^(1/γ)
  w_i                         weight, n / (n + COUNT_OF_HALF_WEIGHT) for n timed steps

The fit minimises Σ w_i·((log T_grad − log t_i)² + (log T_iter − log T_i)²) over θ and γ. What the profile cannot
tell is not left to chance but tied by a prior (Pollux, OSDI 2021, section 4.1), written as θ = B·u with free u ≥ 0:

* one atomic batch size only: half of a pass's time is fixed and half proportional to m;
* never across nodes: ACROSS_RATIO times the start on one node (α_n = ACROSS_RATIO·α_r), as much for each further replica
  (β_n = β_r); and never cheaper than on one node where both were seen;
* never several replicas on one node: the same the other way round (α_r = α_n / ACROSS_RATIO, β_r = 0);
* one number of replicas only: no retrogression (β = 0);
* no two atomic batch sizes among several replicas: γ = PRIOR_GAMMA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptdl.goodput.throughput import PerfParams

__all__ = ["Fit", "Observation", "Profile", "ProfileKey", "fit_perf_params"]

Floats: TypeAlias = NDArray[np.float64]

COUNT_OF_HALF_WEIGHT = 5
"""A mean over five steps counts half as much as one over very many: beyond, the error is the model's, not chance."""

PRIOR_GAMMA = 1.7
"""Overlap as long as nothing is known of it: the median of fits to the published step times of Pollux's six models
(1.0 to 2.8)."""

ACROSS_RATIO = 4.0
"""How much longer two replicas take to synchronise across nodes than on one, as long as it was not measured: the network of
a cluster is slower than a node's own links. Fits to the published step times of Pollux's six models give 3.7 to 6.2."""

GAMMA_RIDGE = 1e-7
"""Pull of γ towards its start: decides where the data do not, and is nothing where they do."""

MAX_STEPS = 60
"""Of one descent; ten are the rule."""

SHORTEST_S, LONGEST_S = 1e-9, 1e9
"""Times outside are faults of a clock, not steps."""

PRIOR = PerfParams(alpha_c=0.0, beta_c=1.0, alpha_n=0.0, beta_n=0.0, alpha_r=0.0, beta_r=0.0, gamma=PRIOR_GAMMA)
"""Perfect scaling, in arbitrary units."""


@dataclass(frozen=True, kw_only=True, order=True)
class ProfileKey:
    """The configuration that a step was made in."""

    num_nodes: int
    num_replicas: int
    atomic_batch_size: int
    accum_steps: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The mean over some steps of one configuration."""

    step_time_s: float
    """A whole optimizer step, all its s + 1 passes included."""
    sync_time_s: float
    """The part of it that is communication not hidden behind computing; without meaning for one replica."""
    count: int
    """Steps that the means are over."""


Profile: TypeAlias = Mapping[ProfileKey, Observation]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted parameters and how far to trust them."""

    perf_params: PerfParams
    is_prior: bool
    """Whether nothing could be learnt: `perf_params` is perfect scaling, with times in arbitrary units."""
    message: str
    """What was ignored and what was taken from priors; empty if nothing."""
    rmsle: float
    """Root mean square of log(T_iter / measured step time); NaN of a prior."""


def fit_perf_params(profile: Profile) -> Fit:
    """The parameters that explain `profile` best. Raises nothing: what cannot be used is ignored, and said.

    The answer depends on the profile alone, not on the order of its keys.
    """
    data, notes = _Data.usable(profile)
    if data is None:
        return Fit(perf_params=PRIOR, is_prior=True, message="; ".join([*notes, "perfect scaling"]), rmsle=math.nan)
    basis, gamma_is_free, priors = _prior(data)
    problem = _Problem(data, basis, gamma_is_free)
    with np.errstate(all="ignore"):
        point = problem.solve()
        rmsle = problem.rmsle(point)
    perf_params = _perf_params(data, basis @ point[:-1], float(point[-1]))
    return Fit(perf_params=perf_params, is_prior=False, message="; ".join(notes + priors), rmsle=rmsle)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The usable observations, arrays of shape (n,). Times are in units of `time_s`, batch sizes of `samples`."""

    num_nodes: NDArray[np.int64]
    num_replicas: NDArray[np.int64]
    atomic: Floats
    accum_steps: Floats
    pass_time: Floats
    step_time: Floats
    weight: Floats
    time_s: float
    samples: float

    @classmethod
    def usable(cls, profile: Profile) -> tuple[_Data | None, list[str]]:
        """The observations that make sense (None if no one does), and what is to be said about the others."""
        rows = [row for row in map(_row, profile.items()) if row is not None]
        ignored = len(profile) - len(rows)
        notes = [f"{ignored} of {len(profile)} observations make no sense and are ignored"] if ignored else []
        if not rows:
            return None, notes or ["no observations"]
        nodes, replicas, atomic, accum_steps, pass_time, step_time, count = np.array(sorted(rows), dtype=np.float64).T
        data = cls(
            num_nodes=nodes.astype(np.int64),
            num_replicas=replicas.astype(np.int64),
            atomic=atomic,
            accum_steps=accum_steps,
            pass_time=pass_time,
            step_time=step_time,
            weight=count / (count + COUNT_OF_HALF_WEIGHT),
            time_s=1.0,
            samples=1.0,
        )
        time_s, samples = math.exp(np.mean(np.log(pass_time))), math.exp(np.mean(np.log(atomic)))
        return replace(
            data,
            atomic=atomic / samples,
            pass_time=pass_time / time_s,
            step_time=step_time / time_s,
            weight=data.weight / data.weight.sum(),
            time_s=time_s,
            samples=samples,
        ), notes

    @property
    def within(self) -> NDArray[np.bool_]:
        """Several replicas on one node."""
        within: NDArray[np.bool_] = (self.num_nodes == 1) & (self.num_replicas > 1)
        return within

    @property
    def across(self) -> NDArray[np.bool_]:
        """Several nodes."""
        across: NDArray[np.bool_] = self.num_nodes > 1
        return across


_Row: TypeAlias = tuple[int, int, int, int, float, float, int]


def _row(item: tuple[ProfileKey, Observation]) -> _Row | None:
    """(N, K, m, s, pass time, step time, count) of one observation; None if it makes no sense."""
    key, seen = item
    if not (1 <= key.num_nodes <= key.num_replicas and key.atomic_batch_size >= 1 and key.accum_steps >= 0):
        return None
    sync_s = seen.sync_time_s if key.num_replicas > 1 else 0.0
    if not (SHORTEST_S <= seen.step_time_s <= LONGEST_S and 0 <= sync_s < seen.step_time_s and seen.count >= 1):
        return None
    pass_s = (seen.step_time_s - sync_s) / (key.accum_steps + 1)
    if pass_s < SHORTEST_S:
        return None
    shape = (key.num_nodes, key.num_replicas, key.atomic_batch_size, key.accum_steps)
    return (*shape, pass_s, seen.step_time_s, seen.count)


def _prior(data: _Data) -> tuple[Floats, bool, list[str]]:
    """B of shape (6, free), whether γ is free, and the priors in words."""
    columns: list[Floats] = []
    notes: list[str] = []

    def free(**times: float) -> None:
        columns.append(np.array([times.get(name, 0.0) for name in ("ac", "bc", "an", "bn", "ar", "br")]))

    if np.ptp(data.atomic) > 1e-9:
        free(ac=1)
        free(bc=1)
    else:
        free(ac=1, bc=1 / float(data.atomic[0]))
        notes.append("one batch size seen: half of a pass is fixed, half proportional")
    within, across = data.within, data.across
    further_within = bool(np.ptp(data.num_replicas[within]) > 0) if within.any() else False
    further_across = bool(np.ptp(data.num_replicas[across]) > 0) if across.any() else False
    if within.any():
        free(ar=1, an=1 if across.any() else ACROSS_RATIO)
    elif across.any():
        notes.append(f"no several replicas on one node seen: {ACROSS_RATIO:g} times faster than across nodes")
    else:
        notes.append("no several replicas seen: perfect scaling")
    if further_within:
        free(br=1, bn=1)
    elif within.any():
        notes.append("one number of replicas on one node seen: no retrogression there")
    if across.any():
        free(an=1, ar=0 if within.any() else 1 / ACROSS_RATIO)
    elif within.any():
        notes.append(f"several nodes not seen: {ACROSS_RATIO:g} times slower than on one node")
    if further_across:
        free(bn=1)
    elif across.any():
        notes.append("one number of replicas across nodes seen: as little retrogression as on one node")
    several = data.num_replicas > 1
    gamma_is_free = bool(several.any() and np.ptp(data.atomic[several]) > 1e-9)
    return np.stack(columns, axis=1), gamma_is_free, notes


class _Problem:
    """The least-squares problem in the point (u, γ) of shape (free + 1,).

    Solved by the Levenberg-Marquardt method with u ≥ 0 kept in each linear step, by non-negative least squares. There
    are so few unknowns that nothing is worth a thread: with L-BFGS-B, whose every step calls a threaded LAPACK, a fit
    takes a hundred times as long (1 s) on a machine whose cores are busy training.
    """

    def __init__(self, data: _Data, basis: Floats, gamma_is_free: bool) -> None:
        self.data, self.gamma_is_free = data, gamma_is_free
        one, zero = np.ones_like(data.atomic), np.zeros_like(data.atomic)
        further = np.maximum(data.num_replicas - 2, 0)
        within, across = data.within, data.across
        grad = np.stack([one, data.atomic, zero, zero, zero, zero], axis=1)  # (n, 6)
        sync = np.stack([zero, zero, across, further * across, within, further * within], axis=1)  # (n, 6)
        self.grad, self.sync = grad @ basis, sync @ basis  # (n, free)
        self.computing = np.abs(self.grad).sum(axis=0) > 0  # (free,); the other u are communication
        # Zero computing has no logarithm.
        self.lower = np.append(np.where(self.computing, 1e-9, 0.0), 1.0)
        self.root = np.sqrt(data.weight)

    def solve(self) -> Floats:
        """The best point reached from closed-form starts at several γ."""
        best, best_loss = self._start(PRIOR_GAMMA), math.inf
        for gamma in (1.3, 4.0) if self.gamma_is_free else (PRIOR_GAMMA,):
            point, loss = self._descend(self._start(gamma), gamma)
            if loss < best_loss:
                best, best_loss = point, loss
        return best

    def rmsle(self, point: Floats) -> float:
        """Root mean square of log(T_iter / measured step time)."""
        error = np.log(self._times(point)[1] / self.data.step_time)
        return math.sqrt(float(np.mean(error**2)))

    def _start(self, gamma: float) -> Floats:
        """The point that solves the two linear problems left when γ is known."""
        data = self.data
        free = np.zeros(len(self.computing))
        last = data.step_time - data.accum_steps * data.pass_time  # = pass + communication
        visible = np.maximum(1 - (data.pass_time / last) ** gamma, 0.0) ** (1 / gamma)  # T_sync / last
        for columns, matrix, wanted in (
            (self.computing, self.grad / data.pass_time[:, None], np.ones_like(last)),
            (~self.computing, self.sync / last[:, None], visible),
        ):
            if columns.any():
                free[columns] = _nonnegative(self.root[:, None] * matrix[:, columns], self.root * wanted)
        start: Floats = np.maximum(np.append(free, gamma), self.lower)
        return start

    def _descend(self, point: Floats, gamma: float) -> tuple[Floats, float]:
        """The point of least loss that is reached from `point`, and its loss (infinite if it has none)."""
        damping = 1e-3
        error = self._errors(point, gamma)
        loss = float(error @ error)
        if not math.isfinite(loss):
            return point, math.inf
        for _ in range(MAX_STEPS):
            there = self._step(point, error, damping)
            error_there = self._errors(there, gamma)
            loss_there = float(error_there @ error_there)
            if loss_there < loss:
                settled = loss - loss_there < 1e-10 * loss
                point, error, loss, damping = there, error_there, loss_there, damping / 5
                if settled:
                    break
            else:  # NaN included
                damping *= 5
                if damping > 1e6:
                    break
        return point, loss

    def _step(self, point: Floats, error: Floats, damping: float) -> Floats:
        """The point within the bounds where the linearised errors, with a damped change, are least."""
        jacobian = self._jacobian(point)
        matrix = np.concatenate([jacobian, np.diag(math.sqrt(damping) * np.sqrt(np.sum(jacobian**2, axis=0)))])
        wanted = matrix @ (point - self.lower) - np.concatenate([error, np.zeros(len(point))])
        there = self.lower + _nonnegative(matrix, wanted)
        if not self.gamma_is_free or there[-1] > 10:
            there[-1] = min(there[-1], 10.0) if self.gamma_is_free else point[-1]
            rest = wanted - matrix[:, -1] * (there[-1] - self.lower[-1])
            there[:-1] = self.lower[:-1] + _nonnegative(matrix[:, :-1], rest)
        return there

    def _times(self, point: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """T_grad, T_iter, the last pass P = (T_grad^γ + T_sync^γ)^(1/γ), and T_grad/P, T_sync/P; (n,) each."""
        free, gamma = point[:-1], point[-1]
        grad, sync = self.grad @ free, self.sync @ free
        longer, shorter = np.maximum(grad, sync), np.minimum(grad, sync)
        last = longer * (1 + (shorter / longer) ** gamma) ** (1 / gamma)
        return grad, self.data.accum_steps * grad + last, last, grad / last, sync / last

    def _errors(self, point: Floats, gamma: float) -> Floats:
        """Weighted log errors of passes and steps and the pull of γ to its start, (2n + 1,); the loss is the square."""
        grad, step = self._times(point)[:2]
        passes, steps = np.log(grad / self.data.pass_time), np.log(step / self.data.step_time)
        return np.concatenate([self.root * passes, self.root * steps, [math.sqrt(GAMMA_RIDGE) * (point[-1] - gamma)]])

    def _jacobian(self, point: Floats) -> Floats:
        """Of the errors, (2n + 1, free + 1): ∂P/∂T = (T/P)^(γ−1) for both times, ∂P/∂γ = P/γ·Σ_T (T/P)^γ·log(T/P)."""
        gamma, root = point[-1], self.root[:, None]
        grad, step, last, grad_part, sync_part = self._times(point)
        by_grad = self.data.accum_steps + grad_part ** (gamma - 1)
        by_free = by_grad[:, None] * self.grad + (sync_part ** (gamma - 1))[:, None] * self.sync
        by_gamma = last / gamma * (_x_log_x(grad_part, gamma) + _x_log_x(sync_part, gamma))
        zero = np.zeros((len(grad), 1))
        return np.concatenate(
            [
                root * np.concatenate([self.grad / grad[:, None], zero], axis=1),
                root * np.concatenate([by_free, by_gamma[:, None]], axis=1) / step[:, None],
                math.sqrt(GAMMA_RIDGE) * np.eye(1, len(point), len(point) - 1),
            ]
        )


def _nonnegative(matrix: Floats, wanted: Floats) -> Floats:
    """The x ≥ 0 that minimises |matrix·x − wanted|²; shape (columns,)."""
    from scipy.optimize import nnls

    try:
        solution: Floats = nnls(matrix, wanted)[0]
    except (RuntimeError, ValueError):  # out of iterations, or not finite: the caller sees that it is no improvement
        return np.full(matrix.shape[1], 0.5)
    return solution


def _x_log_x(x: Floats, power: float) -> Floats:
    """x^power · log x, with 0 at 0."""
    return np.where(x > 0, x**power * np.log(np.where(x > 0, x, 1.0)), 0.0)


def _perf_params(data: _Data, theta: Floats, gamma: float) -> PerfParams:
    """In seconds and samples."""
    alpha_c, beta_c, alpha_n, beta_n, alpha_r, beta_r = (float(value) * data.time_s for value in theta)
    return PerfParams(
        alpha_c=alpha_c,
        beta_c=beta_c / data.samples,
        alpha_n=alpha_n,
        beta_n=beta_n,
        alpha_r=alpha_r,
        beta_r=beta_r,
        gamma=min(max(gamma, 1.0), 10.0),
    )
