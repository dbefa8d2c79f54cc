"""A training function that is killed where a test says so: ``fail_at=[(rank, step, where)]`` in its config.

`step` is the number of optimizer steps made before; each entry strikes once, whoever has the rank then. Made inside a function
so that it is pickled whole: replicas on Ray cannot import the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["WHERE", "training_function"]

WHERE = (
    "forward",
    "backward",
    "all-reduce",
    "optimizer.step",
    "after step",
    "validation",
    "before sums",
    "between epochs",
    "after report",
)
"""And, at whatever step: "joining", a newcomer of this rank as it forms its first group of several; "regrouping", the survivor
that would have this rank as the survivors form a group of several. In the "data loader" a replica is not killed, but hangs."""


def training_function() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Trains on 96 samples for some epochs, with a validation loop of 50 samples, and reports sums over all replicas.

    Config: epochs; fail_at; flags (a directory, where a strike leaves its mark); signal (SIGKILL), or raises (an error
    instead of a signal); fits (samples in one pass that memory holds); sleep_s (per step); report; results_per_step (0);
    is_wide (its gradients are two buckets of DistributedDataParallel, which does nothing for a small network).
    """

    def train(config: dict[str, Any]) -> dict[str, Any]:
        import os
        import signal
        import threading
        import time
        from pathlib import Path

        import torch
        import torch.distributed as dist

        import adaptdl.torch as adl
        from adaptdl.torch.ambient import current_session

        session = current_session()
        report = config.get("report") or adl.report

        def strikes(where: str) -> bool:
            """Whether something is to happen here, now, to this replica."""
            for number, (rank, step, place) in enumerate(config.get("fail_at", ())):
                if place != where or not session.joined or session.rank != rank or session.num_steps != step:
                    continue
                try:
                    (Path(config["flags"]) / f"struck-{number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                return True
            return False

        def maybe_fail(where: str) -> None:
            if strikes(where):
                if config.get("raises"):
                    raise ValueError(f"no such luck in {where}")
                os.kill(os.getpid(), config.get("signal", signal.SIGKILL))

        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(96, 4, dtype=torch.float64, generator=generator)

        class Samples(torch.utils.data.TensorDataset):
            def __getitem__(self, index: int) -> Any:
                if strikes("data loader"):
                    threading.Event().wait()  # a connection to the storage that nobody answers
                return super().__getitem__(index)

        train_set = Samples(inputs, inputs.sum(dim=1, keepdim=True))
        valid_inputs = torch.arange(50, dtype=torch.float64)
        train_loader = adl.AdaptiveDataLoader(train_set, batch_size=12, shuffle=True)
        valid_loader = adl.AdaptiveDataLoader(torch.utils.data.TensorDataset(valid_inputs), batch_size=12)
        torch.manual_seed(0)
        width = 30_000 if config.get("is_wide") else 8
        network = torch.nn.Sequential(
            torch.nn.Linear(4, 4, dtype=torch.float64),
            torch.nn.Linear(4, width, dtype=torch.float64),
            torch.nn.Tanh(),
            torch.nn.AdaptiveAvgPool1d(8),
            torch.nn.Linear(8, 1, dtype=torch.float64),
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.9)
        model = adl.AdaptiveDataParallel(network, optimizer, scheduler)

        def allocate(_: Any, inputs: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled() and len(inputs[0]) > config.get("fits", 12):
                raise torch.OutOfMemoryError(f"out of memory: {len(inputs[0])} samples")

        network.register_forward_pre_hook(allocate)
        network[0].register_forward_hook(lambda *_: maybe_fail("forward"))
        network[0].weight.register_hook(lambda _: maybe_fail("backward"))
        optimizer.register_step_pre_hook(lambda *_: maybe_fail("optimizer.step"))
        collectives = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_single")}
        init_process_group = dist.init_process_group

        def failing_init(*args: Any, **kwargs: Any) -> None:
            place = "regrouping" if session.is_broken else "joining"
            if any(entry[2] == place and entry[0] == kwargs["rank"] for entry in config.get("fail_at", ())):
                flag = Path(config["flags"]) / f"struck-{place}"
                if kwargs["world_size"] > 1 and not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), config.get("signal", signal.SIGKILL))
            init_process_group(*args, **kwargs)

        dist.init_process_group = failing_init

        def failing(collective: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                work = collective(*args, **kwargs)
                maybe_fail("all-reduce")
                return work

            return call

        for name, collective in collectives.items():
            setattr(dist, name, failing(collective))
        results = []
        try:
            for epoch in adl.remaining_epochs_until(config["epochs"]):
                sums = adl.Accumulator()
                for x, y in train_loader:
                    optimizer.zero_grad()
                    loss = torch.nn.functional.mse_loss(model(x), y)
                    if strikes("nan"):
                        loss = loss * float("nan")
                    loss.backward()
                    optimizer.step()
                    scheduler.step()
                    sums["trained"] += len(x)
                    for index in range(config.get("results_per_step", 0)):
                        report({"step": session.num_steps, "index": index})
                    maybe_fail("after step")
                    time.sleep(config.get("sleep_s", 0.0))
                network.eval()
                with torch.no_grad():
                    for number, (x,) in enumerate(valid_loader):
                        sums["validated"] += len(x)
                        sums["total"] += float(x.sum())
                        if number == 1:
                            maybe_fail("validation")
                network.train()
                maybe_fail("before sums")
                with sums.synchronized():
                    result = {"epoch": epoch, **dict(sums.items())}
                weights = torch.cat(
                    [parameter.detach().reshape(-1)[:20] for parameter in network.parameters()]
                ).tolist()
                result["weights"] = weights
                report(result)
                results.append(result)
                maybe_fail("after report")
                maybe_fail("between epochs")
        finally:
            for name, collective in collectives.items():
                setattr(dist, name, collective)
            dist.init_process_group = init_process_group
        return {
            "weights": weights,
            "lr": scheduler.get_last_lr(),
            "steps": session.num_steps,
            "num_skipped_steps": session.num_skipped_steps,
            "local_bsz": train_loader.current_local_bsz,
            "accumulation_steps": train_loader.accumulation_steps,
        }

    return train
