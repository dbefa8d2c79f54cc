from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_session_is_left() -> Iterator[None]:
    """A test that used the session a process without a launcher gets does not hand it on to the next one."""
    yield
    if (ambient := sys.modules.get("adaptdl.torch.ambient")) is not None:
        ambient.close_local_session()
