"""Replicas, batch size and goodput in the status tables of both of Tune's output engines.

Both keep the columns they know in tables of their own; ours are put there when an experiment is set up. Other columns
they guess from the results; our others are kept out of that, as they would take the place of the user's.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ray.tune import progress_reporter
from ray.tune.experimental import output

from adaptdl.runtime.news import COLUMNS

__all__ = ["TABLE_COLUMNS", "add_table_columns"]

TABLE_COLUMNS = {
    "adaptdl/num_replicas": "replicas",
    "adaptdl/batch_size": "batch size",
    "adaptdl/goodput": "goodput",
}
"""Result key → heading."""


def add_table_columns() -> None:
    """Adds the columns. May be called again."""
    tables: tuple[MutableMapping[str, str], ...] = (
        output.DEFAULT_COLUMNS,
        progress_reporter.TuneReporterBase.DEFAULT_COLUMNS,
    )
    for table in tables:
        for key, heading in TABLE_COLUMNS.items():
            table.setdefault(key, heading)
    engines: tuple[Any, ...] = (output, progress_reporter)
    for engine in engines:
        known = tuple(engine.AUTO_RESULT_KEYS)
        engine.AUTO_RESULT_KEYS = (*known, *(key for key in COLUMNS if key not in known))
