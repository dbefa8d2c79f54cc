"""Tune's log of a trial that goes on ends with the last result that its driver knows of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

import pytest

from adaptdl.tune.bookkeeper import _csv_rows, _cut, _json_rows

RESULTS = [{"training_iteration": number, "timestamp": 1000 + number, "text": 'a, "b"'} for number in range(1, 6)]


def as_json(results: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(result) + "\n" for result in results).encode()


def as_csv(results: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "training_iteration", "timestamp"])
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue().encode()


@pytest.mark.parametrize(("write", "rows"), [(as_json, _json_rows), (as_csv, _csv_rows)])
def test_what_will_come_again_is_cut_off(write: Any, rows: Any) -> None:
    assert _cut(write(RESULTS), rows, RESULTS[2]) == write(RESULTS[:3])
    assert _cut(write(RESULTS), rows, RESULTS[-1]) == write(RESULTS)
    assert _cut(write(RESULTS)[:-5], rows, RESULTS[3]) == write(RESULTS[:4])  # half a line at the end


@pytest.mark.parametrize(("write", "rows"), [(as_json, _json_rows), (as_csv, _csv_rows)])
def test_a_log_without_the_last_result_is_not_taken(write: Any, rows: Any) -> None:
    assert _cut(write(RESULTS[:2]), rows, RESULTS[2]) == b""
    assert _cut(b"", rows, RESULTS[2]) == b""


def test_of_a_trial_that_took_over_anothers_state_the_later_of_two_equal_numbers_counts() -> None:
    again = [{**result, "timestamp": 2000 + result["training_iteration"]} for result in RESULTS[1:4]]
    log = as_json([*RESULTS, *again])
    assert _cut(log, _json_rows, again[1]) == as_json([*RESULTS, *again[:2]])
    assert _cut(log, _json_rows, RESULTS[2]) == as_json(RESULTS[:3])
