"""What every replica imports, before its training begins and at three quarters of what it costs otherwise.

Imports make some 400,000 objects that stay. Python's garbage collector would go through all of them again whenever there are a
quarter more, and once more for good measure whenever it is asked to. So it rests meanwhile, and leaves alone afterwards
what was made until then: a full collection in mid-training takes milliseconds instead of a quarter of a second, too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib

__all__ = ["WITHOUT_RAY", "import_all"]

_WHAT_OPTIMIZERS_IMPORT = "torch._dynamo"
"""When the first one of a process is made, or the first DistributedDataParallel: half of what torch itself costs."""
WITHOUT_RAY = ("adaptdl.torch.session", "adaptdl.torch.warm_up", _WHAT_OPTIMIZERS_IMPORT)
"""Most of it: what may be imported before a replica is forked."""


@functools.cache
def import_all() -> None:
    """Once per process: a second time there might be garbage of a training that has ended, which must not be kept."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("adaptdl.runtime.reporting")
        importlib.import_module("adaptdl.torch.session")
        with contextlib.suppress(ImportError):  # private: another version of torch may have it elsewhere
            importlib.import_module(_WHAT_OPTIMIZERS_IMPORT)
    finally:
        if was_on:
            gc.enable()
    gc.freeze()
