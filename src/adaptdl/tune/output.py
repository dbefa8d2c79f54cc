"""Replicas, batch size and goodput in the status tables of both of Tune's output engines.

Both keep the columns they know in tables of their own; ours are put there when an experiment is set up.
"""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["TABLE_COLUMNS", "add_table_columns"]

TABLE_COLUMNS = {
    "adaptdl/num_replicas": "replicas",
    "adaptdl/batch_size": "batch size",
    "adaptdl/goodput": "goodput",
}
"""Result key → heading."""


def add_table_columns() -> None:
    """Adds the columns. May be called again."""
    from ray.tune.experimental import output
    from ray.tune.progress_reporter import TuneReporterBase

    tables: tuple[MutableMapping[str, str], ...] = (output.DEFAULT_COLUMNS, TuneReporterBase.DEFAULT_COLUMNS)
    for table in tables:
        for key, heading in TABLE_COLUMNS.items():
            table.setdefault(key, heading)
