from __future__ import annotations

import dataclasses

from adaptdl.report import comparison_table, job_table
from tests.report.results import simulated


def test_results_are_compared_side_by_side_with_units() -> None:
    results = {"two GPUs": simulated(), "one": simulated(num_gpus=1)}
    assert comparison_table(results).splitlines() == [
        "                            two GPUs    one",
        "───────────────────────────────────────────",
        "jobs                               3      3",
        "average completion time  s     133.3  200.0",
        "median completion time   s     100.0  200.0",
        "99th percentile          s     198.0  298.0",
        "makespan                 s     200.0  300.0",
        "replicas held            h      0.08   0.08",
        "utilisation              %      75.0  100.0",
        "reallocations per job           0.00   0.00",
        "jobs waiting, average            0.5    1.0",
        "average, to the first    ×      1.00   1.50",
    ]


def test_what_there_is_none_of_has_no_row() -> None:
    alone = simulated()
    table = comparison_table({"alone": alone})
    assert not any(words in table for words in ("stopped early", "lost", "best trial", "to the first"))
    job = dataclasses.replace(alone.jobs[0], stopped=True, lost_progress=25.0, score=0.9)
    some = dataclasses.replace(alone, jobs=(job, *alone.jobs[1:]))
    lines = comparison_table({"some": some}).splitlines()
    values = {line[:26].strip(): line.split()[-1] for line in lines}
    assert values["stopped early"] == "1"
    assert values["training lost with nodes  %"[:26].strip()] == "6.67"  # a fifth of one job's, of three
    assert values["best trial complete"] == "100.0"


def test_nothing_is_an_empty_table() -> None:
    assert comparison_table({}) == ""


def test_jobs_are_listed_in_order_of_arrival() -> None:
    result = simulated()
    lines = job_table(result).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["job-0", "job-1", "job-2"]
    assert lines[4].split() == ["job-2", "perfect", "0.0", "200.0", "200.0", "100.0", "0", "0.03", "complete"]
    assert len({len(line) for line in lines}) == 1
