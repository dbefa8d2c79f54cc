from __future__ import annotations

import io
import itertools

from adaptdl.report import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_is_wiped_in_the_end() -> None:
    stream = Terminal()
    line = ProgressLine(stream, "static", 4, clock=itertools.count().__next__)
    line(75.0, 1)
    line(7500.0, 2)
    line.close()
    drawn = [part.rstrip() for part in stream.getvalue().split("\r") if part.strip()]
    assert drawn == [
        "static ███████······················· 1/4 jobs, 1 min 15 s simulated",
        "static ███████████████··············· 2/4 jobs, 2 h 05 min simulated",
    ]
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith(" \r")


def test_it_is_not_drawn_more_often_than_anybody_can_read() -> None:
    stream = Terminal()
    line = ProgressLine(stream, "static", 4, clock=lambda: 5.0)
    for i in range(100):
        line(float(i), 0)
    assert stream.getvalue().count("\r") == 1


def test_a_file_sees_nothing() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, "static", 4)
    line(75.0, 1)
    line.close()
    assert stream.getvalue() == ""
