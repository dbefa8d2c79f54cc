"""Training functions that the processes of the tests run."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import Dataset

import adaptdl.torch as adl


class Numbers(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """A fixed regression problem; a sample tells its index."""

    def __init__(self, num_samples: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(num_samples, 6, generator=generator, dtype=dtype)
        self.targets = self.inputs.sin().sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.inputs[index], self.targets[index], index


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16, dtype=dtype), torch.nn.Tanh(), torch.nn.Linear(16, 1, dtype=dtype)
    )


def stop_for_reallocations(config: dict[str, Any]) -> None:
    """After the steps in `stops`, rank 0 waits for the plan that the test will give it."""
    session = adl.current_session()
    if session.rank == 0 and session.num_steps + 1 in config.get("stops", ()):
        deadline = time.monotonic() + 60
        while session.mailbox.plan is None:
            assert time.monotonic() < deadline, f"no plan at step {session.num_steps + 1}"
            time.sleep(0.001)


def parameters(model: torch.nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double().tolist()


def regression(config: dict[str, Any]) -> dict[str, Any]:
    """The plain case: SGD with momentum at a fixed batch size; tells the samples of each pass of this replica."""
    dtype = config.get("dtype", torch.float64)
    data = Numbers(config.get("num_samples", 50), dtype)
    loader = adl.AdaptiveDataLoader(
        data, batch_size=config.get("batch_size", 8), shuffle=True, num_workers=config.get("num_workers", 0),
        drop_last=config.get("drop_last", False),
    )  # fmt: skip
    module = network(dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    model = adl.AdaptiveDataParallel(module, optimizer)
    samples: list[tuple[int, int]] = []
    for epoch in adl.remaining_epochs_until(config.get("epochs", 3)):
        for inputs, targets, indices in loader:
            padded = adl.current_session().micro.size == 0
            samples += [] if padded else [(epoch, int(i)) for i in indices]
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            stop_for_reallocations(config)
        adl.report({"epoch": epoch, "samples": list(samples)})
    return {"parameters": parameters(module), "samples": samples, "steps": adl.current_session().num_steps}
