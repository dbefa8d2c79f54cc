"""Ways to train that users have, each a short training at a fixed batch size: where it ends must not depend on the replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import adaptdl.torch as adl
from tests.torch.functions import Numbers, deep_network, network, parameters, wide_network

__all__ = ["CASES", "WHOLE_ONLY", "train_all"]

_DTYPE = torch.float64
_BATCH_SIZE, _NUM_PASSES = 8, 3
Step = Callable[[Tensor, Tensor], None]


def train_all(config: dict[str, Any]) -> dict[str, list[float]]:
    """The training function: every case; what each ends with.

    Config: part: samples of a forward-backward pass, of which a step has several; cases: all if it is not there.
    """
    return {case: _train(case, CASES[case], config.get("part")) for case in config.get("cases", CASES)}


def _train(case: str, make: Callable[[str], tuple[list[nn.Module], Step]], part: int | None) -> list[float]:
    loader = adl.AdaptiveDataLoader(Numbers(44), batch_size=_BATCH_SIZE, shuffle=True, name=f"{case}-data")
    if part is not None:
        loader.autoscale_batch_size(_BATCH_SIZE, (1, part), gradient_accumulation=True)
    modules, step = make(case)
    for _ in range(_NUM_PASSES):
        for inputs, targets, _ in loader:
            step(inputs, targets)
    return [value for module in modules for value in parameters(module)]


def _with(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], **how: Any) -> Any:
    """A case: the plain network, with this optimizer."""

    def make(case: str) -> tuple[list[nn.Module], Step]:
        return _plain(case, network(), make_optimizer, **how)

    return make


def _plain(
    case: str,
    module: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    *,
    set_to_none: bool = True,
    clip_at: float | None = None,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    **how: Any,
) -> tuple[list[nn.Module], Step]:
    optimizer = (make_optimizer or _sgd)(module)
    model = adl.AdaptiveDataParallel(module, optimizer, name=case, **how)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        (loss or _mse)(model, inputs, targets).backward()
        if clip_at is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_at)
        optimizer.step()

    return [module], step


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.02, momentum=0.9)


def _mse(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(model(inputs), targets)


class _TwoHeads(nn.Module):
    """Uses one of its heads for each batch, and never one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 4, dtype=_DTYPE)
        self.heads = nn.ModuleList(nn.Linear(4, 1, dtype=_DTYPE) for _ in range(2))
        self.never = nn.Linear(3, 3, dtype=_DTYPE)
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        output: Tensor = self.heads[self.num_calls % 2](self.body(x).tanh())
        return output


class _Tied(nn.Module):
    """Its two layers are one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6, dtype=_DTYPE)
        self.second = nn.Linear(6, 6, dtype=_DTYPE)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x).tanh()).sum(1, keepdim=True)
        return output


class _Pictures(nn.Module):
    """Its weights, and so their gradients, do not lie in memory in the order of their indices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, (2, 1), dtype=_DTYPE), nn.Tanh(), nn.Conv2d(4, 1, 1, dtype=_DTYPE))
        self.layers.to(memory_format=torch.channels_last)
        assert not self.layers[0].weight.is_contiguous()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x.view(-1, 3, 2, 1)).view(-1, 1)
        return output


class _TwoTasks(nn.Module):
    """Has an output for each, of layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tasks = nn.ModuleList(nn.Linear(6, 1, dtype=_DTYPE) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [task(x) for task in self.tasks]


def _two_passes(case: str, order: Sequence[int]) -> tuple[list[nn.Module], Step]:
    """A backward pass for each task."""
    module = _TwoTasks()
    optimizer = _sgd(module)
    model = adl.AdaptiveDataParallel(module, optimizer, name=case)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        outputs = model(inputs)
        for task in order:
            functional.mse_loss(outputs[task], targets).backward()
        optimizer.step()

    return [module], step


def _frozen() -> nn.Module:
    module = network()
    first = next(iter(module.children()))
    first.requires_grad_(False)
    return module


def _gan(case: str) -> tuple[list[nn.Module], Step]:
    """Two models in one function, each with its optimizer, that step in turns."""
    torch.manual_seed(0)
    generator = nn.Linear(6, 6, dtype=_DTYPE)
    critic = nn.Sequential(nn.Linear(6, 4, dtype=_DTYPE), nn.Tanh(), nn.Linear(4, 1, dtype=_DTYPE))
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3) for module in (generator, critic)]
    makes = adl.AdaptiveDataParallel(generator, optimizers[0], name=f"{case}-generator")
    judges = adl.AdaptiveDataParallel(critic, optimizers[1], name=f"{case}-critic")

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizers[1].zero_grad()
        (judges(makes(inputs).detach()).mean() - judges(inputs.sin()).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        critic.requires_grad_(False)
        (-critic(makes(inputs)).mean()).backward()
        critic.requires_grad_(True)
        optimizers[0].step()

    return [generator, critic], step


def _scaled(case: str) -> tuple[list[nn.Module], Step]:
    module = network()
    optimizer = _sgd(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = adl.AdaptiveDataParallel(module, optimizer, mp_scaler=scaler, name=case)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        scaler.scale(_mse(model, inputs, targets)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return [module], step


CASES: dict[str, Callable[[str], tuple[list[nn.Module], Step]]] = {
    "SGD": _with(_sgd),
    "Adam": _with(lambda module: torch.optim.Adam(module.parameters(), lr=1e-2)),
    "AdamW with amsgrad": _with(lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2, amsgrad=True)),
    "RMSprop": _with(lambda module: torch.optim.RMSprop(module.parameters(), lr=1e-3, momentum=0.9)),
    "Adagrad": _with(lambda module: torch.optim.Adagrad(module.parameters(), lr=1e-2)),
    "Adadelta": _with(lambda module: torch.optim.Adadelta(module.parameters())),
    "two groups of parameters": _with(
        lambda module: torch.optim.SGD(
            [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(module.parameters())]
        )
    ),
    "gradients set to zero": _with(_sgd, set_to_none=False),
    "clipped gradients": _with(_sgd, clip_at=0.1),
    "unused parameters": lambda case: _plain(case, _TwoHeads(), find_unused_parameters=True),
    "shared parameters": lambda case: _plain(case, _Tied()),
    "frozen parameters": lambda case: _plain(case, _frozen()),
    "compiled": lambda case: _plain(case, torch.compile(network(), backend="aot_eager")),  # type: ignore[arg-type]
    "weights in another order": lambda case: _plain(case, _Pictures()),
    "many parameters": lambda case: _plain(case, deep_network()),
    "several buckets": lambda case: _plain(case, wide_network()),
    "two passes": lambda case: _two_passes(case, (0, 1)),
    "two passes the other way round": lambda case: _two_passes(case, (1, 0)),
    "two models": _gan,
    "gradient scaler": _scaled,
}
WHOLE_ONLY = ("unused parameters", "two models")
"""Where the passes of a step differ in more than their samples."""
