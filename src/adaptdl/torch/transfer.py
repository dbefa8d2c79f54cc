"""States on their way: from one replica to another (tensors as tensors), or into the bytes of a snapshot.

A snapshot is a ``torch.save`` file that holds tensors, numbers, strings and containers of them only, so that it is
loaded with ``weights_only`` and can run no code.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from adaptdl.errors import SnapshotError
from adaptdl.torch.group import Group

__all__ = ["broadcast_states", "copy_states", "read_snapshot", "write_snapshot"]

_FORMAT = "adaptdl-snapshot"
_VERSION = 4


_MESSAGE_BYTES = 2**25
"""Of tensors that travel together, at most. (Each message costs some 0.1 ms, and what is put together is copied.)"""


class _Meta(NamedTuple):
    """What a tensor is that comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str
    """Its kind."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _Packer(pickle.Pickler):
    """Pickles everything but tensors, which it puts aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._index: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._index:
            self._index[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._index[id(obj)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> torch.Tensor:
        return self._tensors[int(pid)]


def broadcast_states(group: Group, states: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Sends rank 0's `states` to all replicas; on rank 0 it returns them as they are.

    One message for the structure, and then some for the tensors, in the order of their types and kinds of device: small ones
    travel together, none is held twice for longer than its message takes, and each arrives in memory of its own.
    """
    if group.num_replicas == 1:
        assert states is not None
        return states
    if group.rank == 0:
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump(states)
        tensors = packer.tensors
        metas = [_Meta(t.dtype, tuple(t.shape), t.device.type) for t in tensors]
        group.broadcast_object((file.getvalue(), metas))
        for indices in _messages(metas):
            flats = [tensors[i].detach().reshape(-1) for i in indices]
            group.broadcast(flats[0] if len(flats) == 1 else torch.cat(flats))
        assert states is not None
        return states
    skeleton, metas = group.broadcast_object()
    received: list[torch.Tensor] = [torch.empty(0)] * len(metas)
    for indices in _messages(metas):
        sizes = [metas[i].numel for i in indices]
        flat = torch.empty(sum(sizes), dtype=metas[indices[0]].dtype, device=metas[indices[0]].device)
        group.broadcast(flat)
        parts = [flat] if len(indices) == 1 else [part.clone() for part in flat.split(sizes)]
        for i, part in zip(indices, parts, strict=True):
            received[i] = part.view(metas[i].shape)
    result: Mapping[str, Any] = _Unpacker(io.BytesIO(skeleton), received).load()
    return result


def _messages(metas: Sequence[_Meta]) -> list[list[int]]:
    """Which tensors travel together: as many of a kind as a message holds, or one that is larger."""
    messages: list[list[int]] = []
    open_: dict[tuple[torch.dtype, str], tuple[list[int], int]] = {}
    for i, meta in enumerate(metas):
        kind = meta.dtype, meta.device
        message, num_bytes = open_.get(kind, ([], 0))
        if not message or num_bytes + meta.num_bytes > _MESSAGE_BYTES:
            message, num_bytes = [], 0
            messages.append(message)
        message.append(i)
        open_[kind] = message, num_bytes + meta.num_bytes
    return messages


def copy_states(value: Any) -> Any:
    """A copy of `value` that later steps do not change, tensors on the CPU, numpy values as torch and Python ones."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {copy_states(k): copy_states(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return (
            type(value)(copy_states(item) for item in value)
            if type(value) in _SEQUENCES
            else [*map(copy_states, value)]
        )
    return copy.deepcopy(value)


_SEQUENCES = (list, tuple, set, frozenset)


def write_snapshot(states: Mapping[str, Any]) -> bytes:
    """The bytes of a snapshot of `states` (already copied).

    Raises:
        SnapshotError: a state holds something that could not be read back.
    """
    file = io.BytesIO()
    torch.save({"format": _FORMAT, "version": _VERSION, "states": dict(states)}, file)
    return file.getvalue()


def read_snapshot(data: bytes) -> dict[str, Any]:
    """The states in the bytes of a snapshot.

    Raises:
        SnapshotError: the bytes are damaged, or not a snapshot of this version of the format.
    """
    try:
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise SnapshotError(f"this snapshot of {len(data)} bytes cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise SnapshotError("these bytes are a file of torch, but no snapshot of AdaptDL")
    if content.get("version") != _VERSION:
        raise SnapshotError(
            f"the snapshot must be of version {_VERSION} to be read here, but is of {content.get('version')!r}"
        )
    states: dict[str, Any] = content["states"]
    return states
