from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: files that run side by side then end at about the same time."""

    def place(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 0 if "slow" in marks else 1 if marks & {"ray", "distributed"} else 2

    items.sort(key=place)


@pytest.fixture(autouse=True)
def no_session_is_left() -> Iterator[None]:
    """A test that used the session a process without a launcher gets does not hand it on to the next one."""
    yield
    if (ambient := sys.modules.get("adaptdl.torch.ambient")) is not None:
        ambient.close_local_session()
