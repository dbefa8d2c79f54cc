from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import adaptdl.torch as adl
from adaptdl.errors import UsageError
from adaptdl.goodput import GradParams
from adaptdl.torch.ambient import use_session


@pytest.fixture(autouse=True)
def session() -> Iterator[adl.ElasticSession]:
    with adl.open_session() as session:
        yield session


def data(n: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)


def test_it_behaves_as_users_of_distributed_data_parallel_expect() -> None:
    module = linear()
    model = adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert isinstance(model, torch.nn.Module)
    assert model.module is module
    assert list(model.parameters()) == list(module.parameters())
    assert set(model.state_dict()) == {"module.weight", "module.bias"}
    assert model.in_features == 4
    model.eval()
    assert not module.training
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = model.nothing


def test_a_layer_that_the_user_has_set_to_evaluate_stays_so() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    module[1].eval()
    with adl.open_session() as session:
        model = adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))
        assert not module[1].training
        assert session.group is not None
        model.release()
        model.rebuild(session.group)
        assert not module[1].training
        assert module[0].training


def test_on_a_default_device_of_the_users_the_library_keeps_to_the_cpu() -> None:
    loader = adl.AdaptiveDataLoader(data(8), batch_size=4, shuffle=True)
    module = linear()
    with torch.device("meta"):
        model = adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1))
        assert sorted(loader.sampler.permutation()) == list(range(8))
    for inputs, _ in loader:
        model(inputs).mean().backward()


def test_mistakes_with_the_optimizer_are_told() -> None:
    module = linear()
    with pytest.raises(UsageError, match="must hold parameters of the model"):
        adl.AdaptiveDataParallel(module, torch.optim.SGD(linear().parameters(), lr=0.1))
    with pytest.raises(UsageError, match=r"optimizer must be a torch.optim.Optimizer, but got int"):
        adl.AdaptiveDataParallel(module, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="scaling_rule must be"):
        adl.AdaptiveDataParallel(module, torch.optim.SGD(module.parameters(), lr=0.1), scaling_rule=2)  # type: ignore[arg-type]


def test_closures_are_refused() -> None:
    module = linear()
    with pytest.raises(UsageError, match="must do without a closure, but LBFGS does not"):
        adl.AdaptiveDataParallel(module, torch.optim.LBFGS(module.parameters()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(UsageError, match="cannot take a closure"):
            step()
    optimizer.step(closure=None)
    assert model.module is module


def test_a_scheduler_made_after_the_model_works_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for inputs, targets in adl.AdaptiveDataLoader(data(), batch_size=16):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05]
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.05
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_two_models_of_one_name_are_refused_and_of_two_are_not() -> None:
    first, second = linear(), linear()
    keep = adl.AdaptiveDataParallel(first, torch.optim.SGD(first.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="'model' is taken"):
        adl.AdaptiveDataParallel(second, torch.optim.SGD(second.parameters(), lr=0.1))
    other = adl.AdaptiveDataParallel(second, torch.optim.SGD(second.parameters(), lr=0.1), name="other")
    assert keep.module is not other.module


@pytest.mark.parametrize("order", ["zero first", "zero last", "zero between"])
def test_accumulated_steps_are_those_of_the_whole_batch(order: str) -> None:
    def train(accum_steps: int) -> list[float]:
        with adl.open_session():
            module = linear().double()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9)
            model = adl.AdaptiveDataParallel(module, optimizer, scheduler, name=f"{order}-{accum_steps}")
            loader = adl.AdaptiveDataLoader(data(70), batch_size=20)
            loader.batch = adl.Batch(
                batch_size=20, atomic_batch_size=-(-20 // (accum_steps + 1)), accum_steps=accum_steps
            )
            for inputs, targets in loader:
                if order == "zero first":
                    optimizer.zero_grad()
                output = model(inputs.double())
                if order == "zero between":
                    optimizer.zero_grad()
                torch.nn.functional.mse_loss(output, targets.double()).backward()
                optimizer.step()
                scheduler.step()
                if order == "zero last":
                    optimizer.zero_grad()
            return [*module.weight.flatten().tolist(), optimizer.param_groups[0]["lr"]]

    whole = train(0)
    for accum_steps in (1, 2, 6):
        assert train(accum_steps) == pytest.approx(whole, rel=1e-12)


def test_the_learning_rate_is_scaled_only_while_the_optimizer_steps() -> None:
    seen: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    module = linear()
    optimizer = Watching(module.parameters(), lr=0.01)
    model = adl.AdaptiveDataParallel(module, optimizer, scaling_rule=adl.LinearScale())
    loader = adl.AdaptiveDataLoader(data(), batch_size=8)
    loader.autoscale_batch_size(64)
    loader.batch = adl.Batch(batch_size=32, atomic_batch_size=32)
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.01
    assert seen[0] == pytest.approx(0.04)


def test_a_grad_scaler_and_its_skipped_parts_work() -> None:
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    model = adl.AdaptiveDataParallel(module, optimizer, mp_scaler=scaler)
    loader = adl.AdaptiveDataLoader(data(), batch_size=16)
    loader.batch = adl.Batch(batch_size=16, atomic_batch_size=8, accum_steps=1)
    before = module.weight.clone()
    for inputs, targets in loader:
        optimizer.zero_grad()
        scaler.scale(torch.nn.functional.mse_loss(model(inputs), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert not torch.equal(before, module.weight)
    assert torch.isfinite(module.weight).all()


@pytest.mark.parametrize("rule", [adl.AdaScale(), adl.LinearScale(), adl.SqrtScale(), adl.LEGWScale(0)])
def test_every_rule_is_the_identity_at_the_batch_size_of_the_user(rule: adl.ScalingRule) -> None:
    params = GradParams(grad_sqr=1.0, grad_var=3.0)
    assert rule.factor(scale=1.0, grad_params=params, progress=10.0) == 1.0


def test_rules_give_what_their_papers_say() -> None:
    params = GradParams(grad_sqr=1.0, grad_var=3.0)
    ada = adl.AdaScale().factor(scale=4.0, grad_params=params, progress=0.0)
    assert ada == pytest.approx((3 + 1) / (3 / 4 + 1))
    assert adl.LinearScale().factor(scale=4.0, grad_params=params, progress=0.0) == 4
    assert adl.SqrtScale().factor(scale=4.0, grad_params=params, progress=0.0) == 2
    legw = adl.LEGWScale(10)
    assert legw.factor(scale=4.0, grad_params=None, progress=19.0) == pytest.approx(2 * 20 / 40)
    assert legw.factor(scale=4.0, grad_params=None, progress=100.0) == 2


@pytest.mark.parametrize("clips", [False, True])
def test_the_noise_of_known_gradients_is_measured_by_a_single_replica(clips: bool) -> None:
    # loss = mean over samples of w·x: the gradient of a sample is x, with mean (1, 1, 1, 1) and variance 4 per entry
    torch.manual_seed(0)
    inputs = 1 + 2 * torch.randn(4000, 4)
    module = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    model = adl.AdaptiveDataParallel(module, optimizer)
    loader = adl.AdaptiveDataLoader(TensorDataset(inputs), batch_size=8, shuffle=True)
    loader.autoscale_batch_size(9)
    for _ in range(12):
        for (batch,) in loader:
            optimizer.zero_grad()
            model(batch).mean().backward()
            if clips:
                torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
    params = model.grad_params(adl.current_session())
    assert params is not None
    assert params.grad_sqr == pytest.approx(4.0, rel=0.35)
    assert params.grad_var == pytest.approx(16 / 8, rel=0.35)


def test_between_the_parts_of_a_step_there_are_no_gradients_and_an_error_says_so() -> None:
    def train() -> None:
        module = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        model = adl.AdaptiveDataParallel(module, optimizer)
        loader = adl.AdaptiveDataLoader(TensorDataset(torch.randn(16, 4)), batch_size=8)
        loader.autoscale_batch_size(8, (1, 4), gradient_accumulation=True)
        for (batch,) in loader:
            optimizer.zero_grad()
            model(batch).mean().backward()
            assert adl.current_session().is_accumulating == (module.weight.grad is None)
            for parameter in module.parameters():
                parameter.grad.clamp_(-1, 1)  # type: ignore[union-attr]
            optimizer.step()

    with pytest.raises(AttributeError) as error, use_session(adl.current_session()):
        train()
    assert ["there are none between the parts of a step" in note for note in error.value.__notes__] == [True]


def test_training_the_module_inside_is_told() -> None:
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    with pytest.raises(UsageError, match="call the object that AdaptiveDataParallel returned"):  # noqa: PT012
        for inputs, targets in adl.AdaptiveDataLoader(data(), batch_size=16):
            optimizer.step()  # there are no gradients yet
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(inputs), targets).backward()
            optimizer.step()
    assert model.module is module


def test_training_without_an_adaptive_loader_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    model = adl.AdaptiveDataParallel(module, optimizer)
    for inputs, targets in torch.utils.data.DataLoader(data(), batch_size=16):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    assert len([record for record in caplog.records if "outside of loops over" in record.message]) == 1
