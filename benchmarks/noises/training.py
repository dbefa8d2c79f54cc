"""A training as a user writes it, at a batch size that stays M₀."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

import adaptdl.torch as adl
from noises.problems import PROBLEMS

__all__ = ["Case", "Training"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train a problem."""

    problem: str
    num_replicas: int
    optimizer: str = "SGD"
    num_parts: int = 1
    """Passes of a step. A single replica makes a step of two parts now and then by itself."""
    bf16: bool = False

    @property
    def name(self) -> str:
        precision = "bf16" if self.bf16 else "float32"
        return f"{self.optimizer}, accumulating {self.num_parts - 1}, {precision} × {self.num_replicas}"


class Training:
    """What one replica has of it, in the session that is open.

    Args:
        rate: learning rate; None: the problem's own.
    """

    def __init__(self, case: Case, rate: float | None = None) -> None:
        self.case, self.problem, self.session = case, PROBLEMS[case.problem], adl.current_session()
        init = self.problem.init_batch_size
        local, rest = divmod(init, case.num_replicas * case.num_parts)
        assert rest == 0, "all parts are of the same size"
        self.loader = adl.AdaptiveDataLoader(self.problem.load(), init, shuffle=True, drop_last=True)
        accumulates = case.num_parts > 1
        bounds = (local, local) if accumulates else (local // 2, init)
        self.loader.autoscale_batch_size(init, bounds, gradient_accumulation=accumulates)
        self.module = self.problem.make()
        make_optimizer = getattr(torch.optim, case.optimizer)
        self.optimizer: torch.optim.Optimizer = make_optimizer(
            self.module.parameters(), lr=self.problem.rate if rate is None else rate
        )
        self.model = adl.AdaptiveDataParallel(self.module, self.optimizer)

    def steps(self) -> Iterator[int]:
        """Trains; after each step, its number, from 1."""
        while True:
            for inputs, targets in self.loader:
                self.optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.case.bf16):
                    output = self.model(inputs)
                self.problem.loss(output.float(), targets).backward()
                self.optimizer.step()
                if not self.session.is_accumulating:
                    yield self.session.num_steps + 1
