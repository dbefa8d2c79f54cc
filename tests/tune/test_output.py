"""The status tables of both output engines have our columns."""

from __future__ import annotations

from ray.tune.experiment import Trial
from ray.tune.experimental import output
from ray.tune.progress_reporter import CLIReporter, _get_progress_table_data

from adaptdl.runtime.news import News
from adaptdl.tune.output import add_table_columns


def trial_with_result() -> Trial:
    trial = Trial("train", stub=True, trial_id="abc")
    metrics = News().completed({"mean_accuracy": 0.5, "mine": 2.0, "adaptdl/batch_size": 64, "adaptdl/goodput": 12.5})
    trial.run_metadata.last_result = {"training_iteration": 1, **metrics}
    return trial


def test_the_new_engine_shows_them_and_none_of_the_others_by_itself() -> None:
    add_table_columns()
    add_table_columns()
    trials = [trial_with_result()]
    shown = [key for key in output.DEFAULT_COLUMNS if key in trials[0].last_result]
    assert shown[-3:] == ["adaptdl/num_replicas", "adaptdl/batch_size", "adaptdl/goodput"]
    assert output._infer_user_metrics(trials) == ["mine"]


def test_the_old_engine_shows_them() -> None:
    add_table_columns()
    rows, headings, _ = _get_progress_table_data([trial_with_result()], CLIReporter()._metric_columns)
    assert headings[-3:] == ["replicas", "batch size", "goodput"]
    assert rows[0][-3:] == [0, 64, 12.5]
