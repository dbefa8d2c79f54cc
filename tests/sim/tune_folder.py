"""Writes what Ray Tune leaves behind of an experiment with AdaptDL trials."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptdl.goodput import GradParams, PerfParams, efficiency, step_time_s

Stage = tuple[int, int, int, int]
"""Nodes, replicas, batch size, and results reported with them."""


def rows_of(
    trial_id: str,
    stages: Sequence[Stage],
    *,
    perf_params: PerfParams,
    noise: GradParams,
    init_batch_size: int,
    began_s: float = 1_000_000.0,
    steps: float = 100.0,
) -> list[dict[str, Any]]:
    """The results of a trial that trains exactly as the model says; each comes after so much more progress."""
    rows: list[dict[str, Any]] = []
    total_s = progress = 0.0
    for num_nodes, num_replicas, batch_size, num_results in stages:
        step_s = float(step_time_s(perf_params, num_nodes, num_replicas, -(-batch_size // num_replicas)))
        worth = float(efficiency(noise, init_batch_size, batch_size))
        for _ in range(num_results):
            progress += steps
            total_s += steps * init_batch_size / (batch_size / step_s * worth)
            rows.append(
                {
                    "accuracy": 1 - 1 / (1 + len(rows)),
                    "adaptdl/num_replicas": num_replicas,
                    "adaptdl/num_nodes": num_nodes,
                    "adaptdl/num_restarts": 0,
                    "adaptdl/batch_size": batch_size,
                    "adaptdl/goodput": batch_size / step_s * worth,
                    "adaptdl/efficiency": worth,
                    "adaptdl/progress": progress,
                    "adaptdl/pause_s": 0.0,
                    "done": False,
                    "training_iteration": len(rows) + 1,
                    "trial_id": trial_id,
                    "timestamp": began_s + total_s,
                    "time_total_s": total_s,
                    "config": {"lr": 0.1},
                }
            )
    return rows


def write_trial(folder: Path, rows: Sequence[dict[str, Any]], *, as_csv: bool = False) -> None:
    trial = folder / f"AdaptDLTrainable_{rows[0]['trial_id']}_1_lr=0.1"
    trial.mkdir(parents=True, exist_ok=True)
    if not as_csv:
        (trial / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with open(trial / "progress.csv", "w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_state(folder: Path, date: str, trial_ids: Sequence[str]) -> None:
    trials = [[json.dumps({"trial_id": trial_id}), "{}"] for trial_id in trial_ids]
    (folder / f"experiment_state-{date}.json").write_text(json.dumps({"trial_data": trials}))
