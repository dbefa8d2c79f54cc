"""The program of many jobs, solved through its linear relaxation with few of the choices at a time.

Most choices are far from what a job could reasonably get, and prices tell which. So the relaxation is solved with those
that are near the best at estimated prices; its duals are better prices, and tell which of the others are missing (hardly
any). What is left out then costs a job more than it is worth, and the bound holds for all choices (see `prices` for the
argument, here with prices of pieces in place of resources).

The relaxation leaves hardly anything fractional. With all clear choices made little is left to decide, and the result
is nearly always as good as the relaxation. If not, whatever would lose more than the gap is left out for good, and the
rest is solved exactly, as far as a limited search goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adaptdl.policy.milp import AllocationProgram, Solution
from adaptdl.policy.patterns import NodeClass
from adaptdl.policy.prices import Choices, Form, Prices
from adaptdl.policy.program import Relaxation
from adaptdl.policy.wishes import Options

__all__ = ["sift"]

NEAR = 0.03
"""Choices are tried at first if their surplus is within so much of the best one's (of 0.3, if that is less), and within
the price of two replicas."""

WEIGHTS = (1.0, 0.95, 0.8, 0.5, 0.2)
"""Of the duals against the estimated prices. Duals alone jump from one relaxation to the next."""

MAX_RELAXATIONS = 6
"""After which the bound is left a little too high."""

POOR = 1e-3
"""A gap so large that it is not only the clear choices that are to blame, but having made them."""

MAX_SEARCH_NODES = 50
"""Of the search tree of the exact program: most of what it can gain it has gained by then."""


def sift(
    options: Sequence[Options],
    classes: Sequence[NodeClass],
    choices: Choices,
    prices: Prices,
    *,
    remaining_s: Callable[[], float],
    known: float,
    gap: float,
    enough: float,
) -> Solution:
    """The most valuable choices that fit, within a fraction `gap` of the best if a limited search finds them, and it is
    not limited to less than `enough`. `choices` are those of `options`, `prices` are estimates, and something worth
    `known` exists."""
    relaxed = _relax(options, classes, choices, prices, remaining_s, enough / 4)
    if relaxed is None:
        return Solution(wishes=None, cuts={}, worth=-math.inf, bound=prices.bound, optimal=False)
    model, bound = relaxed.model, relaxed.bound

    def run(model: AllocationProgram, chosen: Sequence[int] = ()) -> Solution:
        # Half of the time, so that there is some for what follows.
        return model.solution(model.program.run(remaining_s() / 2, gap=gap, chosen=chosen, max_nodes=MAX_SEARCH_NODES))

    found = run(model, relaxed.clear(model.choices))
    if bound - max(known, found.worth) > POOR * abs(bound):
        # What makes choices impossible together is hardly ever staying.
        found = _better(found, run(model, relaxed.clear(model.staying)))
    known = max(known, found.worth)
    if bound - known > enough * abs(bound) and remaining_s() > 0:
        kept = (choices.form == Form.STAY) | (relaxed.loss <= bound - known)
        exact = run(AllocationProgram(choices.only(options, kept), classes))
        # Whatever was left out is worth less than what is known.
        bound = min(bound, max(exact.bound, known))
        found = _better(found, exact)
    return replace(found, bound=bound, optimal=bound - found.worth <= gap * abs(bound))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Relaxed:
    """The relaxation of all choices, of which `model` has those that matter."""

    model: AllocationProgram
    values: NDArray[np.float64]
    """Of the model's variables."""
    bound: float
    loss: NDArray[np.float64]
    """By choice: how much lower the bound is, at least, for allocations that have it; shape (c,)."""

    def clear(self, columns: Sequence[int]) -> list[int]:
        """Those that are 1."""
        return [column for column in columns if self.values[column] > 1 - 1e-6]


def _relax(
    options: Sequence[Options],
    classes: Sequence[NodeClass],
    choices: Choices,
    prices: Prices,
    remaining_s: Callable[[], float],
    tolerance: float,
) -> _Relaxed | None:
    """The relaxation, its bound right up to a fraction `tolerance`; None if the time is too short."""
    at_prices = choices.value - choices.num_replicas * prices.of_replicas[choices.job]  # (c,), surplus
    near = np.minimum(NEAR * np.maximum(prices.surplus, 0.3), 2 * prices.of_replicas)  # (j,)
    kept = (choices.form == Form.STAY) | (at_prices >= (prices.surplus - near)[choices.job])
    attempts = 0
    while True:
        attempts += 1
        model = AllocationProgram(choices.only(options, kept), classes)
        relaxed = model.program.relax(remaining_s())
        if relaxed is None:
            return None
        at_duals = _surplus(options, model, relaxed, choices)
        # Both are prices at which the bound holds, and so is whatever lies between them.
        rest = relaxed.bound - sum(relaxed.duals[job.row] for job in model.jobs), prices.bound - prices.surplus.sum()
        reach, surplus, best = math.inf, at_duals, prices.surplus
        for weight in WEIGHTS:
            between = weight * at_duals + (1 - weight) * at_prices
            of_jobs = choices.best(between, len(options))
            total = float(of_jobs.sum() + weight * rest[0] + (1 - weight) * rest[1])
            if total < reach:
                reach, surplus, best = total, between, of_jobs
        bound = min(reach, prices.bound)
        if bound - relaxed.bound <= tolerance * abs(bound) or attempts == MAX_RELAXATIONS:
            loss = best[choices.job] - surplus - (reach - bound)
            return _Relaxed(model=model, values=relaxed.values, bound=bound, loss=loss)
        for prices_at in (surplus, at_duals):
            # What a job misses, and what comes near: prices are going to change.
            ours = choices.best(np.where(kept, prices_at, 0.0), len(options))
            best = choices.best(prices_at, len(options))
            more = (best > ours)[choices.job] & (prices_at > (best - near)[choices.job])
            if (more & ~kept).any():
                kept |= more
                break


def _better(one: Solution, other: Solution) -> Solution:
    return other if other.worth > one.worth else one


def _surplus(
    options: Sequence[Options], model: AllocationProgram, relaxed: Relaxation, choices: Choices
) -> NDArray[np.float64]:
    """Of each choice at the prices of a relaxation, at least; shape (c,)."""
    of_pieces = model.cut.prices(relaxed.duals)
    kind = np.array([option.kind for option in options])[choices.job]
    num_kinds = 1 + max([int(kind.max()), *(piece.kind for piece in of_pieces)])
    shape = (num_kinds, 1 + int(choices.num_replicas.max()))
    single, spanning = np.full(shape, np.inf), np.full(shape, np.inf)  # (kinds, sizes)
    for piece, price in of_pieces.items():
        if piece.size < shape[1]:
            (spanning if piece.spanning else single)[piece.kind, piece.size] = price
    spanning = np.array([_several(price) for price in spanning])
    cost = np.where(
        choices.form == Form.SINGLE,
        single[kind, choices.num_replicas],
        spanning[kind, choices.num_replicas],
    )
    staying = np.zeros(len(options))
    for j, job in enumerate(model.jobs):
        if job.stay is not None:
            staying[j] = relaxed.reduced[job.stay] + relaxed.duals[job.row]
    return np.where(choices.form == Form.STAY, staying[choices.job], choices.value - cost)


def _several(price: NDArray[np.float64]) -> NDArray[np.float64]:
    """By number of replicas: what they cost in two or more pieces, where `price` is that of a piece, by size."""
    sizes = np.flatnonzero(np.isfinite(price))
    any_number, several = price.copy(), np.full(len(price), np.inf)
    for num_replicas in range(2, len(price)):
        first = sizes[: np.searchsorted(sizes, num_replicas)]
        if first.size:
            several[num_replicas] = (price[first] + any_number[num_replicas - first]).min()
            any_number[num_replicas] = min(any_number[num_replicas], several[num_replicas])
    return several
