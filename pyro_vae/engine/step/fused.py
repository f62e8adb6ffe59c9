"""The step of Adam and AdamW by torch's fused kernel, past the Python of the optimizers that hold their state.

Pyro makes an optimizer for each parameter. Between large products each of their Python calls runs from cold caches, and
together they take a tenth of a step of batch 128.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyro_vae.engine import compat


class Rule(NamedTuple):
    """How a parameter moves, but for its learning rate and the count of its steps."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


class FusedAdam:
    """Takes the step of some parameters on the state that their optimizers hold, if these would do no more than that.

    Args:
        params: the parameters, on the CPU, float32.
    """

    def __init__(self, params: list[torch.Tensor]):
        self.params = params
        self._held: _Held | None = None

    def take(self, optim: PyroOptim | torch.optim.Optimizer, gradients: Sequence[torch.Tensor]) -> bool:
        """Takes the step; to be called where no gradients are recorded.

        False, and nothing done, if the optimizer is to take it: it is another than Adam or AdamW, it is looked on by hooks,
        clips or schedules, a class of the user's stands in its place, or another loss has left gradients behind.
        """
        optimizers = optimizers_of(optim, self.params)
        if optimizers is None or not compat.has_fused_adam():
            return False
        held = self._held
        if held is None or not held.holds(optimizers):
            self._held = held = _look_through(optimizers, self.params)
            if held is None:
                return False
        given = [gradient.contiguous() for gradient in gradients]
        if any(g.dtype is not torch.float32 or g.shape != p.shape for g, p in zip(given, self.params, strict=True)):
            return False
        places = set(map(torch.Tensor.data_ptr, self.params))
        for i, gradient in enumerate(given):  # one that is another parameter is read before that one moves
            if gradient.data_ptr() in places:
                given[i] = gradient.clone()
        held.step(given)
        torch.autograd.graph.increment_version(self.params)  # torch's kernel does not
        return True


def optimizers_of(
    optim: PyroOptim | torch.optim.Optimizer, params: list[torch.Tensor]
) -> list[torch.optim.Optimizer] | None:
    """For each parameter the optimizer of torch that moves it; None if more happens to it than that optimizer's step."""
    if isinstance(optim, torch.optim.Optimizer):
        return [optim] * len(params)
    if type(optim) not in (PyroOptim, PyroLRScheduler) or {"optim_objs", "grad_clip"} - vars(optim).keys():
        return None
    if any([optim.grad_clip.get(param) is not None for param in params]):
        return None
    made = [optim.optim_objs.get(param) for param in params]
    return None if None in made else [getattr(one, "optimizer", one) for one in made]  # of a scheduler


class _Held:
    """What optimizers hold, laid out for a step.

    Once a training step has gone through the caches, whatever is touched again is slow, and so is code that has not run
    since: objects are compared in whole, by identity, and counts are read and written as plain memory, as long as it is
    theirs.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], params: list[torch.Tensor], own: list[int]):
        self.optimizers, self.params, self.own = optimizers, params, own
        self._distinct = list(dict.fromkeys(optimizers))
        self._groups = [group for optimizer in self._distinct for group in optimizer.param_groups]
        self._kinds, self._code = list(map(type, self._distinct)), compat.moving_code()
        self._states = [optimizer.state[p] for optimizer, p in zip(optimizers, params, strict=True)]
        self.m, self.v, self.counts = (
            [state[name] for state in self._states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        self._places = list(map(torch.Tensor.data_ptr, self.counts))
        self._memory = [memoryview(count.numpy()) for count in self.counts]
        self._settings, self._tensors = self._settings_now(), self._tensors_now()
        self._members = [p for group in self._groups for p in group["params"]]
        groups = [self._groups[i] for i in own]
        rules = [rule_of(optimizer, group) for optimizer, group in zip(optimizers, groups, strict=True)]
        rows = list(zip(params, self.m, self.v, self.counts, groups, range(len(params)), strict=True))
        self._parts = [
            (
                rule,
                [
                    list(column)
                    for column in zip(*(row for row, own in zip(rows, rules, strict=True) if own == rule), strict=True)
                ],
            )
            for rule in dict.fromkeys(rules)
        ]

    def holds(self, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Whether the optimizers hold the same objects and settings still, but for learning rates."""
        if not same_objects(optimizers, self.optimizers) or list(map(type, self._distinct)) != self._kinds:
            return False
        if any(map(_is_looked_on, self._distinct)) or not same_objects(compat.moving_code(), self._code):
            return False
        if not same_objects([g for o in self._distinct for g in o.param_groups], self._groups):
            return False
        if not same_objects([p for group in self._groups for p in group["params"]], self._members):
            return False
        states = [optimizer.state.get(p) for optimizer, p in zip(optimizers, self.params, strict=True)]
        if not same_objects(states, self._states) or not same_objects(self._tensors_now(), self._tensors):
            return False
        if [*map(torch.Tensor.data_ptr, self.counts)] != self._places or self._settings_now() != self._settings:
            return False
        return all(map(torch.Tensor.is_contiguous, self.params)) and not self._others_have_gradients()

    def _others_have_gradients(self) -> bool:
        """Whether the optimizers would move further parameters too."""
        if len(self._members) == len(self.params):
            return False
        mine = set(map(id, self.params))
        return any(p.grad is not None for p in self._members if id(p) not in mine)

    def step(self, gradients: list[torch.Tensor]) -> None:
        """Moves the parameters, and counts."""
        for count in self._memory:
            count[()] += 1
        for rule, (params, m, v, counts, groups, rows) in self._parts:
            rates = [group["lr"] for group in groups]
            for rate in dict.fromkeys(rates):
                chosen = [i for i, own in enumerate(rates) if own is rate or own == rate]  # it may be NaN
                columns = ([column[i] for i in chosen] for column in (params, rows, m, v, counts))
                moved, places, *state = columns
                compat.fused_adam(rule.decoupled)(
                    moved,
                    [gradients[i] for i in places],
                    *state[:2],
                    [],
                    state[2],
                    lr=rate,
                    beta1=rule.beta1,
                    beta2=rule.beta2,
                    weight_decay=rule.weight_decay,
                    eps=rule.eps,
                    amsgrad=False,
                    maximize=False,
                )

    def _settings_now(self) -> list[tuple[Any, ...]]:
        return [(type(group["lr"]), *group["betas"], *_SETTINGS(group)) for group in self._groups]

    def _tensors_now(self) -> list[Any]:
        return [thing for state in self._states for thing in state.values()]


_SETTINGS = operator.itemgetter(
    *("eps", "weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "foreach", "fused"),
    "decoupled_weight_decay",
)


def _look_through(optimizers: list[torch.optim.Optimizer], params: list[torch.Tensor]) -> _Held | None:
    """What the optimizers hold; None if the step is theirs to take, as their first one is."""
    if not compat.moves_as_known():
        return None
    if not all(p.dtype is torch.float32 and p.is_cpu and p.is_contiguous() for p in params):
        return None
    groups = [group for optimizer in dict.fromkeys(optimizers) for group in optimizer.param_groups]
    places = {p: i for i, group in enumerate(groups) for p in group["params"]}
    own = [places.get(p) for p in params]
    if None in own or any(rule_of(o, groups[i]) is None for o, i in zip(optimizers, own, strict=True)):
        return None
    states = [optimizer.state.get(p) for optimizer, p in zip(optimizers, params, strict=True)]
    for state, p in zip(states, params, strict=True):
        if not state or {"exp_avg", "exp_avg_sq", "step"} - state.keys() or not isinstance(state["step"], torch.Tensor):
            return None
        count = state["step"]
        if count.dtype is not torch.float32 or count.dim() or not count.is_cpu:
            return None
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            if (moment.dtype, moment.device, moment.stride()) != (p.dtype, p.device, p.stride()):
                return None
    held = _Held(optimizers, params, own)
    return None if held._others_have_gradients() else held


def same_objects(some: list[Any], others: list[Any]) -> bool:
    """Whether two lists hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _is_looked_on(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks, or a schedule of torch's, wait for the optimizer's own step."""
    return "step" in vars(optimizer) or compat.has_step_hooks(optimizer)


def rule_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rule | None:
    """A group's rule; None if the optimizer is another, asks for more, or is looked on by hooks or a schedule of torch's."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or _is_looked_on(optimizer):
        return None
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"] or group["foreach"]:
        return None
    rule = Rule(*group["betas"], group["eps"], group["weight_decay"], group["decoupled_weight_decay"])
    tensors = torch.Tensor in map(type, (group["lr"], *rule))
    return None if tensors or group["fused"] is False else rule
