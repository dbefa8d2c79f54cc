from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adaptdl.errors import AdaptDLError, UsageError
from adaptdl.report import plot_timeline
from adaptdl.report.timeline import _bars_by_job
from tests.report.results import simulated


@pytest.mark.parametrize(("suffix", "beginning"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_a_picture_is_saved_in_the_format_of_its_name(tmp_path: Path, suffix: str, beginning: bytes) -> None:
    file = tmp_path / f"timeline{suffix}"
    plot_timeline(simulated(), file, title="three jobs")
    assert file.read_bytes().startswith(beginning)


def test_many_jobs_fit_on_one_picture(tmp_path: Path) -> None:
    plot_timeline(simulated(num_jobs=160, num_gpus=16), tmp_path / "many.png")
    header = (tmp_path / "many.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    assert 1000 < width < 3000
    assert 1000 < height < 3000


def test_bars_are_as_long_as_nothing_changes_and_end_with_the_job() -> None:
    assert dict(_bars_by_job(simulated())) == {
        "job-0": [(0.0, pytest.approx(100.0), 1)],
        "job-1": [(0.0, pytest.approx(100.0), 1)],
        "job-2": [(pytest.approx(100.0), pytest.approx(200.0), 1)],
    }


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end with .png, .svg, .pdf, but is .*timeline.txt"):
        plot_timeline(simulated(), tmp_path / "timeline.txt")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AdaptDLError, match=r"not installed: pip install matplotlib"):
        plot_timeline(simulated(), tmp_path / "timeline.png")
