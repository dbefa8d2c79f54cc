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


def wide_network(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Its gradients are two buckets of DistributedDataParallel."""
    torch.manual_seed(3)
    width = 2**20 // (7 * dtype.itemsize) + 1
    return torch.nn.Sequential(
        torch.nn.Linear(6, 6, dtype=dtype),
        torch.nn.Linear(6, width, dtype=dtype),
        torch.nn.Tanh(),
        torch.nn.AdaptiveAvgPool1d(16),
        torch.nn.Linear(16, 1, dtype=dtype),
    )


def deep_network() -> torch.nn.Module:
    """It has too many parameters to do without DistributedDataParallel."""
    torch.manual_seed(0)
    layers = [layer for _ in range(33) for layer in (torch.nn.Linear(6, 6, dtype=torch.float64), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(6, 1, dtype=torch.float64))


def stop_for_reallocations(config: dict[str, Any]) -> None:
    """After the k-th of the steps in `stops`, rank 0 waits until the k-th reallocation is done or about to be."""
    session = adl.current_session()
    stops = config.get("stops", [])
    if session.rank == 0 and session.num_steps + 1 in stops:
        next_generation = stops.index(session.num_steps + 1) + 2
        deadline = time.monotonic() + 60
        while session.mailbox.plan is None and session.generation < next_generation:
            assert time.monotonic() < deadline, f"no plan at step {session.num_steps + 1}"
            time.sleep(0.001)


def parameters(model: torch.nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double().tolist()


def regression(config: dict[str, Any]) -> dict[str, Any]:
    """The plain case: SGD with momentum at a fixed batch size; tells the samples of each pass of this replica."""
    dtype = config.get("dtype", torch.float64)
    data = Numbers(config.get("num_samples", 50), dtype)
    loader = adl.AdaptiveDataLoader(
        data,
        batch_size=config.get("batch_size", 8),
        shuffle=True,
        num_workers=config.get("num_workers", 0),
        drop_last=config.get("drop_last", False),
    )
    module = wide_network(dtype) if config.get("is_wide") else network(dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    model = adl.AdaptiveDataParallel(module, optimizer)
    model.train(not config.get("eval", False))
    samples: list[tuple[int, int]] = []
    try:
        for epoch in adl.remaining_epochs_until(config.get("epochs", 3)):
            for inputs, targets, indices in loader:
                padded = adl.current_session().micro.size == 0
                samples += [] if padded else [(epoch, int(i)) for i in indices]
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
                stop_for_reallocations(config)
            adl.report({"epoch": epoch})
    finally:  # a replica that leaves unwinds
        adl.current_session().host.send("samples", samples)
    return {"parameters": parameters(module), "steps": adl.current_session().num_steps}


def varied(config: dict[str, Any]) -> dict[str, Any]:
    """One of the things users do, by config["case"]; deterministic, so that its end can be compared."""
    case = config["case"]
    dtype = torch.float64
    # With 11 samples of a step, three replicas have shares of 4, 4 and 3.
    batch_size = 11 if case == "early_return" else 12
    train = adl.AdaptiveDataLoader(
        Numbers(60, dtype), batch_size, shuffle=True, num_workers=2 if case == "workers" else 0
    )
    second = adl.AdaptiveDataLoader(Numbers(24, dtype), batch_size=6, shuffle=True, seed=7)
    test = adl.AdaptiveDataLoader(Numbers(31, dtype), batch_size=8)
    module = wide_network(dtype) if case == "wide" else network(dtype)
    if case == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7) if case == "lr_scheduler" else None
    model = adl.AdaptiveDataParallel(module, optimizer, scheduler)

    def steps(loader: adl.AdaptiveDataLoader) -> None:
        model.train()
        for batch, (inputs, targets, _) in enumerate(loader):
            if case == "early_return" and batch * len(inputs) > 14:
                return  # a replica with fewer samples comes here later
            if case == "early_break" and batch == 3:
                break
            if case == "zero_between":
                output = model(inputs)
                optimizer.zero_grad()
            else:
                optimizer.zero_grad()
                with torch.autocast("cpu", enabled=case == "autocast"):
                    output = model(inputs)
            torch.nn.functional.mse_loss(output.double(), targets).backward()
            if case == "clip":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            stop_for_reallocations(config)

    def evaluate() -> tuple[float, float]:
        model.eval()
        totals = adl.Accumulator()
        with torch.no_grad():
            for batch, (inputs, targets, _) in enumerate(test):
                if case == "early_break" and batch == 2:
                    break
                totals["error"] += torch.nn.functional.mse_loss(model(inputs), targets, reduction="sum").item()
                totals.update(count=len(inputs))
        with totals.synchronized():
            return totals["error"] / totals["count"], totals["count"]

    history = []
    for epoch in adl.remaining_epochs_until(config.get("epochs", 3)):
        if case == "accumulation":
            train.batch = adl.Batch(batch_size=12, atomic_batch_size=2, accum_steps=2)
        steps(train)
        if case == "two_loaders":
            steps(second)
        if scheduler is not None:
            scheduler.step()
        error, count = evaluate()
        history.append((epoch, error, count))
        adl.report({"epoch": epoch, "error": error, "count": count})
    return {
        "parameters": parameters(module),
        "history": history,
        "steps": adl.current_session().num_steps,
        "lr": optimizer.param_groups[0]["lr"],
        "noise": model.grad_params(adl.current_session()),
    }


def evaluates_first(config: dict[str, Any]) -> dict[str, Any]:
    """Reallocations come in a validation loop in inference mode, which is where an epoch begins."""
    train = adl.AdaptiveDataLoader(Numbers(40), batch_size=8, shuffle=True)
    test = adl.AdaptiveDataLoader(Numbers(16), batch_size=8)
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for _ in adl.remaining_epochs_until(config["epochs"]):
        model.eval()
        with torch.inference_mode():
            for inputs, _, _ in test:
                model(inputs)
                stop_for_reallocations(config)
        model.train()
        for inputs, targets, _ in train:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return {"parameters": parameters(module), "steps": adl.current_session().num_steps}


def divides_by_its_batches(config: dict[str, Any]) -> dict[str, Any]:
    """Code between loops that does not like an empty loop."""
    train = adl.AdaptiveDataLoader(Numbers(40), batch_size=8)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(module, optimizer)
    means = []
    for _ in adl.remaining_epochs_until(config["epochs"]):
        total, count = 0.0, 0
        for inputs, targets, _ in train:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total, count = total + loss.item(), count + 1
            stop_for_reallocations(config)
        means.append(total / count)
    return {"parameters": parameters(module), "means": means}


def adaptive(config: dict[str, Any]) -> dict[str, Any]:
    """Batch sizes that follow the goodput."""
    loader = adl.AdaptiveDataLoader(Numbers(config.get("num_samples", 400), torch.float32), batch_size=8, shuffle=True)
    loader.autoscale_batch_size(64, local_bsz_bounds=(2, 32), gradient_accumulation=True)
    module = network(torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(module, optimizer)
    sizes = []
    for _ in adl.remaining_epochs_until(config["epochs"]):
        for inputs, targets, _ in loader:
            sizes.append((loader.current_batch_size, loader.current_local_bsz, loader.accumulation_steps, len(inputs)))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            stop_for_reallocations(config)
    session = adl.current_session()
    return {"sizes": sizes, "progress": session.progress, "steps": session.num_steps}
