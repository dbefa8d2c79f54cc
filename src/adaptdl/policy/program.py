"""A sparse mixed-integer program under construction, and the runs of the solver (HiGHS, through scipy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outcome", "Program", "Relaxation"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Of one run of the solver."""

    values: NDArray[np.int64] | None
    """The variables; None if the time was too short for any."""
    worth: float = -math.inf
    """Of these."""
    bound: float
    """No variables are worth more."""
    optimal: bool
    """Whether these are proven to be the best ones, up to the gap asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxation:
    """The best fractional variables."""

    values: NDArray[np.float64]
    bound: float
    """What they are worth; no integers are worth more."""
    duals: NDArray[np.float64]
    """By row: what one more on its right side is worth."""
    reduced: NDArray[np.float64]
    """By variable: its value less what it takes, at these prices; ≤ 0."""


class Program:
    """Maximise Σ value·x, low ≤ rows ≤ high, 0 ≤ x ≤ most, x integer."""

    def __init__(self) -> None:
        self.value: list[float] = []
        self.most: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.entries: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def variable(self, value: float = 0.0, most: float = 1.0) -> int:
        self.value.append(value)
        self.most.append(most)
        return len(self.value) - 1

    def row(self, low: float = -math.inf, high: float = 0.0) -> int:
        self.low.append(low)
        self.high.append(high)
        return len(self.low) - 1

    def add(self, row: int, column: int, entry: float) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.entries.append(entry)

    def run(
        self, time_limit_s: float, *, gap: float = 0.0, chosen: Sequence[int] = (), max_nodes: int | None = None
    ) -> Outcome:
        """The best variables found in time, and in so many nodes of the search tree, those `chosen` being 1."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        if not self.value:
            # Rows that want something of nothing cannot be satisfied.
            possible = all(low <= 0 <= high for low, high in zip(self.low, self.high, strict=True))
            return Outcome(
                values=np.zeros(0, dtype=np.int64) if possible else None, worth=0.0, bound=0.0, optimal=possible
            )
        if time_limit_s <= 0:
            return Outcome(values=None, bound=math.inf, optimal=False)
        least = np.zeros(len(self.value))
        least[list(chosen)] = 1.0
        options: dict[str, Any] = {"time_limit": time_limit_s, "mip_rel_gap": gap}
        if max_nodes is not None:
            options["node_limit"] = max_nodes
        value = np.array(self.value)
        result = milp(
            -value,
            integrality=np.ones(len(value)),
            bounds=Bounds(least, np.array(self.most)),
            constraints=LinearConstraint(self._matrix(), np.array(self.low), np.array(self.high)),
            options=options,
        )
        values = None if result.x is None else np.rint(result.x).astype(np.int64)
        return Outcome(
            values=values,
            worth=-math.inf if values is None else float(values @ value),
            bound=math.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound),
            optimal=result.status == 0,
        )

    def relax(self, time_limit_s: float) -> Relaxation | None:
        """The best fractional variables, `most` left aside; None if the time is too short."""
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        if time_limit_s <= 0:
            return None
        matrix, low, high = self._matrix(), np.array(self.low), np.array(self.high)
        equal = low == high
        above, below = np.isfinite(low) & ~equal, np.isfinite(high) & ~equal
        value = np.array(self.value)
        result = linprog(
            -value,
            A_ub=vstack([matrix[below], -matrix[above]]),
            b_ub=np.concatenate([high[below], -low[above]]),
            A_eq=matrix[equal] if equal.any() else None,
            b_eq=high[equal] if equal.any() else None,
            bounds=(0, None),
            method="highs-ds",
            options={"time_limit": time_limit_s},
        )
        if result.status != 0:
            return None
        duals = np.zeros(len(low))
        marginals = -np.asarray(result.ineqlin.marginals)
        duals[below] = marginals[: below.sum()]
        duals[above] -= marginals[below.sum() :]
        if equal.any():
            duals[equal] = -np.asarray(result.eqlin.marginals)
        reduced = value - matrix.T @ duals
        return Relaxation(values=np.asarray(result.x), bound=-float(result.fun), duals=duals, reduced=reduced)

    def _matrix(self) -> Any:
        from scipy.sparse import csr_array

        return csr_array((self.entries, (self.rows, self.columns)), shape=(len(self.low), len(self.value)))
