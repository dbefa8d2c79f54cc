"""What a replica imports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import gc
import sys

from adaptdl.runtime.imports import import_all
from adaptdl.runtime.replica import Replica

assert not {"torch", "ray.tune"} & sys.modules.keys()
import_all()
assert gc.isenabled()
num_frozen = gc.get_freeze_count()
assert num_frozen > 100_000, num_frozen

import torch
from adaptdl.torch.warm_up import warm_up

before = set(sys.modules)
warm_up()
torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
late = [name for name in set(sys.modules) - before if name.startswith("torch.")]
assert len(late) <= 5, late  # hundreds, if it was not done

import_all()
assert gc.get_freeze_count() <= num_frozen  # some are gone since
"""


def test_training_imports_nothing_later_and_the_collector_leaves_it_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
