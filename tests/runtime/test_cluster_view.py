"""What of a real cluster is ours, and what others use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from adaptdl.runtime import placement
from adaptdl.runtime.nodes import ClusterView
from adaptdl.runtime.placement import sweep
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OURS = "adaptdl/experiment/trial/"


@pytest.fixture(scope="module", autouse=True)
def a_cluster() -> Iterator[None]:
    resources = {"team_group_ab": 2.0, "worker_group_1": 1.0}  # Ray names what is reserved in a similar way
    ray.init(address="local", num_cpus=4, resources=resources, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    sweep("")
    wait_until(sees(ClusterView(), 4), "all that was reserved to be free again")


def reserve(name: str, cpus: float) -> PlacementGroup:
    group = placement_group([{"CPU": cpus}], name=name)
    ray.get(group.ready(), timeout=30)
    return group


def test_resources_of_the_users_may_have_any_name() -> None:
    (node,) = ClusterView([OURS]).look()
    assert (node.resources["team_group_ab"], node.resources["worker_group_1"]) == (2, 1)


def cpus_for_us(view: ClusterView) -> float:
    (node,) = view.look()
    return node.resources["CPU"]


def sees(view: ClusterView, cpus: float) -> Callable[[], bool]:
    return lambda: cpus_for_us(view) == cpus


def test_what_others_have_reserved_is_not_for_us_and_our_own_is() -> None:
    view = ClusterView([OURS])
    reserve(OURS + "a", 1)
    others = reserve("others", 2)
    reserve("", 0.5)
    wait_until(sees(view, 1.5), "what the others have reserved to be seen")
    remove_placement_group(others)
    wait_until(sees(view, 3.5), "what the others have given back to be seen")


def test_a_view_without_reservations_of_its_own_takes_all_for_those_of_others() -> None:
    reserve(OURS + "a", 1)
    wait_until(sees(ClusterView(), 3), "what is reserved to be seen")


def test_groups_that_are_gone_cost_a_look_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps them in its table, for ever."""
    view = ClusterView([OURS])
    reserve(OURS + "stays", 1)
    for number in range(50):
        remove_placement_group(reserve(f"{OURS}{number}", 0.1))
    wait_until(sees(view, 4), "our own to be free again")
    assert len(placement_group_table()) >= 50
    asked: list[Any] = []

    def table(group: PlacementGroup | None = None) -> dict[str, Any]:
        asked.append(group)
        entries: dict[str, Any] = placement_group_table(group)
        return entries

    monkeypatch.setattr(placement, "placement_group_table", table)
    cpus_for_us(view)
    assert not asked
    newest = reserve(OURS + "new", 1)
    wait_until(lambda: cpus_for_us(view) == 4 and bool(asked), "the new one to be seen")
    assert [group.id for group in asked] == [newest.id]
