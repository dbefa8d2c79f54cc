from __future__ import annotations

import pytest

from replica_history import ReplicaHistory, replica_history


def history_of(*numbers: int, num_restarts: int = 0) -> ReplicaHistory:
    return replica_history(
        {"time_total_s": 10.0 * index, "adaptdl/num_replicas": number, "adaptdl/num_restarts": num_restarts}
        for index, number in enumerate(numbers)
    )


def test_only_changes_are_kept() -> None:
    assert history_of(1, 1, 2, 2, 1).changes == ((0.0, 1), (20.0, 2), (40.0, 1))


@pytest.mark.parametrize(
    ("numbers", "grew", "shrank"),
    [
        ((), False, False),
        ((1, 1), False, False),
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
    assert str(history_of(1, 2, num_restarts=3)) == "1 (0 s) → 2 (10 s); 3 reallocations"
    assert str(history_of()) == "never trained; 0 reallocations"
