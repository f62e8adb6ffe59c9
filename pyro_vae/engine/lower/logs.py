"""Rewriting a captured graph's logarithms and exponentials for the CPU, where they take as long as matrix products."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from pyro_vae.engine.graphs import aten, value_of
from pyro_vae.engine.machine import best_seconds

#: Factors of at most 2 that are multiplied before the logarithm of the product is taken; float32 ends at 2^128.
FACTORS = 64


def group_logs(graph: fx.GraphModule) -> None:
    """Sums log p(x_d) of Bernoullis with one logarithm for up to 64 of them, for a compiler that makes one loop of it.

    With logits l, log p(x_d) = x_d l_d − max(l_d, 0) − log(1 + exp(−|l_d|)), and the last terms of a group are the
    logarithm of a product. What each factor 1 + e lost by its rounding is known exactly (Dekker 1971) and added, as
    log((1 + e) / u) is about (1 + e) − u. So each term is off by no more than float32's rounding of one nat.

    Inductor stores an exp that has two uses and reads it again, but computes exp2 in place, in 0.6 of the time;
    the exponent's rounding moves e by no more than |l| exp(−|l|) of float32's.
    """
    g = graph.graph
    for node in list(g.nodes):
        if (found := _sum_of_bernoullis(node)) is None:
            continue
        logits, x, shape = found
        size = max(k for k in range(1, min(FACTORS, shape[-1]) + 1) if shape[-1] % k == 0)
        if size < 8:
            continue
        call = g.call_function
        with g.inserting_before(node):
            grouped, inner, outer = [*shape[:-1], shape[-1] // size, size], -1, -1
            if logits.target is aten.t.default and len(shape) == 2:  # the loop is to run as the logits lie
                logits, x = logits.args[0], call(aten.t.default, (x,))
                grouped, inner, outer = [*grouped[1:], shape[0]], 1, 0
            logits, x = (call(aten.reshape.default, (t, grouped)) for t in (logits, x))
            e = call(
                aten.exp2.default, (call(aten.mul.Tensor, (call(aten.abs.default, (logits,)), -math.log2(math.e))),)
            )
            factor = call(aten.add.Tensor, (e, 1.0))
            lost = call(aten.sub.Tensor, (e, call(aten.sub.Tensor, (factor, 1.0))))
            rest = call(
                aten.sub.Tensor, (call(aten.mul.Tensor, (x, logits)), call(aten.clamp_min.default, (logits, 0)))
            )
            rest = call(aten.sum.dim_IntList, (call(aten.sub.Tensor, (rest, lost)), [inner]))
            logs = call(aten.log.default, (call(aten.prod.dim_int, (factor, inner)),))
            new = call(aten.sum.dim_IntList, (call(aten.sub.Tensor, (rest, logs)), [outer]))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
    g.eliminate_dead_code()
    graph.recompile()


def _sum_of_bernoullis(node: fx.Node) -> tuple[fx.Node, fx.Node, torch.Size] | None:
    """Logits, values and the summed shape, where a node sums their log p over the last dimension and nothing else does."""
    if node.target is not aten.sum.dim_IntList or len(node.args) != 2 or node.kwargs:
        return None
    inner, dims = node.args
    shape = value_of(inner).shape
    if [d % len(shape) for d in dims] != [len(shape) - 1]:
        return None
    if inner.target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        inner = inner.args[0]
    if inner.target is not aten.neg.default:
        return None
    entropy = inner.args[0]
    if entropy.target is not aten.binary_cross_entropy_with_logits.default or entropy.kwargs:
        return None
    logits, x, *further = entropy.args
    alone = len(inner.users) == len(entropy.users) == 1
    exact = value_of(logits).dtype in (torch.float32, torch.float64)
    return (logits, x, shape) if alone and exact and further == [None, None, 0] else None


def log1p_is_slow() -> bool:
    """Whether log1p takes more than three times as long as log, which is what replacing it takes."""
    x = torch.linspace(0, 1, 100_000)
    log, log1p = best_seconds(x.log, x.log1p)
    return log1p > 3 * log


def vectorise_logs(graph: fx.GraphModule) -> None:
    """Writes softplus, log-sigmoid, the Bernoulli's cross-entropy and log1p in exp and log, which CPUs have vector code for.

    On processors without AVX-512, the log1p of torch and of Inductor takes up to ten times as long. With u = 1 + y
    rounded, log1p(y) = y · log(u) / (u − 1) makes good the rounding of u (Goldberg 1991, theorem 4), so that no accuracy
    is lost, near zero least of all.
    """
    g = graph.graph
    for node in list(g.nodes):
        if node.op != "call_function" or node.target not in _IN_LOGS or not value_of(node.args[0]).is_floating_point():
            continue
        with g.inserting_before(node):
            new = _IN_LOGS[node.target](g, *node.args)
        if new is None:
            continue
        if node.target is aten.log_sigmoid_forward.default:  # returns a buffer for its backward pass too
            for part in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
                part.replace_all_uses_with(new)
                g.erase_node(part)
        else:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
    g.eliminate_dead_code()
    graph.recompile()


def _log1p(g: fx.Graph, y: fx.Node, below_infinity: bool = False) -> fx.Node:
    call = g.call_function
    u = call(aten.add.Tensor, (y, 1.0))
    excess = call(aten.sub.Tensor, (u, 1.0))
    ratio = call(aten.div.Tensor, (call(aten.log.default, (u,)), excess))
    # u = 1, where y is lost in it, gives 0 / 0; y = infinity gives infinity · NaN.
    near = call(aten.where.self, (call(aten.eq.Scalar, (excess, 0.0)), y, call(aten.mul.Tensor, (y, ratio))))
    return near if below_infinity else call(aten.where.self, (call(aten.isinf.default, (u,)), u, near))


def _log1p_exp_minus_abs(g: fx.Graph, x: fx.Node) -> fx.Node:
    call = g.call_function
    return _log1p(g, call(aten.exp.default, (call(aten.neg.default, (call(aten.abs.default, (x,)),)),)), True)


def _softplus(g: fx.Graph, x: fx.Node, beta: float = 1, threshold: float = 20) -> fx.Node | None:
    """max(x, 0) + log1p(exp(−|x|)); beyond the threshold the second term is below rounding."""
    if beta != 1 or threshold < 20:
        return None
    return g.call_function(
        aten.add.Tensor, (g.call_function(aten.clamp_min.default, (x, 0)), _log1p_exp_minus_abs(g, x))
    )


def _log_sigmoid(g: fx.Graph, x: fx.Node) -> fx.Node:
    """min(x, 0) − log1p(exp(−|x|))."""
    return g.call_function(
        aten.sub.Tensor, (g.call_function(aten.clamp_max.default, (x, 0)), _log1p_exp_minus_abs(g, x))
    )


def _cross_entropy(
    g: fx.Graph, x: fx.Node, target: fx.Node, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> fx.Node | None:
    """max(x, 0) − x · target + log1p(exp(−|x|)), entry by entry."""
    if weight is not None or pos_weight is not None or reduction != 0:
        return None
    call = g.call_function
    linear = call(aten.sub.Tensor, (call(aten.clamp_min.default, (x, 0)), call(aten.mul.Tensor, (x, target))))
    return call(aten.add.Tensor, (linear, _log1p_exp_minus_abs(g, x)))


_IN_LOGS: dict[Any, Callable[..., fx.Node | None]] = {
    aten.log1p.default: _log1p,
    aten.softplus.default: _softplus,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}
