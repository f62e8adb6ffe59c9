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
        self._next: list[float] = []  # the number of the coming step, by parameter

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
        return self._numbers() is not None

    def begin(self) -> list[torch.Tensor] | None:
        """m of all parameters, then v, then `numbers`, for the coming step.

        None if the optimizer is to take a step of its own: it has been changed, or another loss has left gradients behind.
        """
        rows = self._numbers()
        return None if rows is None else [*self._held.moments, torch.tensor(rows)]

    def take(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Takes the step on gradients, without a guard, by torch's own kernel but past an optimizer's Python.

        False, and nothing done, if the optimizer is to take it, as for `begin`.
        """
        if self.guard is not None or self._numbers() is None:
            return False
        params, n = self.params, len(self.places)
        if any(g.dtype is not torch.float32 or g.shape != p.shape for g, p in zip(gradients, params, strict=True)):
            return False
        self.count()
        moving = {p.data_ptr() for p in params}  # a gradient may be another parameter
        given = [g.clone() if g.data_ptr() in moving else g.contiguous() for g in gradients]
        columns = (params, given, self._held.moments[:n], self._held.moments[n:])
        with torch.no_grad():
            for i, (group, rule) in enumerate(zip(self.optimizer().param_groups, self.rules, strict=True)):
                own = [k for k in range(n) if self.own[k] == i]
                step = torch._fused_adamw_ if rule.decoupled else torch._fused_adam_
                step(
                    *([column[k] for k in own] for column in columns),
                    [],
                    [self._held.counts[k] for k in own],
                    lr=group["lr"],
                    beta1=rule.beta1,
                    beta2=rule.beta2,
                    weight_decay=rule.weight_decay,
                    eps=rule.eps,
                    amsgrad=False,
                    maximize=False,
                )
        return True

    def _numbers(self) -> list[tuple[float, float, float]] | None:
        """The rows of `numbers` for the coming step; None if the optimizer is to take it."""
        optimizer, params = self.optimizer(), self.params
        if optimizer is None or (held := _look_up(optimizer, params)) is None:
            return None
        if any(p.grad is not None for p in held.members):
            return None
        if self.rules != [_rule(optimizer, group) for group in optimizer.param_groups]:
            return None
        if self._held is None or not held.same_as(self._held):
            groups = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
            if self.own != [groups.get(p) for p in params]:
                return None
            for moment, p in zip(held.moments, params * 2, strict=True):
                if (moment.dtype, moment.device, moment.stride()) != (p.dtype, p.device, p.stride()):
                    return None
            self._held = held
        times: list[set[float]] = [set() for _ in self.rules]
        for i, count in zip(self.own, held.counts, strict=True):
            times[i].add(count.item())
        rows, steps = [], []
        for group, rule, taken in zip(optimizer.param_groups, self.rules, times, strict=True):
            if len(taken) > 1:  # some were moved without the others
                return None
            rate, t = group["lr"], 1 + (taken.pop() if taken else 0)
            correction = (1 - rule.beta2**t) ** -0.5
            rows.append((rate / (1 - rule.beta1**t), correction, 1 - rate * rule.weight_decay))
            steps.append(t)
        self._next = [steps[i] for i in self.own]
        return rows

    def count(self, loss: torch.Tensor | None = None, norm: torch.Tensor | None = None) -> None:
        """Notes in the optimizer, and with autograd, that the step has been taken, if it has."""
        if norm is not None and not self.takes(loss.item(), norm.item()):
            return
        for count, t in zip(self._held.counts, self._next, strict=True):
            count.fill_(t)  # a third of the time of adding 1, also to all at once
        torch.autograd.graph.increment_version(self.params)

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


class _Held(NamedTuple):
    """What an optimizer holds: the members of its groups, and the moments and counts of some of them."""

    members: list[torch.Tensor]
    moments: list[torch.Tensor]
    counts: list[torch.Tensor]

    def same_as(self, other: _Held) -> bool:
        """Whether they are the very same tensors."""
        pairs = zip(self, other, strict=True)
        return all(len(mine) == len(theirs) and not any(map(operator.is_not, mine, theirs)) for mine, theirs in pairs)


def _look_up(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor]) -> _Held | None:
    """What the optimizer holds now; None if it holds nothing of one of the parameters, as before its first step."""
    states = [optimizer.state.get(p) for p in params]
    if not all(states):
        return None
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
    members = [p for group in optimizer.param_groups for p in group["params"]]
    return _Held([*members, *params], moments, [state["step"] for state in states])


def _rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rule | None:
    """A group's rule; None if the optimizer is another, asks for more, or is looked on by hooks or a schedule of torch's."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    hooks = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or hooks or "step" in vars(optimizer):
        return None
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"] or group["foreach"]:
        return None
    rule = Rule(*group["betas"], group["eps"], group["weight_decay"], group["decoupled_weight_decay"])
    tensors = torch.Tensor in map(type, (group["lr"], *rule))
    return None if tensors or group["fused"] is False else rule
