"""What is summed over the replicas at once."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["Bucket"]


class Bucket(Protocol):
    """Gradients of some parameters, as a communication hook of DistributedDataParallel gets them (its GradBucket)."""

    def index(self) -> int: ...
    def is_last(self) -> bool: ...
    def buffer(self) -> torch.Tensor: ...
    def gradients(self) -> list[torch.Tensor]: ...
    def parameters(self) -> list[torch.Tensor]: ...
