"""`SVI`, a drop-in for `pyro.infer.SVI` that captures the step once and replays it.

from pyro_vae.svi import SVI    # instead of: from pyro.infer import SVI
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vae.adam import AdamStep, same_objects
from pyro_vae.checks import InputError, one_of
from pyro_vae.gradients import Gradients, clear, give
from pyro_vae.replay import COMPILE, Compile, Graph, Replay


class SVI(pyro.infer.SVI):
    """Stochastic variational inference with the signature and the numbers of `pyro.infer.SVI`, compiled.

    The first call with a kind of batch runs eagerly, as Pyro's does; from the second on, a graph captured from it is
    replayed, if it agrees with an eager run. Parameters, the param store and the optimizer's state are the ones that
    Pyro's own SVI would use, and stay in step. What can't be captured runs eagerly, and a warning says why. Pyro's
    validation looks at eager steps alone; a loss that is no number is told at any step.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        optim: an optimizer of `pyro.optim`, or a torch optimizer over the parameters.
        loss: a Pyro ELBO, or a function of model, guide and arguments.
        loss_and_grads: as in Pyro.
        compile: "auto" compiles the graph by Inductor once that pays, "inductor" at once, "graph" never;
            "eager" captures nothing.

    Raises:
        InputError: if `optim` is no optimizer.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.param("mean", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        >>> losses = [svi.step(torch.ones(10)) for _ in range(50)]
        >>> round(losses[-1], 1)
        9.2
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | torch.optim.Optimizer,
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Compile = "auto",
        **kwargs: Any,
    ):
        if not isinstance(optim, (PyroOptim, torch.optim.Optimizer)):
            raise InputError(f"optim={optim!r} must be an optimizer of pyro.optim or of torch.optim.")
        one_of("compile", compile, COMPILE)
        stand_in = optim if isinstance(optim, PyroOptim) else pyro.optim.Adam({})
        super().__init__(model, guide, stand_in, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self._gradients = Gradients(self.loss_and_grads, model, guide)
        programs = (model, guide, loss)
        self._step = Replay(self._gradients, programs, compile=compile, what="SVI's step", follow=self._follow)
        self._loss = Replay(self._evaluated, programs, compile=compile, what="SVI's evaluate_loss")
        self.optim = optim

    @property
    def optim(self) -> PyroOptim | torch.optim.Optimizer:
        """What takes the steps; another may be put in its place."""
        return self._update.optim

    @optim.setter
    def optim(self, optim: PyroOptim | torch.optim.Optimizer) -> None:
        self._update = _Update(optim)

    @property
    def how(self) -> str:
        """How steps are run by now: eagerly, captured, or compiled."""
        return self._step.how

    def step(self, *args: Any, **kwargs: Any) -> float | Loss:
        """Takes a gradient step and returns the loss: a float, or on a GPU a `Loss`, which is read when it is used."""
        loss, gradients, _ = self._step.step(*args, **kwargs)
        if gradients is not None:
            graph = self._step.latest
            params = self._gradients.params if graph is None else graph.params
            give(params, gradients)
            self._update(params)
        return _number(loss)

    def _follow(self, graph: Graph) -> AdamStep | None:
        """The optimizer's step, to be compiled with the gradients; None if some parameter has none."""
        params = graph.params
        step = AdamStep(graph.captured, params, lambda: self._update.joint_of(params))
        return step if len(step.places) == len({id(tensor) for tensor in params.values()}) else None

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float | Loss:
        """The loss, without gradients."""
        with torch.no_grad():
            return _number(self._loss(*args, **kwargs))

    def _evaluated(self, *args: Any, **kwargs: Any) -> Any:
        return self.loss(self.model, self.guide, *args, **kwargs)


# Parameters that have ever had a gradient, whatever SVI gave it.
_with_gradients: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _Update:
    """An optimizer's step for all parameters at once, on the state that the optimizer itself would use."""

    def __init__(self, optim: PyroOptim | torch.optim.Optimizer):
        self.optim = optim
        self.joint: torch.optim.Optimizer | None = None
        self.params: list[torch.Tensor] = []
        self.named: dict[str, torch.Tensor] = {}  # whose tensors `params` are
        self.made: list[torch.optim.Optimizer] = []  # Pyro's optimizers of `params`
        self.held: list[Any] = []  # their groups and states when they were joined
        self.owners: list[tuple[dict[str, Any], dict[str, Any]]] = []  # a parameter's own group, and a copy of it
        self.seen: list[Any] = []  # what `joint` stood for when `joint_of` gave it

    def __call__(self, params: dict[str, torch.Tensor]) -> None:
        tensors = _distinct(params)
        for tensor in tensors:
            # Pyro leaves zeros behind, so that a parameter which another loss has moved goes on by its momentum.
            if tensor.grad is None and tensor in _with_gradients:
                tensor.grad = torch.zeros_like(tensor)
            elif tensor.grad is not None:
                _with_gradients[tensor] = True
        if isinstance(self.optim, torch.optim.Optimizer):
            self._check_known(params)
            self.optim.step()
        elif not self._joined(tensors):
            self.optim(tensors)
        else:
            for tensor in self.params:
                if (clip := self.optim.grad_clip[tensor]) is not None:
                    clip(tensor)
            self.joint.step()
            self._write_back()
        clear(tensors)

    def joint_of(self, params: dict[str, torch.Tensor]) -> torch.optim.Optimizer | None:
        """The one optimizer that moves these parameters, and does no more than that; None if there is none."""
        if isinstance(self.optim, torch.optim.Optimizer):
            self._check_known(params)
            return self.optim
        # Told without looking up one parameter after the other, as this is asked before every step.
        same = params is self.named and self.joint is not None and same_objects(self._held(), self.held)
        if same and self._look() == self.seen:
            return self.joint
        tensors = _distinct(params)
        if not self._joined(tensors) or any(self.optim.grad_clip[tensor] is not None for tensor in tensors):
            return None
        self.named, self.seen = params, self._look()
        return self.joint

    def _held(self) -> list[Any]:
        """What is compared by identity: the groups and states of Pyro's optimizers."""
        return [held for made in self.made for held in (*made.param_groups, *made.state.values())]

    def _look(self) -> list[Any]:
        """What is compared by value: Pyro's optimizers, clips, and the settings of each parameter's own group."""
        settings = itertools.chain.from_iterable([own.values() for own, _ in self.owners])
        return [*self.optim.optim_objs.values(), *self.optim.grad_clip.values(), *settings]

    def _check_known(self, params: dict[str, torch.Tensor]) -> None:
        if len(params) == len(self.params):
            return
        known = {id(tensor) for group in self.optim.param_groups for tensor in group["params"]}
        for name, tensor in params.items():
            if id(tensor) not in known and tensor.requires_grad:
                raise InputError(
                    f"optim does not hold the parameter {name!r}; give it all parameters, or use pyro.optim."
                )
        self.params = list(params.values())

    def _joined(self, tensors: list[torch.Tensor]) -> bool:
        """Whether one optimizer stands for the many that Pyro makes; they are joined once Pyro has made them."""
        objects = [self.optim.optim_objs.get(tensor) for tensor in tensors]
        if None in objects or not objects:
            self.joint = None
            return False
        objects = [made.optimizer if is_scheduler(made) else made for made in objects]
        same = self.joint is not None and same_objects(tensors, self.params) and same_objects(objects, self.made)
        if same and same_objects(self._held(), self.held) and all(own == then for own, then in self.owners):
            return True
        return self._join(tensors, objects)

    def _join(self, tensors: list[torch.Tensor], objects: list[torch.optim.Optimizer]) -> bool:
        kinds = {type(made) for made in objects}
        kind = kinds.pop()
        if kinds or not kind.__module__.startswith(("torch.optim", "pyro.optim")) or kind is torch.optim.LBFGS:
            return False
        takes = inspect.signature(kind).parameters
        groups: dict[str, dict[str, Any]] = {}
        self.params, self.made, self.owners, self.named = tensors, objects, [], {}
        for tensor, made in zip(tensors, objects, strict=True):
            (own,) = made.param_groups
            said = {k: v for k, v in own.items() if k in takes and k != "params"}
            if self._can_fuse(own, takes, tensor):
                said["fused"] = True
            groups.setdefault(repr(said), {**said, "params": []})["params"].append(tensor)
            self.owners.append((own, dict(own)))
        self.joint = kind(list(groups.values()))
        for tensor, made in zip(tensors, objects, strict=True):
            state = made.state[tensor]
            step = state.get("step")
            if isinstance(step, torch.Tensor) and step.device != tensor.device:
                state["step"] = step.to(tensor.device)
            self.joint.state[tensor] = state  # the same dictionary, so that Pyro's get_state and save see it
        self.held = self._held()
        return True

    @staticmethod
    def _can_fuse(own: dict[str, Any], takes: Any, tensor: torch.Tensor) -> bool:
        unsaid = own.get("fused") is None and not own.get("foreach") and not own.get("differentiable")
        return "fused" in takes and unsaid and tensor.is_floating_point() and tensor.device.type in ("cpu", "cuda")

    def _write_back(self) -> None:
        """What an optimizer changes by itself, such as a decaying rate, goes to the parameters' own groups."""
        for group in self.joint.param_groups:
            rate = group.get("lr")
            first = self._own(group["params"][0])
            if first[0].get("lr") != rate:
                for tensor in group["params"]:
                    own, then = self._own(tensor)
                    own["lr"] = then["lr"] = rate

    def _own(self, tensor: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        return next(pair for pair, held in zip(self.owners, self.params, strict=True) if held is tensor)


def _distinct(params: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list({id(t): t for t in params.values()}.values())


def _number(loss: Any) -> Any:
    """The loss as Pyro gives it: a float with a warning if it is no number; several for objectives with several."""
    if isinstance(loss, tuple):
        return type(loss)(map(_number, loss))
    if isinstance(loss, torch.Tensor):
        if not loss.is_cpu:
            return Loss(loss)
        loss = loss.item()
    if math.isnan(loss):
        warnings.warn("Encountered NaN: loss", stacklevel=3)
    return loss


class Loss(numbers.Real):
    """A number that is still on the GPU, read, which waits for the GPU, when it is printed, compared or converted.

    Sums, differences and multiples of it stay where it is.
    """

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __float__(self) -> float:
        return self.tensor.item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.asarray(float(self), dtype=dtype)

    def __repr__(self) -> str:
        return repr(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __hash__(self) -> int:
        return hash(float(self))


def _lazily(name: str) -> Callable[..., Any]:
    def method(self: Loss, *others: Any) -> Any:
        plain = [other.tensor if isinstance(other, Loss) else other for other in others]
        if not all(isinstance(other, (int, float, torch.Tensor)) for other in plain):
            return NotImplemented
        return Loss(getattr(self.tensor.double(), name)(*plain))

    return method


def _at_once(name: str) -> Callable[..., Any]:
    def method(self: Loss, *others: Any) -> Any:
        return getattr(float(self), name)(*(float(other) if isinstance(other, Loss) else other for other in others))

    return method


_LAZY = ("__add__", "__radd__", "__mul__", "__rmul__", "__sub__", "__rsub__", "__truediv__", "__neg__", "__pos__")
_AT_ONCE = {*numbers.Real.__abstractmethods__, "__eq__", "__ne__", "__gt__", "__ge__"} - {*_LAZY, *vars(Loss)}
for _name in _LAZY:
    setattr(Loss, _name, _lazily(_name))
for _name in _AT_ONCE - {"__hash__", "__float__"} | {"__eq__"}:
    setattr(Loss, _name, _at_once(_name))
Loss.__abstractmethods__ = frozenset()
