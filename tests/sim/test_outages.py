from __future__ import annotations

import itertools

import pytest

from adaptdl.errors import UsageError
from adaptdl.sim import Outage, cluster_nodes, random_outages

NODES = cluster_nodes(20, 4)
TIMES = {"mean_between_s": 1000.0, "mean_away_s": 100.0, "until_s": 100_000.0}


def of(outages: list[Outage], node_id: str) -> list[Outage]:
    return [outage for outage in outages if outage.node_id == node_id]


def test_the_same_seed_gives_the_same_outages_and_another_one_others() -> None:
    assert random_outages(NODES, seed=3, **TIMES) == random_outages(NODES, seed=3, **TIMES)
    assert random_outages(NODES, seed=3, **TIMES) != random_outages(NODES, seed=4, **TIMES)


def test_a_node_fails_as_it_does_whatever_others_there_are() -> None:
    few, many = (random_outages(nodes, seed=3, **TIMES) for nodes in (NODES[:2], NODES))
    assert of(few, NODES[1].node_id) == of(many, NODES[1].node_id)


def test_a_node_is_back_before_it_fails_again() -> None:
    for node in NODES:
        own = of(random_outages(NODES, seed=0, **TIMES), node.node_id)
        assert all(before.from_s < before.to_s < after.from_s for before, after in itertools.pairwise(own))
        assert own[-1].from_s < TIMES["until_s"]


def test_times_are_as_asked_for_on_average() -> None:
    outages = random_outages(NODES, seed=0, **TIMES)
    away_s = sum(outage.to_s - outage.from_s for outage in outages)
    assert away_s / len(outages) == pytest.approx(100, rel=0.1)
    assert (len(NODES) * TIMES["until_s"] - away_s) / len(outages) == pytest.approx(1000, rel=0.1)


def test_times_must_be_positive() -> None:
    with pytest.raises(UsageError, match="`mean_away_s` must be finite and > 0, but got"):
        random_outages(NODES, seed=0, mean_between_s=1.0, mean_away_s=0.0, until_s=1.0)
