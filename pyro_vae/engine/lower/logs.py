"""Rewriting a captured graph's logarithms and exponentials for the CPU, where they take as long as matrix products."""

from __future__ import annotations

import math

import torch
from torch import fx

from pyro_vae.engine.graphs import aten, value_of

#: Factors of at most 2 that are multiplied before the logarithm of the product is taken; float32 ends at 2^128.
FACTORS = 64


def group_logs(graph: fx.Graph) -> None:
    """Sums log p(x_d) of Bernoullis with one logarithm for up to 64 of them, for a compiler that makes one loop of it.

    With logits l, log p(x_d) = x_d l_d − max(l_d, 0) − log(1 + exp(−|l_d|)), and the last terms of a group are the
    logarithm of a product. What each factor 1 + e lost by its rounding is known exactly (Dekker 1971) and added, as
    log((1 + e) / u) is about (1 + e) − u. So each term is off by no more than float32's rounding of one nat.

    Inductor stores an exp that has two uses and reads it again, but computes exp2 in place, in 0.6 of the time;
    the exponent's rounding moves e by no more than |l| exp(−|l|) of float32's.
    """
    g = graph
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
