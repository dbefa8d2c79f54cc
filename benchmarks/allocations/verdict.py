"""What must hold of the measured decisions, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from findings import Bound

from allocations.published import Answer
from allocations.scale import Measured

__all__ = ["answer_bounds", "scale_bounds"]

ROUNDING = 1e-4
"""Recorded values have four decimals."""

MIN_RATIO = 20.0
MAX_GAP = 0.005
LARGEST_GPUS, MAX_WALL_S, MAX_BYTES = 10_000, 15.0, 4 * 2**30


def answer_bounds(answers: Sequence[Answer]) -> Iterator[Bound]:
    """Of the published instances; each value is that of the worst instance, which is named."""
    yield _largest("rules broken = 0", [(answer.violations, answer.name) for answer in answers], 0)
    for text, losses in (
        ("one call", [(_loss(a.scaled_first, a.peer_first), f"{a.name}, {a.peer}") for a in answers]),
        ("three calls", [(_loss(a.scaled_last, a.peer_last), f"{a.name}, {a.peer}") for a in answers]),
    ):
        known = [(loss, name) for loss, name in losses if loss is not None]
        yield _largest(f"the best recorded `scaled` less ours, after {text} ≤ {ROUNDING:g}", known, ROUNDING)
    ratio, name = min((answer.peer_cpu_s / answer.cpu_s, answer.name) for answer in answers)
    yield Bound(text=f"times less CPU than the genetic algorithm ≥ {MIN_RATIO:g}", value=float(ratio),
                holds=bool(ratio >= MIN_RATIO), remark=name)  # fmt: skip
    yield _largest(f"proven gap ≤ {MAX_GAP:g}", [(_gap(answer.gap), answer.name) for answer in answers], MAX_GAP)
    yield _largest("jobs moved that gain nothing by it = 0", [(a.for_nothing, a.name) for a in answers], 0)
    yield _largest("jobs changed by a second and third call = 0", [(a.changed_later, a.name) for a in answers], 0)
    yield _largest("objective differs from the script's ≤ 1e-9", [(a.objective_error, a.name) for a in answers], 1e-9)
    yield _largest("speedups differ from the script's ≤ 1e-9", [(a.table_error, a.name) for a in answers], 1e-9)


def scale_bounds(rounds: Sequence[Measured]) -> Iterator[Bound]:
    """Of generated clusters."""
    yield _largest("rules broken = 0", [(r.violations, _name(r)) for r in rounds], 0)
    yield _largest(f"proven gap ≤ {MAX_GAP:g}", [(_gap(r.gap), _name(r)) for r in rounds], MAX_GAP)
    large = [r for r in rounds if r.case.num_gpus >= LARGEST_GPUS]
    if large:
        where = f"{LARGEST_GPUS:,} GPUs: "
        yield _largest(f"{where}s ≤ {MAX_WALL_S:g}", [(r.wall_s, _name(r)) for r in large], MAX_WALL_S)
        yield _largest(f"{where}bytes < 4 GiB", [(r.peak_bytes, _name(r)) for r in large], MAX_BYTES - 1)


def _largest(text: str, values: Sequence[tuple[float, str]], most: float) -> Bound:
    value, name = max(values)
    return Bound(text=text, value=float(value), holds=bool(value <= most), remark=name if value else "")


def _loss(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else theirs - ours


def _gap(gap: float | None) -> float:
    return float("inf") if gap is None else gap


def _name(measured: Measured) -> str:
    case = measured.case
    kinds = ", mixed" if case.mixed else ""
    round_of = f"churn {measured.churn}" if measured.churn else "empty"
    return f"{case.num_gpus:,} GPUs, fairness {case.fairness:g}{kinds}, {round_of}"
