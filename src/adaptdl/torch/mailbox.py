"""Where orders from outside wait for the training thread."""

from __future__ import annotations

import enum
import threading

from adaptdl.plan import Advance, Plan

__all__ = ["Leave", "Mailbox", "Order"]


class Order(enum.Enum):
    """An order without content."""

    LEAVE = "leave"


class Leave(BaseException):
    """Unwinds the user's function in a replica that is no longer a member. Not an Exception: nothing of the user's
    should stop it on the way."""


class Mailbox:
    """Orders for one replica; every method may be called from any thread and returns at once, except `wait`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._orders: list[Plan | Advance | Order] = []
        self._newest_generation = 0
        self.plan: Plan | None = None
        """For the source: the plan to carry out."""
        self.interrupted = False
        self.lost: frozenset[str] = frozenset()
        """`replica_id` of replicas that will not come any more, for a roll call."""
        self.given_up = 0
        """The generation of the newest plan that whoever gave it has taken back."""

    def put(self, order: Plan | Advance | Order) -> None:
        """Takes an order; not a plan that comes after a later one: it was given up."""
        with self._condition:
            if isinstance(order, Plan):
                if order.generation < self._newest_generation:
                    return
                self._newest_generation = order.generation
            self._orders.append(order)
            self._condition.notify_all()

    def wait(self, timeout_s: float | None = None) -> Plan | Advance | Order | None:
        """The newest order, older ones are void; None if there is none in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._orders, timeout_s)
            order = self._orders[-1] if self._orders else None
            if Order.LEAVE in self._orders:
                order = Order.LEAVE
            self._orders.clear()
            return order

    def takes_back(self, plan: Plan) -> bool:
        """Whether `plan` was given up, or another order has come since; a plan that is older has been overtaken by it."""
        with self._condition:
            orders = list(self._orders)
        return plan.generation <= self.given_up or any(
            not isinstance(order, Plan) or order.generation > plan.generation for order in orders
        )

    def peek(self) -> Plan | Advance | Order | None:
        """The newest order, which stays."""
        with self._condition:
            return self._orders[-1] if self._orders else None

    def clear(self, generation: int) -> None:
        """Forgets what was ordered up to the plan of this generation: only newer plans stay, and the order to leave."""
        with self._condition:
            self._orders = [
                order
                for order in self._orders
                if order is Order.LEAVE or (isinstance(order, Plan) and order.generation > generation)
            ]
