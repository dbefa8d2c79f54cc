"""Whether the fit of the throughput model predicts step times that it has not seen: on the published profiles of six models.

    python benchmarks/throughput_fit.py --traces DIR

DIR holds the published data (`traces/`), which are not in this repository: docs/simulator.md says where they are from.

From an application's step times, 30 configurations (nodes, replicas, samples per pass) are drawn, as a trial may have seen them.
Each is left out once: the others are fitted, and the step time of the one left out is predicted, by the fit and by the prior
(perfect scaling, with the factor that suits the others best). It takes about a minute, and exits with 1 if one of the bounds
does not hold.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from findings import Bound, conclude, describe_machine, print_machine, print_table, write_json

from adaptdl.goodput import Observation, Profile, ProfileKey, fit_perf_params, step_time_s
from adaptdl.sim import TracedApplication, read_applications

_NUM_CONFIGURATIONS = 30
_COUNT = 100
"""Steps that a mean is over: the published times are means over many."""
_MAX_ERROR, _MAX_FIT_S = 0.10, 0.05


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One configuration that was predicted from others."""

    fit_error: float
    """|predicted − measured| / measured step time."""
    prior_error: float
    fit_s: float
    """How long the fit took."""


def main(args: argparse.Namespace) -> int:
    """Runs all, prints it, and says with which status to exit."""
    machine = describe_machine(numpy=np.__version__, scipy=scipy.__version__)
    print_machine(machine)
    found = {}
    for name, application in read_applications(args.traces).items():
        rng = np.random.default_rng(args.seed)
        times = list(published(application))
        found[name] = [one for _ in range(args.draws) for one in leave_one_out(drawn(times, _NUM_CONFIGURATIONS, rng))]
    rows = [["", "left out", "median error", "90 %", "prior's median", "median fit"]]
    for name, left_out in found.items():
        errors = [one.fit_error for one in left_out]
        fit_ms = 1e3 * statistics.median(one.fit_s for one in left_out)
        rows.append(
            [
                name,
                str(len(left_out)),
                f"{statistics.median(errors):.1%}",
                f"{np.quantile(errors, 0.9):.1%}",
                f"{statistics.median(one.prior_error for one in left_out):.1%}",
                f"{fit_ms:.1f} ms",
            ]
        )
    print()
    print_table(rows)
    verdicts = list(bounds(found))
    content = {"run": machine, "left_out": {name: [vars(one) for one in left_out] for name, left_out in found.items()}}
    write_json(args.json, {**content, "bounds": [vars(verdict) for verdict in verdicts]})
    return conclude(verdicts, check=args.check)


def published(application: TracedApplication) -> Iterator[tuple[ProfileKey, Observation]]:
    """All its step times; several may have the same key, on nodes with other numbers of replicas."""
    for shape, points in application.placements.items():
        for point in points:
            yield _observed(len(shape), sum(shape), *point)
    for num_nodes, num_replicas, *point in application.scalability:
        yield _observed(int(num_nodes), int(num_replicas), *point)


def _observed(
    num_nodes: int, num_replicas: int, local_bsz: float, step_time_s: float, sync_time_s: float
) -> tuple[ProfileKey, Observation]:
    key = ProfileKey(num_nodes=num_nodes, num_replicas=num_replicas, atomic_batch_size=int(local_bsz), accum_steps=0)
    return key, Observation(step_time_s=float(step_time_s), sync_time_s=float(sync_time_s), count=_COUNT)


def drawn(times: Sequence[tuple[ProfileKey, Observation]], number: int, rng: np.random.Generator) -> Profile:
    """So many different configurations, each as it was on one placement."""
    profile: dict[ProfileKey, Observation] = {}
    for index in rng.permutation(len(times)):
        key, observation = times[index]
        profile.setdefault(key, observation)
        if len(profile) == number:
            break
    return profile


def leave_one_out(profile: Profile) -> Iterator[LeftOut]:
    """Each configuration, predicted from the others."""
    for key, observation in profile.items():
        others = {other: seen for other, seen in profile.items() if other != key}
        begun = time.perf_counter()
        fit = fit_perf_params(others)
        fit_s = time.perf_counter() - begun
        predicted = float(
            step_time_s(fit.perf_params, key.num_nodes, key.num_replicas, key.atomic_batch_size, key.accum_steps)
        )
        per_sample = math.exp(
            statistics.fmean(math.log(seen.step_time_s / other.atomic_batch_size) for other, seen in others.items())
        )
        measured = observation.step_time_s
        yield LeftOut(
            fit_error=abs(predicted / measured - 1),
            prior_error=abs(per_sample * key.atomic_batch_size / measured - 1),
            fit_s=fit_s,
        )


def bounds(found: Mapping[str, Sequence[LeftOut]]) -> Iterator[Bound]:
    """All that must hold."""
    for name, left_out in found.items():
        error = statistics.median(one.fit_error for one in left_out)
        prior = statistics.median(one.prior_error for one in left_out)
        yield Bound(text=f"{name}: median error ≤ {_MAX_ERROR:.0%}", value=error, holds=error <= _MAX_ERROR)
        yield Bound(
            text=f"{name}: median error ≤ the prior's", value=error, holds=error <= prior, remark=f"{prior:.3g}"
        )
    fit_s = statistics.median(one.fit_s for left_out in found.values() for one in left_out)
    yield Bound(text=f"median time of a fit ≤ {_MAX_FIT_S:g} s", value=fit_s, holds=fit_s <= _MAX_FIT_S)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    default = Path(__file__).resolve().parents[1] / "../shared/traces/pollux"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=default, help="folder of the published data")
    parser.add_argument("--draws", type=int, default=10, help="sets of configurations per application")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit with 0 whether bounds hold or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single prediction there")
    args = parser.parse_args(arguments)
    if args.draws < 1:
        parser.error("--draws must be ≥ 1")
    if not (args.traces / "traces").is_dir():
        parser.error(f"there is no published data in {args.traces}")
    return args


if __name__ == "__main__":
    sys.exit(main(parse()))
