"""Sums over replicas that survive reallocations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adaptdl.errors import UsageError
from adaptdl.torch.registry import State

__all__ = ["Accumulator"]


_UNREADABLE = "the values of an Accumulator can be read only inside `with accumulator.synchronized():`"


class _Change:
    """``accumulator[key]`` outside of `synchronized`: knows nothing but how to be changed."""

    def __init__(self, amount: Any = None) -> None:
        self.amount = amount

    def __add__(self, other: Any) -> _Change:
        return _Change(other if self.amount is None else self.amount + other)

    def __sub__(self, other: Any) -> _Change:
        return _Change(-other if self.amount is None else self.amount - other)

    def __getattr__(self, name: str) -> Any:
        raise UsageError(_UNREADABLE)


def add_changes(sums: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, amount in changes.items():
        sums[key] = copy.deepcopy(amount) if key not in sums else sums[key] + amount


class Accumulator(State):
    """A dictionary of sums: every replica adds to it in its own time, and all read the total together.

    ::

        accumulator = adl.Accumulator()
        for data, target in loader:
            accumulator["correct"] += (model(data).argmax(1) == target).sum().item()
            accumulator["total"] += len(data)
        with accumulator.synchronized():
            accuracy = accumulator["correct"] / accumulator["total"]

    A loop that is skipped, because the job had finished it before this replica came, gets its totals from the record.
    Values are numbers or tensors (anything with ``+``); they start at nothing, so that a key never added to is absent.

    Raises:
        UsageError: a value is read or assigned outside of `synchronized`, or changed inside of it.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.session.sums.add(self)
        self._sums: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}
        self._mark: dict[str, Any] = {}
        """`_changes` at the beginning of the step that runs."""
        self._readable = False
        if (waiting := self.session.registry.take_waiting(self.name)) is not None:
            self.load_state_dict(waiting)

    def __getitem__(self, key: str) -> Any:
        return self._sums[key] if self._readable else _Change()

    def __setitem__(self, key: str, value: Any) -> None:
        if self._readable:
            raise UsageError(f"accumulator[{key!r}] cannot be changed inside of `synchronized`; do it before or after")
        if not isinstance(value, _Change):
            raise UsageError(f"accumulator[{key!r}] can be changed by += and -= only, but was assigned {value!r}")
        if value.amount is not None:
            add_changes(self._changes, {key: value.amount})

    def update(self, amounts: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        """Adds to several keys."""
        self._change({**dict(amounts), **more}, 1)

    def subtract(self, amounts: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        """Subtracts from several keys."""
        self._change({**dict(amounts), **more}, -1)

    def _change(self, amounts: dict[str, Any], sign: int) -> None:
        if self._readable:
            raise UsageError("an Accumulator cannot be changed inside of `synchronized`; do it before or after")
        add_changes(self._changes, amounts if sign > 0 else {key: -amount for key, amount in amounts.items()})

    def clear(self) -> None:
        """Forgets all sums; inside of `synchronized` (on every replica), or before anything was added."""
        self._sums.clear()
        self._changes.clear()

    @contextmanager
    def synchronized(self) -> Iterator[Accumulator]:
        """Within it the totals can be read. Every replica must enter it, at the same place in the code."""
        if self._readable:
            raise UsageError("`synchronized` of one Accumulator cannot be nested")
        total = self.session.sums.agree(self._sums, self._changes)
        self._sums, self._changes, self._mark = dict(total), {}, {}
        self._readable = True
        try:
            yield self
        finally:
            self._readable = False

    def __iter__(self) -> Iterator[str]:
        self._must_be_readable()
        return iter(self._sums)

    def __len__(self) -> int:
        self._must_be_readable()
        return len(self._sums)

    def __contains__(self, key: object) -> bool:
        self._must_be_readable()
        return key in self._sums

    def get(self, key: str, default: Any = None) -> Any:
        self._must_be_readable()
        return self._sums.get(key, default)

    def items(self) -> Iterable[tuple[str, Any]]:
        self._must_be_readable()
        return self._sums.items()

    def keys(self) -> Iterable[str]:
        self._must_be_readable()
        return self._sums.keys()

    def values(self) -> Iterable[Any]:
        self._must_be_readable()
        return self._sums.values()

    def _must_be_readable(self) -> None:
        if not self._readable:
            raise UsageError(_UNREADABLE)

    # What a session does with it.

    @property
    def changes(self) -> Mapping[str, Any]:
        """This replica's part that was not summed yet."""
        return self._changes

    def sum_up(self, parts: Iterable[Mapping[str, Any]]) -> None:
        """All replicas' `changes`, this one's among them, become part of the sums, which every replica has."""
        self._changes, self._mark = {}, {}
        for changes in parts:
            add_changes(self._sums, changes)

    def mark(self) -> None:
        """A step begins."""
        self._mark = dict(self._changes)

    def roll_back(self) -> None:
        """The step that has begun is void: forgets what this replica has added since."""
        self._changes = dict(self._mark)

    def take_changes(self) -> dict[str, Any]:
        """As `changes`, which are no longer here afterwards."""
        changes, self._changes = self._changes, {}
        return changes

    def give_changes(self, changes: Mapping[str, Any]) -> None:
        """The opposite of `take_changes`."""
        add_changes(self._changes, changes)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "changes": dict(self._changes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = dict(state_dict["sums"])
        self._changes = dict(state_dict["changes"]) if self.session.rank == 0 else {}
        self._mark = {}
