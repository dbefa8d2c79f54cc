"""States: what of a training job must survive a reallocation and a restart."""

from __future__ import annotations

import abc
import weakref
from typing import Any

from adaptdl.errors import UsageError

__all__ = ["Registry", "State"]


class State(abc.ABC):
    """Something of the user's training function that must survive: subclass it and create it inside the function.

    Every replica must create the same states in the same order. A state created before the first epoch is known by
    `name`, or by its kind and number; one created within an epoch belongs to that epoch. `load_state_dict` runs when the next
    epoch or data loop begins, or ``remaining_epochs_until`` ends: before that a restored job sees the values of a new one.

    Args:
        name: unique in the training function; None takes the next free one of the class.

    Raises:
        UsageError: another living state has this name.
    """

    def __init__(self, name: str | None = None) -> None:
        from adaptdl.torch.ambient import current_session

        self.session = current_session()
        self.name = self.session.registry.add(self, name)

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state, of tensors, numbers, strings and containers of them."""

    @abc.abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state of another replica or of a snapshot."""


class Registry:
    """The living states of a session by name, and restored ones whose object was not created yet."""

    def __init__(self) -> None:
        self._objects: dict[str, weakref.ref[State]] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._counts: dict[str, int] = {}
        self._epoch: int = -1

    def add(self, state: State, name: str | None) -> str:
        """Registers `state`; its restored values, if any, are in `take_waiting`."""
        if name is None:
            kind = type(state).__name__
            number = self._counts.get(kind, 0)
            self._counts[kind] = number + 1
            name = f"{kind}-{number}" if self._epoch < 0 else f"{kind}@{self._epoch}-{number}"
        if self.get(name) is not None:
            raise UsageError(
                f"the names of states must be unique within a training function, but {name!r} is taken; "
                f"give the second {type(state).__name__} another one with name=…"
            )
        self._objects[name] = weakref.ref(state)
        return name

    def get(self, name: str) -> State | None:
        ref = self._objects.get(name)
        return None if ref is None else ref()

    def living(self) -> dict[str, State]:
        """All living states, in the order of their creation."""
        states = {name: state for name, ref in self._objects.items() if (state := ref()) is not None}
        self._objects = {name: self._objects[name] for name in states}
        return states

    def begin_epoch(self, epoch: int) -> None:
        """Numbers of states created within an epoch start anew in each."""
        self._epoch = epoch
        self._counts = {}
        self._waiting = {k: v for k, v in self._waiting.items() if "@" not in k or f"@{epoch}-" in k}

    def state_dict(self) -> dict[str, Any]:
        return {**self._waiting, **{name: state.state_dict() for name, state in self.living().items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._waiting.update(state_dict)
        self.settle()

    def settle(self) -> None:
        """Gives restored values to the states that are there; those of others wait for their object."""
        for name in list(self._waiting):
            if (state := self.get(name)) is not None:
                state.load_state_dict(self._waiting.pop(name))

    def take_waiting(self, name: str) -> dict[str, Any] | None:
        """The restored values for a state that has just been created. Call it when the object can take them."""
        return self._waiting.pop(name, None)
