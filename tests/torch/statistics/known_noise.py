"""Problems whose gradient mean and covariance are known, and what the library measures of them on any number of replicas."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.data import TensorDataset

import adaptdl.torch as adl
from adaptdl.torch import norm_pace

__all__ = ["Measured", "measure"]

_NUM_DIMENSIONS = 30
_NUM_SAMPLES = 8192
_LOOK_STEPS = 20
"""Steps between two looks at the optimizer's second moments, which fluctuate."""
_SKIPPED_STEPS = 300
"""Before the averages over readings begin: the optimizer's second moments have to settle."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """At M₀: what was measured, the mean over many steps, and what is true of the data."""

    grad_sqr: float
    grad_var: float
    true_grad_sqr: float
    true_grad_var: float
    num_readings: int


def measure(config: dict[str, Any]) -> Measured:
    """The training function: trains with a learning rate of 0, so that nothing changes.

    Config: num_steps; local_batch (samples in one pass); network ("linear" or "tanh"), optimizer ("SGD" or "Adam"), num_parts
    (passes of a step), bf16, groups (of parameters).
    """
    # Otherwise a single replica, and whoever has second moments, takes a sample in one step of 8 to 32, and needs as many more.
    norm_pace._STEPS_PER_SPLIT_AT_FIRST = norm_pace._LONGEST_STEPS = 1
    return _measure(**config)


def _measure(
    *,
    num_steps: int,
    network: str = "linear",
    optimizer: str = "SGD",
    num_parts: int = 1,
    bf16: bool = False,
    groups: int = 1,
    local_batch: int = 16,
) -> Measured:
    session = adl.current_session()
    data, module = _problem(network)
    batch_size = local_batch * num_parts * session.num_replicas
    train_loader = adl.AdaptiveDataLoader(data, batch_size=batch_size, shuffle=True)
    accumulates = num_parts > 1
    bounds = (local_batch, local_batch) if accumulates else (local_batch // 2, batch_size)
    train_loader.autoscale_batch_size(batch_size, bounds, gradient_accumulation=accumulates)
    parameters = list(module.parameters())
    param_groups = [{"params": parameters[group::groups]} for group in range(groups)]
    chosen = getattr(torch.optim, optimizer)(param_groups, lr=0.0)
    model = adl.AdaptiveDataParallel(module, chosen)
    readings, scales = [], []
    while session.num_steps < num_steps:
        for inputs, targets in train_loader:
            chosen.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                output = model(inputs)
            _loss(output.float(), targets).backward()
            chosen.step()
            params = model.grad_params(session)
            if params is not None and session.num_steps >= _SKIPPED_STEPS and not session.is_accumulating:
                readings.append(params)
                if session.num_steps % _LOOK_STEPS == 0:
                    scales.append(_preconditioner(chosen, parameters))
    true_sqr, true_var = _truth(module, data, scales, bf16=bf16)
    return Measured(
        grad_sqr=statistics.fmean(reading.grad_sqr for reading in readings),
        grad_var=statistics.fmean(reading.grad_var for reading in readings),
        true_grad_sqr=true_sqr,
        true_grad_var=true_var / batch_size,
        num_readings=len(readings),
    )


def _problem(network: str) -> tuple[TensorDataset, nn.Module]:
    """Linear regression, y = x·w + ε, some way off w: or a small network on the same data."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_NUM_SAMPLES, _NUM_DIMENSIONS, generator=generator)
    weights = torch.randn(_NUM_DIMENSIONS, generator=generator) / _NUM_DIMENSIONS**0.5
    targets = inputs @ weights + 0.5 * torch.randn(_NUM_SAMPLES, generator=generator)
    torch.manual_seed(1)
    if network == "linear":
        module: nn.Module = nn.Linear(_NUM_DIMENSIONS, 1)
    else:
        module = nn.Sequential(nn.Linear(_NUM_DIMENSIONS, 20), nn.Tanh(), nn.Linear(20, 1))
    return TensorDataset(inputs, targets[:, None]), module


def _loss(output: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(output, targets)


def _truth(
    module: nn.Module, data: TensorDataset, scales: Sequence[Sequence[Tensor]], *, bf16: bool
) -> tuple[float, float]:
    """|g|² and tr Σ over the samples, each coordinate divided by what the optimizer divides it by: the mean over `scales`."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = functional_call(module, parameters, (inputs[None],))
        return _loss(output.float(), targets[None])

    inputs, targets = data.tensors
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    sqr = trace = 0.0
    for index, name in enumerate(parameters):
        per_sample = gradients[name].double().reshape(len(inputs), -1)
        weights = [scale[index].double().reshape(-1) ** -2 for scale in scales if scale]
        weight = torch.stack(weights).mean(0) if weights else torch.ones(per_sample.shape[1])
        sqr += float((per_sample.mean(0).square() * weight).sum())
        trace += float((per_sample.var(0) * weight).sum())
    return sqr, trace


def _preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
    """√v̂ of each parameter (Kingma and Ba, Adam, 2015), v̂ at least a hundredth of its mean; nothing for SGD."""
    if not isinstance(optimizer, torch.optim.Adam):
        return []
    states = [optimizer.state[parameter] for parameter in parameters]
    moments = [state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"])) for state in states]
    return [moment.clamp_min(0.01 * float(moment.mean())).sqrt() for moment in moments]
