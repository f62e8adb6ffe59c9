"""The step of Adam and AdamW past an optimizer's Python: as part of a captured graph, so that one compiled function takes
a whole training step, or behind it by torch's kernel.

Apart from the graph, an optimizer's step fetches all gradients anew, pays for its Python, and in torch's code takes a root
and two divisions for every entry, which last longer than fetching it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.capture import Captured

#: Parameters; the code for more takes long to compile.
MOST = 64


class Rule(NamedTuple):
    """How a parameter moves, but for its learning rate and the count of its steps."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


class Guard(NamedTuple):
    """What stands between gradient and step.

    Attributes:
        clip: largest global norm of the gradient; larger ones are scaled down to it.
        bound: steps with a larger norm change nothing.
    """

    clip: float | None = None
    bound: float | None = None


class AdamStep:
    """Adam's or AdamW's step for the parameters whose gradients a captured function returns.

    θ ← θ − (α / (1 − β1^t)) m / (√v · (1 − β2^t)^(−1/2) + ε) (Kingma & Ba 2015, algorithm 1), what depends on t alone taken
    out of the loop: torch's numbers but for the rounding of float32. Parameters, moments and counts are the tensors that
    the optimizer holds.

    Args:
        captured: a function that returns (loss, {name: gradient}).
        params: the parameters by name.
        optimizer: gives the optimizer that is to move them now; None if it can't be told, or has more to do than that.
        guard: if given, a step whose loss or gradient is not finite changes nothing, as do those it speaks of.
    """

    def __init__(
        self,
        captured: Captured,
        params: dict[str, torch.Tensor],
        optimizer: Callable[[], torch.optim.Optimizer | None],
        guard: Guard | None = None,
    ):
        self.captured, self.optimizer, self.guard = captured, optimizer, guard
        self.loss, gradients = captured.nested(range(captured.spec.num_leaves - len(captured.fixed)))
        places = {id(tensor): i for i, tensor in enumerate(captured.held)}
        self.gradients = list(gradients.values())  # their places among the outputs
        self.places = [places.get(id(params[name])) for name in gradients]  # the parameters', among what is held
        self.rules: list[Rule | None] = []  # of the optimizer's groups
        self.own: list[int] = []  # each parameter's group
        self._held: _Held | None = None
        self._numbers: torch.Tensor | None = None
        self._moving: list[int] | None = None  # the gradients that are parameters

    @property
    def params(self) -> list[torch.Tensor]:
        """The parameters, in the order of their gradients."""
        return [self.captured.held[i] for i in self.places]

    def possible(self) -> bool:
        """Whether the step can be taken here; what torch sets up in an optimizer's first step is then set up."""
        optimizer = self.optimizer()
        if optimizer is None or None in self.places or not self.places:
            return False
        if 0 in self.captured.fixed or self.loss != 0:  # a number, or more than one as in wake-sleep
            return False
        params = self.params
        if not all(p.dtype is torch.float32 and p.device.type == "cpu" and p.is_contiguous() for p in params):
            return False
        groups = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.rules = [_rule(optimizer, group) for group in optimizer.param_groups]
        if None in self.rules or not all(p in groups for p in params):
            return False
        self.own = [groups[p] for p in params]
        for p in params:
            if not optimizer.state.get(p):
                zeros = {name: torch.zeros_like(p.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p].update(step=torch.zeros((), dtype=torch.float32), **zeros)
        return self.begin() is not None

    def begin(self) -> list[torch.Tensor] | None:
        """m of all parameters, then v, then `numbers`, for the coming step.

        None if the optimizer is to take a step of its own: it has been changed, or another loss has left gradients behind.
        """
        times = self._times()
        if times is None:
            return None
        if self._numbers is None:
            self._numbers = torch.empty(len(self.rules), 3, dtype=torch.float32)
        row = memoryview(self._numbers.numpy())
        for i, (group, rule) in enumerate(zip(self._held.groups, self.rules, strict=True)):
            taken = {t for t, k in zip(times, self.own, strict=True) if k == i}
            if len(taken) > 1:  # some were moved without the others
                return None
            rate, t = group["lr"], 1 + (taken.pop() if taken else 0)
            row[i, 0] = rate / (1 - rule.beta1**t)
            row[i, 1] = (1 - rule.beta2**t) ** -0.5
            row[i, 2] = 1 - rate * rule.weight_decay
        return [*self._held.moments, self._numbers]

    def take(self, outputs: Sequence[torch.Tensor]) -> bool:
        """Takes the step on the captured function's flat outputs, without a guard, by torch's own kernel but past an
        optimizer's Python; to be called where no gradients are recorded.

        False, and nothing done, if the optimizer is to take it: for the reasons that `begin` has, but each parameter has
        a count of its own here.

        Args:
            outputs: loss and gradients, of the same dtypes and shapes each time.
        """
        if self.guard is not None or self._times() is None:
            return False
        given = [outputs[i].contiguous() for i in self.gradients]
        if self._moving is None:
            params = self.params
            if any(g.dtype is not torch.float32 or g.shape != p.shape for g, p in zip(given, params, strict=True)):
                return False
            places = {p.data_ptr() for p in params}
            self._moving = [i for i, g in enumerate(given) if g.data_ptr() in places]
        for i in self._moving:  # read before that parameter moves
            given[i] = given[i].clone()
        self._held.count()
        for i, (group, rule) in enumerate(zip(self._held.groups, self.rules, strict=True)):
            params, *state = self._held.columns[i]
            own = given if len(params) == len(given) else [g for g, k in zip(given, self.own, strict=True) if k == i]
            step = torch._fused_adamw_ if rule.decoupled else torch._fused_adam_
            step(
                params,
                own,
                *state[:2],
                [],
                state[2],
                lr=group["lr"],
                beta1=rule.beta1,
                beta2=rule.beta2,
                weight_decay=rule.weight_decay,
                eps=rule.eps,
                amsgrad=False,
                maximize=False,
            )
        torch.autograd.graph.increment_version(self._held.params)  # torch's kernel does not
        return True

    def _times(self) -> list[float] | None:
        """How many steps each parameter has taken; None if the optimizer is to take the coming one."""
        optimizer = self.optimizer()
        if optimizer is None:
            return None
        held = self._held
        if held is None or not held.holds(optimizer):
            self._held = held = self._look_through(optimizer)
            if held is None:
                return None
        if [p for p in held.members if p.grad is not None]:
            return None
        return held.times()

    def _look_through(self, optimizer: torch.optim.Optimizer) -> _Held | None:
        params = self.params
        if self.rules != [_rule(optimizer, group) for group in optimizer.param_groups]:
            return None
        if not all(map(optimizer.state.get, params)):  # as before its first step
            return None
        groups = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        if self.own != [groups.get(p) for p in params]:
            return None
        counts = [optimizer.state[p]["step"] for p in params]
        if any(count.dtype is not torch.float32 or count.dim() or not count.is_cpu for count in counts):
            return None
        if not all(map(torch.Tensor.is_contiguous, params)):
            return None
        held = _Held(optimizer, params, self.own)
        for moment, p in zip(held.moments, params * 2, strict=True):
            if (moment.dtype, moment.device, moment.stride()) != (p.dtype, p.device, p.stride()):
                return None
        return held

    def count(self, loss: torch.Tensor | None = None, norm: torch.Tensor | None = None) -> None:
        """Notes in the optimizer that the joined step has been taken, if it has."""
        if norm is not None and not self.takes(loss.item(), norm.item()):
            return
        self._held.count()

    def takes(self, loss: float, norm: float) -> bool:
        """Whether a guarded step with such a loss and such a gradient changes anything."""
        return math.isfinite(loss) and math.isfinite(norm) and (self.guard.bound is None or norm <= self.guard.bound)

    def joined(self) -> Captured:
        """The captured function with the step behind it.

        Its inputs are followed by what `begin` gives; it returns the loss, and the gradient's norm if there is a guard.
        """
        whole = fx.Graph()
        outputs = whole.graph_copy(self.captured.graph.graph, {})
        last = [node for node in whole.nodes if node.op == "placeholder"][-1]
        tensors, places = self.begin(), []
        for i, tensor in enumerate(tensors):
            with whole.inserting_after(last):
                last = whole.placeholder(f"step_{i}")
            last.meta["val"] = tensor
            places.append(last)
        own = [node for node in whole.nodes if node.op == "placeholder"]
        given = [own[i] for i in self.places] + places[:-1] + [outputs[i] for i in self.gradients]
        given += [outputs[self.loss], places[-1]]
        values = [node.meta["val"] for node in given]
        like = [torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype) for value in values]
        with torch.no_grad():
            step = make_fx(self.update, tracing_mode="fake")(*like)
        into = dict(zip((n for n in step.graph.nodes if n.op == "placeholder"), given, strict=True))
        whole.output(list(whole.graph_copy(step.graph, into)))
        graph = fx.GraphModule(self.captured.graph, whole)
        graph.graph.lint()
        return dataclasses.replace(self.captured, graph=graph)

    def update(self, *given: torch.Tensor) -> Sequence[torch.Tensor]:
        """The step on parameters, m, v, gradients, the loss and `numbers`: moves the first three, returns as `joined` does.

        `numbers` has a row for each of the optimizer's groups: α / (1 − β1^t), (1 − β2^t)^(−1/2), and AdamW's 1 − α λ.
        """
        n = len(self.places)
        *tensors, loss, numbers = given
        gradients, stop = tensors[3 * n :], None
        if self.guard is not None:
            norm = sum((g * g).sum() for g in gradients).sqrt()
            # As `takes` decides in Python's numbers, so that no step is taken and not counted.
            stop = ~(torch.isfinite(loss.reshape(())) & torch.isfinite(norm))
            if self.guard.bound is not None:
                stop = stop | ~(norm.double() <= self.guard.bound)
            if self.guard.clip is not None:
                factor = (self.guard.clip / (norm + 1e-6)).clamp(max=1.0)
                gradients = [g * factor for g in gradients]
        moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        for i, (row, g) in enumerate(zip(self.own, gradients, strict=True)):
            p, m, v = tensors[i : 3 * n : n]
            rule, (rate, correction, shrink) = self.rules[row], numbers[row].unbind()
            shrunk = p
            if rule.weight_decay and rule.decoupled:
                shrunk = p * shrink
            elif rule.weight_decay:
                g = g + rule.weight_decay * p
            m_now = m + (1 - rule.beta1) * (g - m)
            v_now = rule.beta2 * v + (1 - rule.beta2) * g * g
            p_now = shrunk - rate * m_now / (v_now.sqrt() * correction + rule.eps)
            moved += [(p, p_now), (m, m_now), (v, v_now)]
        moved = [(old, new if stop is None else torch.where(stop, old, new)) for old, new in moved]
        for old, new in moved:  # at the end, as a gradient may be another parameter
            old.copy_(new)
        return (loss,) if stop is None else (loss, norm)


class _Held:
    """What an optimizer holds, laid out for a step.

    Once a training step has gone through the caches, whatever is touched again is slow, and so is code that has not run
    since: tensors are compared in whole, by identity, and counts are read and written as plain memory, as long as it is
    theirs.

    Args:
        optimizer: Adam or AdamW.
        params: the parameters to be moved, of which it holds moments.
        own: each one's group.

    Attributes:
        members: all parameters of its groups.
        moments: m of `params`, then v.
        columns: for each group the parameters to be moved, their m, v, and counts.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: list[torch.Tensor], own: list[int]):
        self.optimizer, self.params, self.groups = optimizer, params, optimizer.param_groups
        states = [optimizer.state[p] for p in params]
        m, v, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        self.moments, self._counts = m + v, counts
        self._places, self._memory = [*map(torch.Tensor.data_ptr, counts)], [memoryview(c.numpy()) for c in counts]
        rows = list(zip(params, m, v, counts, strict=True))
        parted = [[row for row, k in zip(rows, own, strict=True) if k == i] for i in range(len(self.groups))]
        self.columns = [tuple(map(list, zip(*part, strict=True))) or ([],) * 4 for part in parted]
        self.members = [p for group in self.groups for p in group["params"]]
        self.kind, self._settings = type(optimizer), self._settings_now()
        self._states = _states_of(optimizer)
        self._tensors = [thing for state in self._states for thing in state.values()]

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer holds the same objects and settings still, but for learning rates."""
        if optimizer is not self.optimizer or type(optimizer) is not self.kind or _looked_on(optimizer):
            return False
        if optimizer.param_groups is not self.groups:
            return False
        states = _states_of(optimizer)
        if not same_objects(states, self._states):
            return False
        if not same_objects([thing for state in states for thing in state.values()], self._tensors):
            return False
        if not same_objects([p for group in self.groups for p in group["params"]], self.members):
            return False
        if [*map(torch.Tensor.data_ptr, self._counts)] != self._places or self._settings_now() != self._settings:
            return False
        return all(map(torch.Tensor.is_contiguous, self.params))

    def _settings_now(self) -> list[tuple[Any, ...]]:
        return [(type(group["lr"]), *group["betas"], *_SETTINGS(group)) for group in self.groups]

    def times(self) -> list[float]:
        """How often each parameter has been moved."""
        return [count[()] for count in self._memory]

    def count(self) -> None:
        """One step more for each parameter."""
        for count in self._memory:
            count[()] += 1


_SETTINGS = operator.itemgetter(
    *("eps", "weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "foreach", "fused"),
    "decoupled_weight_decay",
)


def _states_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [state for state in optimizer.state.values() if isinstance(state, dict)]


def same_objects(some: list[Any], others: list[Any]) -> bool:
    """Whether two lists hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _looked_on(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks, or a schedule of torch's, wait for the optimizer's own step."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or "step" in vars(optimizer))


def _rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rule | None:
    """A group's rule; None if the optimizer is another, asks for more, or is looked on by hooks or a schedule of torch's."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or _looked_on(optimizer):
        return None
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"] or group["foreach"]:
        return None
    rule = Rule(*group["betas"], group["eps"], group["weight_decay"], group["decoupled_weight_decay"])
    tensors = torch.Tensor in map(type, (group["lr"], *rule))
    return None if tensors or group["fused"] is False else rule
