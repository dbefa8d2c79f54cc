"""Prices of resources: what is worth having, and a bound on the objective, before any program is solved.

  λ_r       price of a unit of resource r                             ≥ 0
  a_jr      what a replica of job j needs of it
  F_r       what all nodes have of it
  v_jc      value of choice c of job j, of K_c replicas
  L(λ)      Σ_j max(0, max_c v_jc − K_c·Σ_r λ_r a_jr) + Σ_r λ_r F_r

L(λ) is a bound for any λ (Lagrangian relaxation: all nodes together as one). At the λ where it is lowest, demand and
supply meet, and a job is hardly ever better off with a choice whose surplus v − K·λa is far from the job's best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.wishes import Options

__all__ = ["Choices", "Form", "Prices", "resource_prices"]

SWEEPS = 4
"""Over the resources, each price in turn at its best. With one resource the first finds the lowest bound."""

STEPS = 40
"""In which the interval of a price shrinks to 2/3 each."""


class Form(IntEnum):
    """Of a choice."""

    STAY = 0
    SINGLE = 1
    SPANNING = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """All choices of all jobs, ordered by job; arrays of shape (c,)."""

    job: NDArray[np.int64]
    form: NDArray[np.int64]
    position: NDArray[np.int64]
    """Among the job's choices of that form."""
    num_replicas: NDArray[np.int64]
    value: NDArray[np.float64]
    """Over having nothing, > 0; at most, if it is a little less on more nodes."""

    @classmethod
    def of(cls, options: Sequence[Options]) -> Choices:
        found: list[tuple[int, int, int, int, float]] = []
        for j, option in enumerate(options):
            if option.standing and option.stay > 0:
                found.append((j, Form.STAY, 0, sum(option.standing.values()), option.stay))
            near = option.near
            found += [(j, Form.SINGLE, i, k, value + near) for i, (k, value) in enumerate(option.single)]
            found += [(j, Form.SPANNING, i, k, value + near) for i, (k, _, _, value) in enumerate(option.spanning)]
        columns = np.array(found, dtype=np.float64).reshape(len(found), 5)
        job, form, position, num_replicas = columns[:, :4].astype(np.int64).T
        return cls(job=job, form=form, position=position, num_replicas=num_replicas, value=columns[:, 4])

    def best(self, surplus: NDArray[np.float64], num_jobs: int) -> NDArray[np.float64]:
        """The largest surplus among each job's choices, or 0 for having nothing; shape (j,)."""
        best = np.zeros(num_jobs)
        np.maximum.at(best, self.job, surplus)
        return best

    def only(self, options: Sequence[Options], kept: NDArray[np.bool_]) -> list[Options]:
        """The options with only some of the choices. Staying, where possible, always is."""
        single: list[list[tuple[int, float]]] = [[] for _ in options]
        spanning: list[list[tuple[int, int, int, float]]] = [[] for _ in options]
        chosen = zip(self.job[kept].tolist(), self.form[kept].tolist(), self.position[kept].tolist(), strict=True)
        for j, form, i in chosen:
            if form == Form.SINGLE:
                single[j].append(options[j].single[i])
            elif form == Form.SPANNING:
                spanning[j].append(options[j].spanning[i])
        return [replace(option, single=single[j], spanning=spanning[j]) for j, option in enumerate(options)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prices:
    """Prices at which what the jobs want is about what is there."""

    of_replicas: NDArray[np.float64]
    """Of one replica of each job, λ·a_j, shape (j,)."""
    surplus: NDArray[np.float64]
    """Of each job's best choice, 0 if it is best off with nothing; shape (j,)."""
    bound: float
    """L(λ): no allocations are worth more."""


def resource_prices(choices: Choices, need: NDArray[np.float64], supply: NDArray[np.float64]) -> Prices:
    """The λ of (nearly) the lowest bound. `need` has shape (j, r), `supply` (r,)."""
    asked = choices.num_replicas[:, None] * need[choices.job]  # (c, r)
    starts = np.flatnonzero(np.diff(choices.job, prepend=-1))

    def bound(price: NDArray[np.float64]) -> float:
        surplus = choices.value - asked @ price
        best = np.maximum.reduceat(surplus, starts) if starts.size else surplus
        return float(best.clip(0).sum() + price @ supply)

    price = np.zeros(need.shape[1])
    scarce = [r for r in range(len(price)) if asked[:, r].any()]
    for _ in range(SWEEPS if len(scarce) > 1 else 1):
        for resource in scarce:
            uses = asked[:, resource] > 0
            high = float((choices.value[uses] / asked[uses, resource]).max())
            trial = _lowest(bound, price, resource, high)
            if bound(trial) < bound(price):
                price = trial
    best = choices.best(choices.value - asked @ price, len(need))
    return Prices(of_replicas=need @ price, surplus=best, bound=bound(price))


def _lowest(
    bound: Callable[[NDArray[np.float64]], float], price: NDArray[np.float64], resource: int, high: float
) -> NDArray[np.float64]:
    """`price`, but that of one resource the best one up to `high`: the bound is convex in it."""

    def at(value: float) -> NDArray[np.float64]:
        trial = price.copy()
        trial[resource] = value
        return trial

    low = 0.0
    for _ in range(STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if bound(at(left)) < bound(at(right)):
            high = right
        else:
            low = left
    return at((low + high) / 2)
