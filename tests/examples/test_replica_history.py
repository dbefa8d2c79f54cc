from __future__ import annotations

import logging

import pytest

from replica_history import ReallocationLog, ReplicaHistory


def history_of(*numbers: int) -> ReplicaHistory:
    return ReplicaHistory([(100.0 + 10 * index, number) for index, number in enumerate(numbers)])


@pytest.mark.parametrize(
    ("numbers", "grew", "shrank"),
    [
        ((), False, False),
        ((1,), False, False),
        ((1, 2), True, False),
        ((2, 1), False, True),
        ((1, 0), False, True),
        ((0, 1), False, False),
        ((1, 0, 2, 3), True, True),
    ],
)
def test_growing_and_shrinking_are_seen(numbers: tuple[int, ...], grew: bool, shrank: bool) -> None:
    history = history_of(*numbers)
    assert (history.grew, history.shrank) == (grew, shrank)


def test_it_reads_as_a_line() -> None:
    assert str(history_of(1, 2, 0)) == "1 (0 s) → 2 (10 s) → 0 (20 s)"
    assert str(history_of()) == "never started"


def test_it_is_read_from_the_log() -> None:
    log, logger = ReallocationLog(), logging.getLogger("adaptdl.example")
    logger.addHandler(log)
    try:
        for line in (
            'reallocation trial=a1 0→1 replicas reason="start" pause_s=0.00',
            'reallocation trial=b2 0→1 replicas reason="start" pause_s=0.00',
            'reallocation trial=a1 1→2 replicas reason="goodput ×1.9" pause_s=0.05',
            "something else about trial=a1",
        ):
            logger.warning("%s", line)
    finally:
        logger.removeHandler(log)
    assert [number for _, number in log.histories["a1"].changes] == [1, 2]
    assert [number for _, number in log.histories["b2"].changes] == [1]
