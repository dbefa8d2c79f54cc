"""What a user has switched on around a loop is not meant for what this library does there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["in_no_mode"]

P = ParamSpec("P")
T = TypeVar("T")


def in_no_mode(function: Callable[P, T]) -> Callable[P, T]:
    """Makes `function` run with gradients and outside of inference mode, wherever it is called.

    Replicas stand, join and leave at any loop, and so in the middle of a ``torch.inference_mode()`` around a validation loop.
    What is made there for the training to come, as a DistributedDataParallel's buckets or an optimizer's state, must not be an
    inference tensor: it could not be updated later.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return call
