"""A data-parallel model whose replicas may come and go."""

from __future__ import annotations

import contextlib
import functools
import re
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from adaptdl.errors import SnapshotError, UsageError
from adaptdl.goodput import GradParams
from adaptdl.torch.ambient import current_session
from adaptdl.torch.buckets import Bucket
from adaptdl.torch.exchange import Carrier
from adaptdl.torch.gradient_noise import GradientNoise
from adaptdl.torch.group import Group, GroupBroken
from adaptdl.torch.memory import is_out_of_memory
from adaptdl.torch.part_norms import PartNorms
from adaptdl.torch.reducer import GradientReducer
from adaptdl.torch.registry import State
from adaptdl.torch.scaling_rules import ScalingRule, check_scaling_rule, default_scaling_rule
from adaptdl.torch.second_moments import has_second_moments, second_moments
from adaptdl.torch.session import ElasticSession
from adaptdl.torch.small_gradients import SmallGradients
from adaptdl.torch.transfer import broadcast_states
from adaptdl.torch.warm_up import warm_up

__all__ = ["AdaptiveDataParallel"]

_NO_CLOSURES = (
    "optimizer.step cannot take a closure: whether a step is made at all depends on the passes of all replicas before it; call "
    "loss.backward() first and then optimizer.step()"
)


_NOT_WRAPPED = (
    "gradients must come from backward on the wrapped model, but this optimizer steps with others: in the training loop, "
    "call the object that AdaptiveDataParallel returned, not the module inside"
)

_UNFINISHED = "Expected to have finished reduction in the prior iteration"
"""How torch begins to say that a backward pass has not reached all parameters."""
_UNUSED = re.compile(r"did not receive grad for rank \d+: ((?:\d+ ?)+)")


class AdaptiveDataParallel(torch.nn.Module):
    """Wraps a model and its optimizer, as torch's DistributedDataParallel wraps a model.

    Gradients are averaged over the samples of a step, wherever they were computed. The user's own optimizer keeps being
    used: its ``step`` and ``zero_grad`` do nothing while gradients are accumulated, and ``step`` multiplies the learning
    rate by what the scaling rule says for the present batch size. Between the parts of a step there are no gradients to be
    seen or changed (``.grad`` is None): what is clipped or logged after ``backward`` is the gradient of a whole step.
    `module` is the wrapped model, and attributes that are not found here are looked up there. In loops over the data the
    batches must come from an AdaptiveDataLoader.

    Args:
        model: on the device it is trained on.
        optimizer: of parameters of `model`.
        lr_scheduler: its state is kept with the model's; its ``step`` does nothing while gradients are accumulated.
        mp_scaler: a GradScaler, if there is one.
        scaling_rule: None takes AdaScale, or SqrtScale for the Adam family.
        name: unique among the models of one training function.
        find_unused_parameters: as DistributedDataParallel has it.

    Raises:
        UsageError: the optimizer has no parameter of the model or needs a closure, the name is taken, `scaling_rule` is not
            one, or a module of the model gives sparse gradients. The optimizer's ``step`` raises it if it is given a closure,
            or gradients of a module that was never called through this object; and the model's forward pass if parameters
            had no part in the step before.
    """

    module: torch.nn.Module

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        mp_scaler: Any = None,
        scaling_rule: ScalingRule | None = None,
        name: str = "model",
        *,
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__()
        _check(model, optimizer)
        self.module = model
        self.scaling_rule = scaling_rule or default_scaling_rule(optimizer)
        check_scaling_rule(self.scaling_rule)
        self.find_unused_parameters = find_unused_parameters
        self._session = current_session()
        self._optimizer, self._lr_scheduler, self._mp_scaler = optimizer, lr_scheduler, mp_scaler
        self._noise = GradientNoise()
        self._reducer: GradientReducer | None = None
        self._ddp: DistributedDataParallel | None
        object.__setattr__(self, "_ddp", None)  # not a submodule: its parameters are the module's
        self._is_dirty = False
        """Gradients of a part of a step are there, and wait for the other parts."""
        self._small: SmallGradients | None = None
        """In place of DistributedDataParallel, where that would take longer."""
        self._is_settled = False
        """Whether it was decided in this generation which of them is used."""
        self._parts: PartNorms | None = None
        self._hidden: dict[torch.nn.Parameter, torch.Tensor] = {}
        """Gradients of the parts of a step so far, while the next part has not begun: nothing is done with them."""
        self._was_called = False
        """Whether it was ever called for gradients."""
        self._buckets_are_final = False
        """Whether the replicas of the generation have agreed on them."""
        self._adapt_optimizer()
        self._state = _ModelState(self, name)
        self._session.add_model(self)
        if self._session.group is not None:
            self.rebuild(self._session.group)
            if self._session.num_replicas > 1:
                self._take_over_from_rank_0(self._session.group)
        if (waiting := self._session.registry.take_waiting(name)) is not None:
            self._state.load_state_dict(waiting)

    # -- computing ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._forward(*args, **kwargs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._session.note_out_of_memory()
            if _UNFINISHED in str(error):
                raise _unused_parameters(self._unused_names(str(error))) from error
            raise

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._reducer is None or not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        if not self._was_called:  # to set an attribute of a Module takes microseconds, and steps may be short
            self._was_called = True
        self._begin_part()
        session = self._session
        is_void = session.is_broken or (session.num_replicas > 1 and not self._buckets_agreed())
        if self._small is not None:
            if self._ddp is not None:
                object.__setattr__(self, "_ddp", None)
            if missing := self._small.missing:
                raise _unused_parameters(self._names(missing))
            self._small.begin_pass(is_summed=not is_void and not session.is_accumulating)
        if is_void:
            return self.module(*args, **kwargs)
        compute = self.module if self._ddp is None else self._ddp
        if not session.is_accumulating:
            return compute(*args, **kwargs)
        with contextlib.nullcontext() if self._ddp is None else self._ddp.no_sync():
            output = compute(*args, **kwargs)
        for tensor in _pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(self._mark_dirty)
        return output

    def _buckets_agreed(self) -> bool:
        """What DistributedDataParallel would do first, and raise from the user's forward pass: agree on buckets. For all models
        at once, before any other collective of the step, as a replica that has left the loop does (`parting`)."""
        session = self._session
        if session.micro is not None and session.agreed_in is session.micro:
            return True
        session.agreed_in = session.micro
        try:
            for model in session.models():
                model.rebuild_buckets()
        except GroupBroken as error:
            session.note_broken(error)
            return False
        return True

    def _mark_dirty(self, _: torch.Tensor) -> None:
        self._is_dirty = True
        torch.autograd.Variable._execution_engine.queue_callback(self._hide_gradients)

    def _hide_gradients(self) -> None:
        """At the end of a backward pass, before the user sees them."""
        if self._parts is not None:
            self._parts.end_part()
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                if parameter in self._hidden:  # more than one backward pass in a part
                    self._hidden[parameter].add_(parameter.grad)
                else:
                    self._hidden[parameter] = parameter.grad
                parameter.grad = None

    def _begin_part(self) -> None:
        """Before a part of a step: brings back the gradients of the parts before, in its units."""
        micro = self._session.micro
        if micro is None or micro.count == 1:
            return
        if micro.index == 0 and self._reducer is not None and (self._parts is None or self._parts.micro is not micro):
            self._watch_no_parts()
            self._parts = self._reducer.watch_parts(micro, self.module.parameters())
        if micro.index == 0 or not self._hidden:
            return
        if micro.size != micro.previous_size and micro.size > 0:
            torch._foreach_mul_([*self._hidden.values()], micro.previous_size / micro.size)
        for parameter, gradient in self._hidden.items():
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        self._hidden = {}

    def _watch_no_parts(self) -> None:
        if self._parts is not None:
            self._parts.remove()
            self._parts = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing while gradients are accumulated."""
        if not self._is_dirty:
            super().zero_grad(set_to_none)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(super().__getattr__("module"), name)

    # -- the user's optimizer -----------------------------------------------------------------------------------------

    def _adapt_optimizer(self) -> None:
        """Makes the user's own objects skip what must not happen between the parts of a step."""
        ref = weakref.ref(self)
        optimizer: Any = self._optimizer
        step, zero_grad = optimizer.step, optimizer.zero_grad

        @functools.wraps(step)
        def scaled_step(_: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs.get("closure") is not None:
                raise UsageError(_NO_CLOSURES)
            model = ref()
            return step() if model is None else model._step(step)

        @functools.wraps(zero_grad)
        def guarded_zero_grad(_: Any, *args: Any, **kwargs: Any) -> None:
            model = ref()
            if model is None or not model._is_dirty:
                zero_grad(*args, **kwargs)

        # Methods: a learning-rate scheduler that is made later takes them apart to wrap them again.
        optimizer.step = types.MethodType(scaled_step, optimizer)
        optimizer.zero_grad = types.MethodType(guarded_zero_grad, optimizer)
        if self._lr_scheduler is not None:
            _skip_while_accumulating(self._lr_scheduler, ["step"], self._session)
        if self._mp_scaler is not None:
            _skip_while_accumulating(self._mp_scaler, ["step", "unscale_", "update"], self._session)

    def _step(self, step: Callable[[], Any]) -> Any:
        session = self._session
        if session.is_accumulating:
            return None
        if self._is_dirty:
            self._is_dirty = False
        if session.step_is_void:
            return None
        if not self._was_called and self._reducer is not None and session.micro is not None and self._has_gradients:
            raise UsageError(_NOT_WRAPPED)
        if self._reducer is not None and not self._reducer.is_finite:
            session.skip_step()
            return None
        factor = self.lr_factor
        if factor == 1.0:
            return step()
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor
            return step()
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    @property
    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self.module.parameters())

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied with in a step at the present batch size."""
        session = self._session
        return self.scaling_rule.factor(
            scale=session.lr_scale, grad_params=self.grad_params(session), progress=session.progress
        )

    # -- what a session asks of its models ----------------------------------------------------------------------------

    def rebuild(self, group: Group) -> None:
        """A generation begins; all replicas have the same state."""
        self._is_dirty, self._hidden = False, {}
        if not any(p.requires_grad for p in self.module.parameters()):
            return
        warm_up()
        moments = functools.partial(second_moments, self._optimizer) if has_second_moments(self._optimizer) else None
        exchange = self._session.exchange
        assert exchange is not None
        self._reducer = GradientReducer(group, exchange, self._noise, moments, self._session.note_broken)
        ddp = DistributedDataParallel(
            self.module,
            forward_sync_buffers=False,
            init_sync=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.find_unused_parameters,
        )
        ddp.register_comm_hook(weakref.ref(self), _reduce_bucket)
        ddp.training = self.training  # its `train` would set modules that the user has set otherwise
        object.__setattr__(self, "_ddp", ddp)
        self._buckets_are_final = self._is_settled = False

    def release(self) -> None:
        """The generation ends."""
        object.__setattr__(self, "_ddp", None)
        self._reducer = None
        self._watch_no_parts()
        if self._small is not None:
            self._small.remove()
            self._small = None

    def end_loop(self) -> None:
        """A loop is over; parts of a step that was not finished are not waited for."""
        self._is_dirty, self._hidden = False, {}
        self._watch_no_parts()
        if self._small is not None:
            self._small.begin_pass(is_summed=False)
        if self._reducer is not None:
            self._reducer.drop_sums()

    def drop_void_step(self) -> None:
        """The loop has ended, and some replicas had left it before others."""
        if self._reducer is not None:
            self._reducer.drop_void_step()

    def take_sample(self) -> tuple[float, float] | None:
        return None if self._reducer is None else self._reducer.take_sample()

    def give_sample(self, local: float, averaged: float) -> None:
        if self._reducer is not None:
            self._reducer.give_sample(local, averaged)

    @property
    def norms_due_next(self) -> bool:
        """Whether norms of gradients should be taken in the step after the one that begins."""
        return self._reducer is not None and self._reducer.is_due_next

    @property
    def carrier(self) -> Carrier | None:
        """What its gradients were in the last step of this generation, if they can carry an exchange."""
        return None if self._reducer is None else self._reducer.carrier

    def set_norms_due(self, due: bool) -> None:
        """Whether norms are to be taken in the step that comes."""
        if self._reducer is not None:
            self._reducer.is_due = due

    def rebuild_buckets(self) -> None:
        """What DistributedDataParallel does before a forward pass, if it wants to: it takes a collective."""
        if self._ddp is None or self._buckets_are_final:
            return
        try:
            with self._session.sound_group().waiting():
                self._buckets_are_final = self._ddp.reducer._rebuild_buckets() or self.find_unused_parameters
        except GroupBroken as error:
            if _UNFINISHED in str(error):
                raise _unused_parameters(self._unused_names(str(error))) from error
            raise

    def _unused_names(self, message: str) -> Sequence[str]:
        """Of torch's message, which has their numbers."""
        trained = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        found = _UNUSED.search(message)
        return [trained[int(number)] for number in found[1].split()] if found else ["some of them"]

    def _names(self, parameters: Sequence[torch.Tensor]) -> Sequence[str]:
        return [name for name, parameter in self.module.named_parameters() if any(parameter is p for p in parameters)]

    def match_step(self) -> None:
        """Takes part with zeros in a backward pass that others make."""
        session = self._session
        if self._small is not None:
            if not session.take_carried():
                session.sound_group().all_reduce(torch.zeros_like(self._small.buffer()))
        elif self._ddp is not None:
            with session.sound_group().waiting():
                self._ddp._match_all_reduce_for_bwd_pass()
                if self._ddp.find_unused_parameters:
                    self._ddp._match_unused_params_allreduce()
                self._ddp.reducer._push_all_rebuilt_params()

    def broadcast_buffers(self) -> None:
        """Everybody takes rank 0's buffers (running statistics of normalisation layers)."""
        buffers = list(self.module.buffers())
        group = self._session.group
        if buffers and group is not None:
            received = broadcast_states(group, {"buffers": buffers} if group.rank == 0 else None)["buffers"]
            if group.rank != 0:
                with torch.no_grad():
                    for buffer, value in zip(buffers, received, strict=True):
                        buffer.copy_(value)

    def grad_params(self, session: ElasticSession) -> GradParams | None:
        """Gradient statistics at M₀ of the loop that runs (or ran last); None while there are none."""
        init_batch_size = session.init_batch_size
        return None if init_batch_size is None else self._noise.grad_params(init_batch_size)

    @property
    def num_noise_samples(self) -> int:
        """Steps of which gradient norms were taken."""
        return self._noise.num_samples

    def _take_over_from_rank_0(self, group: Group) -> None:
        states = broadcast_states(group, self._state.state_dict() if group.rank == 0 else None)
        if group.rank != 0:
            self._state.load_state_dict(dict(states))

    def _reduce(self, bucket: Bucket) -> torch.futures.Future[torch.Tensor]:
        """The communication hook."""
        session, reducer = self._session, self._reducer
        assert reducer is not None
        if session.is_matching:
            return _done(bucket.buffer()) if session.take_carried() else _zeros(bucket.buffer())
        if bucket.index() == 0:  # before DistributedDataParallel's own callback
            torch.autograd.Variable._execution_engine.queue_callback(reducer.await_sums)
        self._begin_sum(bucket)
        if not self._is_settled and (session.num_replicas == 1 or self._buckets_are_final):
            self._is_settled = True
            if reducer.carrier is not None and not self.find_unused_parameters and SmallGradients.fits(bucket):
                self._small = SmallGradients(bucket, functools.partial(_reduce_small, weakref.ref(self)))
        return _done(bucket.buffer())

    def _reduce_small(self) -> None:
        assert self._small is not None
        assert self._reducer is not None
        self._begin_sum(self._small)
        self._reducer.await_sums()

    def _begin_sum(self, bucket: Bucket) -> None:
        """No error is raised if the group is lost: the step is void then."""
        session, reducer = self._session, self._reducer
        assert reducer is not None
        if session.is_broken:
            return
        if bucket.index() == 0:
            reducer.note_carrier(bucket)
            session.on_first_bucket(self)
            scale = self._mp_scaler.get_scale() if self._mp_scaler is not None else 1.0
            reducer.begin(session.micro, session.init_batch_size or 1, scale, self._parts)
            if self._parts is not None:
                self._parts = None
        reducer.reduce(bucket, session.micro)

    @property
    def sync_time_s(self) -> float:
        """Communication of the last step that no computing hid."""
        return 0.0 if self._reducer is None else self._reducer.sync_time_s


class _ModelState(State):
    """What survives of a model: parameters, buffers, optimizer, scheduler, scaler, noise statistics."""

    def __init__(self, model: AdaptiveDataParallel, name: str) -> None:
        self._model = weakref.ref(model)
        super().__init__(name)

    def _parts(self) -> tuple[dict[str, Any], GradientNoise]:
        model = self._model()
        assert model is not None
        parts = {
            "module": model.module,
            "optimizer": model._optimizer,
            "lr_scheduler": model._lr_scheduler,
            "mp_scaler": model._mp_scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}, model._noise

    def state_dict(self) -> dict[str, Any]:
        parts, noise = self._parts()
        return {**{name: part.state_dict() for name, part in parts.items()}, "noise": noise.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parts, noise = self._parts()
        missing = sorted(set(parts) - set(state_dict))
        if missing:
            raise SnapshotError(
                f"the snapshot of model {self.name!r} has no {', '.join(missing)}, but the function has"
            )
        for name, part in parts.items():
            try:
                part.load_state_dict(state_dict[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise SnapshotError(f"the snapshot of model {self.name!r} is from another {name}: {error}") from error
        noise.load_state_dict(state_dict["noise"])


def _reduce_bucket(
    ref: weakref.ref[AdaptiveDataParallel], bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    model = ref()
    assert model is not None, "the model was dropped in its backward pass"
    return model._reduce(bucket)


# DistributedDataParallel compares the annotations of its hook with these objects, and would not know them as strings.
_reduce_bucket.__annotations__.update({"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]})


def _reduce_small(ref: weakref.ref[AdaptiveDataParallel]) -> None:
    if (model := ref()) is not None:
        model._reduce_small()


def _done(buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    done.set_result(buffer)
    return done


def _zeros(buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Of a replica that keeps the others company, which awaits the future itself."""
    work = dist.all_reduce(buffer, async_op=True)
    assert work is not None
    future: torch.futures.Future[torch.Tensor] = work.get_future()
    return future


def _unused_parameters(names: Sequence[str]) -> UsageError:
    return UsageError(
        "every parameter must have a part in the loss of every step, or AdaptiveDataParallel be made with "
        f"find_unused_parameters=True; in the step before, {', '.join(names)} had none"
    )


def _skip_while_accumulating(target: Any, methods: Sequence[str], session: ElasticSession) -> None:
    """Makes these methods of `target` do nothing between the parts of a step. By way of its class: what is in the object
    itself is in the state_dict of a scheduler."""

    def guarded(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return None if session.holds_back else method(self, *args, **kwargs)

        return call

    cls = type(target)
    guards = {name: guarded(getattr(cls, name)) for name in methods}
    target.__class__ = type(cls.__name__, (cls,), {**guards, "__module__": cls.__module__})


def _check(model: Any, optimizer: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer must be a torch.optim.Optimizer, but got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(f"the optimizer must do without a closure, but LBFGS does not: {_NO_CLOSURES}")
    sparse = [name for name, module in model.named_modules() if getattr(module, "sparse", False) is True]
    if sparse:
        raise UsageError(
            f"gradients must be dense, but these modules were made with sparse=True: {', '.join(map(repr, sparse))}; "
            "make them with sparse=False"
        )
    parameters = {id(p) for p in model.parameters()}
    if not any(id(p) in parameters for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            "the optimizer must hold parameters of the model, but has none of them; make it from model.parameters() "
            "after the model was moved to its device"
        )
