"""The noise scale φ that is measured, beside the true one: at fixed parameters, and while networks learn.

    python benchmarks/noise_scale.py --plot noise_scale.png
    python benchmarks/noise_scale.py --steps 2000 --training-steps 1500 --no-check

At fixed parameters: the mean (bias) and the standard deviation (spread) of the library's running estimates, by the truth of a
small network on samples of a known distribution. A single replica makes one step in 8 to 32 of two parts, where a step is of one;
with Adam, norms are taken as often as they are for a user: as a hundredth of the time pays for, or in one step of 32.

While networks learn, the estimate is compared every so many steps with the φ of the parameters as they are then, from the
gradients of all samples. Beside it, from the same steps of a single replica: what pairs of consecutive steps tell, from which
Pollux estimates. It takes about 10 minutes, and exits with 1 if one of the bounds does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json
from noises.fixed import SKIPPED_STEPS, Measured, measure
from noises.following import Look, follow
from noises.plot import plot
from noises.problems import PROBLEMS
from noises.running import open_processes
from noises.training import Case
from noises.truth import Noise

_MAX_BIAS = 0.05
_MAX_DISTANCE = 0.9
"""Along a training; with splits too rare it was 1.1 and 2."""
_SHARE_BY_REPLICAS = {1: 1.0, 2: 0.5, 4: 0.3}
_SHARE_IF_DENSE = 0.2
"""Of the steps: the more replicas, the longer they take; fewer will do where norms are taken in every step."""
_MORE_IF_RARE = 3
"""So many times as many steps where they are taken in the fewest."""


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(torch=torch.__version__)
    print_machine(machine)
    fixed, followed = {}, {}
    with open_processes() as processes:
        for case, measured in processes.run(measure, [(case, _num_steps(case, args.steps)) for case in fixed_cases()]):
            print(f"{case.name}: {', '.join(_cells(measured))}", flush=True)
            fixed[case] = measured
        cases = [Case(problem=problem, num_replicas=number) for problem in PROBLEMS for number in (1, 2)]
        steps = [(case, min(PROBLEMS[case.problem].num_steps, args.training_steps)) for case in cases]
        for case, looks in processes.run(follow, steps):
            print(f"{case.problem} × {case.num_replicas}: {len(looks)} looks", flush=True)
            followed[case] = looks
    print_fixed(fixed)
    print_followed(followed)
    if args.plot is not None:
        plot(followed, args.plot)
    verdicts = list(bounds(fixed, followed))
    write_json(args.json, as_json(machine, fixed, followed, verdicts))
    return conclude(verdicts, check=args.check)


def fixed_cases() -> list[Case]:
    """Each way to train on 1, 2 and 4 replicas: optimizer, passes of a step, precision."""
    ways = [*itertools.product(("SGD", "Adam"), (1, 4), (False,)), ("SGD", 1, True), ("Adam", 4, True)]
    return [
        Case(problem="known", num_replicas=num_replicas, optimizer=optimizer, num_parts=num_parts, bf16=bf16)
        for num_replicas in (1, 2, 4)
        for optimizer, num_parts, bf16 in ways
    ]


def _num_steps(case: Case, most: int) -> int:
    factor = _SHARE_BY_REPLICAS[case.num_replicas]
    if case.optimizer == "Adam":
        factor *= _MORE_IF_RARE
    elif case.num_replicas * case.num_parts > 1:
        factor *= _SHARE_IF_DENSE
    return SKIPPED_STEPS + int(most * factor)


def biases(measured: Measured) -> tuple[float, float]:
    """Mean / truth − 1 of |g|² and tr Σ."""
    mean, truth = measured.mean, measured.truth
    return mean.grad_sqr / truth.grad_sqr - 1, mean.grad_var / truth.grad_var - 1


def _cells(measured: Measured) -> list[str]:
    truth, spread = measured.truth, measured.spread
    spreads = spread.grad_sqr / truth.grad_sqr, spread.grad_var / truth.grad_var
    found = [*zip(biases(measured), spreads, strict=True)]
    found.append((measured.ratio_mean / truth.ratio - 1, measured.ratio_spread / truth.ratio))
    return [f"{bias:+.1%} ± {measured.uncertainty * each:.1%} ({each:.0%})" for bias, each in found]


def print_fixed(fixed: Mapping[Case, Measured]) -> None:
    """Bias ± its standard error, and in brackets the spread of single estimates."""
    rows = [["fixed parameters", "φ / M₀", "|g|²: bias ± error (spread)", "tr Σ", "φ"]]
    rows += [[case.name, f"{measured.truth.ratio:.2f}", *_cells(measured)] for case, measured in fixed.items()]
    print()
    print_table(rows)


def estimates(case: Case, looks: Sequence[Look]) -> dict[str, list[tuple[Look, Noise]]]:
    """By the name of the estimate."""
    found = {"AdaptDL": [(look, look.measured) for look in looks]}
    if case.num_replicas == 1:
        found["consecutive"] = [(look, look.consecutive) for look in looks]
    return found


def print_followed(followed: Mapping[Case, Sequence[Look]]) -> None:
    """How far the estimates are from the truth of the same step, at the middle and at the worst; and whether they are biased:
    their sums by those of the true values, from step 1000 on."""
    rows = [["learning", "looks", "φ / M₀", "by", "|g|² / true", "tr Σ / true", "|log(φ̂ / φ)|", "worst", "at step"]]
    for case, looks in followed.items():
        ratios = [look.truth.ratio for look in looks]
        for name, pairs in estimates(case, looks).items():
            worst = max(pairs, key=lambda pair: pair[0].distance(pair[1]))
            rows.append(
                [
                    f"{case.problem} × {case.num_replicas}",
                    str(len(looks)),
                    f"{min(ratios):.2g}–{max(ratios):.2g}",
                    name,
                    f"{_of_truth(pairs, 'grad_sqr'):.2f}",
                    f"{_of_truth(pairs, 'grad_var'):.2f}",
                    f"{_median_distance(pairs):.2f}",
                    f"{worst[0].distance(worst[1]):.2f}",
                    str(worst[0].step),
                ]
            )
    print()
    print_table(rows)


def _of_truth(pairs: Sequence[tuple[Look, Noise]], name: str) -> float:
    """Sum of the estimates over that of the true values, once the start of the training is left behind."""
    settled = [(look, found) for look, found in pairs if look.step > SKIPPED_STEPS]
    return sum(getattr(found, name) for _, found in settled) / sum(getattr(look.truth, name) for look, _ in settled)


def _median_distance(pairs: Sequence[tuple[Look, Noise]]) -> float:
    return statistics.median(look.distance(found) for look, found in pairs)


def bounds(fixed: Mapping[Case, Measured], followed: Mapping[Case, Sequence[Look]]) -> Iterator[Bound]:
    """All that must hold."""
    for case, measured in fixed.items():
        worst = max(map(abs, biases(measured)))
        yield Bound(text=f"{case.name}: bias of |g|² and tr Σ ≤ {_MAX_BIAS:.0%}", value=worst, holds=worst <= _MAX_BIAS)
    for case, looks in followed.items():
        found = {name: _median_distance(pairs) for name, pairs in estimates(case, looks).items()}
        text = f"{case.problem} × {case.num_replicas}: median |log(φ̂ / φ)| ≤ {_MAX_DISTANCE}"
        yield Bound(text=text, value=found["AdaptDL"], holds=found["AdaptDL"] <= _MAX_DISTANCE)
        if case.num_replicas == 1:
            ours, other = found["AdaptDL"], found["consecutive"]
            text = f"{case.problem}: median |log(φ̂ / φ)| ≤ that of consecutive steps"
            yield Bound(text=text, value=ours, holds=ours <= other, remark=f"{other:.3g}")


def as_json(
    machine: Mapping[str, object],
    fixed: Mapping[Case, Measured],
    followed: Mapping[Case, Sequence[Look]],
    verdicts: Sequence[Bound],
) -> dict[str, object]:
    """Every single look."""

    def plain(found: Look | Measured) -> dict[str, object]:
        return {name: vars(value) if isinstance(value, Noise) else value for name, value in vars(found).items()}

    return {
        "run": machine,
        "fixed": [{"case": vars(case), **plain(measured)} for case, measured in fixed.items()],
        "learning": [
            {"case": vars(case), "looks": [plain(look) for look in looks]} for case, looks in followed.items()
        ],
        "bounds": [vars(verdict) for verdict in verdicts],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000, help="at fixed parameters, of a single replica")
    parser.add_argument("--training-steps", type=int, default=sys.maxsize, help="the most that a training has")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the trainings there")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single look there")
    args = parser.parse_args(arguments)
    if args.steps < 500 or args.training_steps < 1500:
        parser.error("--steps must be ≥ 500, and --training-steps ≥ 1500")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
