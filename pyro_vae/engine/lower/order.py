"""Which factor of a product comes first, and in which order numbers lie: what two cores must take from one another."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pyro_vae.engine.graphs import BLIND, aten, is_random, value_of
from pyro_vae.engine.trace import written

#: Numbers in a weight, from which it matters who reads it.
WORTH_IT = 2**18
#: Threads up to which rows that are summed over are shared out: there are as many sums to be added.
MOST_SHARES = 4

# Entry by entry, though torch, or an older one, does not say so.
_POINTWISE = {
    aten.leaky_relu.default,
    aten.hardswish.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.mish_backward.default,
    aten.rsub.Tensor,
    aten.softplus_backward.default,
    aten.elu_backward.default,
    aten.leaky_relu_backward.default,
    aten.hardtanh_backward.default,
    aten.detach.default,
    aten.alias.default,
}
# Of these the result does not hang on the order in which numbers lie. Others may read memory as it is.
_BEAR = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward),
    *(aten.t, aten.transpose, aten.permute, aten.view, aten._unsafe_view, aten.reshape, aten.expand, aten.unsqueeze),
    *(aten.squeeze, aten.select, aten.slice, aten.split, aten.split_with_sizes, aten.unbind, aten.cat, aten.stack),
    *(aten.select_backward, aten.slice_backward, aten.copy_, aten._to_copy, aten.constant_pad_nd, aten.index_select),
    *(aten.sum, aten.mean, aten.prod, aten.amax, aten.amin, aten.any, aten.all, aten.logsumexp, aten.cumsum, aten.flip),
    *(aten._softmax, aten._log_softmax, aten._softmax_backward_data, aten._log_softmax_backward_data),
    *(aten.binary_cross_entropy_with_logits, aten.log_sigmoid_forward, aten.log_sigmoid_backward),
    *(aten.native_layer_norm, aten.native_layer_norm_backward, aten._prelu_kernel, aten._prelu_kernel_backward),
    *(aten.full, aten.zeros, aten.ones, aten.empty, aten.arange, aten.linspace, aten.scalar_tensor),
    *(aten.lift_fresh_copy, aten.new_full, aten.new_zeros, aten.new_ones, aten.new_empty),
    *(aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like),
}


def weights_first(graph: fx.Graph) -> None:
    """Computes a layer x W' as (W x')', so that of a weight each core reads the rows that it will write, and no others.

    A matrix library gives each core some rows of the result: it reads the same rows of the first factor, and all of the
    second. As weights are written after each step, some rows by each core, a core must take back what others have read.
    For 1.25 MB and two cores that lasts 0.05 ms, and 0.4 ms where the cores lie on two chips; the product itself takes
    0.4. Where rows of a weight are summed over, as in a layer's backward pass, each core sums over its own rows.

    It is done for large weights that the graph finds gradients for, and small batches: else all would read the larger
    factor. What follows, entry by entry and by smaller weights, is computed in the same order of numbers.
    """
    if torch.get_num_threads() < 2 or not all(map(_bears_transposes, graph.nodes)):
        return
    learned = _learned(graph)
    turned: dict[fx.Node, fx.Node] = {}  # a node, and the one whose transpose it now is
    for node in list(graph.nodes):
        if node.target is aten.t.default and node.args[0] in turned:
            node.replace_all_uses_with(turned[node.args[0]])
            continue
        if node.target in (aten.mm.default, aten.addmm.default):
            new = _product(node, learned, turned)
        else:
            new = _entries(node, turned)
        if new is None:
            continue
        new.meta["val"] = value_of(node).new_empty(value_of(node).shape[::-1])  # of its dtype
        with graph.inserting_before(node):
            back = graph.call_function(aten.t.default, (new,))
        back.meta = {**node.meta, "val": new.meta["val"].t()}
        node.replace_all_uses_with(back)
        graph.erase_node(node)
        turned[back] = new
    if turned:
        _keep_orders(graph, turned)
    graph.eliminate_dead_code()


def _bears_transposes(node: fx.Node) -> bool:
    """Whether an operation gives the same, and Inductor runs it, whatever the strides of its inputs are."""
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if is_random(node):  # numbers are drawn in the order of strides, which Inductor would choose
        blind = node.target in BLIND and value_of(node.args[0]).is_contiguous()
        return not node.all_input_nodes or (blind and node.all_input_nodes == [node.args[0]])
    return _is_pointwise(node) or (node.target.overloadpacket in _BEAR and node.target is not aten.view.dtype)


def _is_pointwise(node: fx.Node) -> bool:
    return node.target in _POINTWISE or torch.Tag.pointwise in node.target.tags


def _keep_orders(graph: fx.Graph, turned: dict[fx.Node, fx.Node]) -> None:
    """Outputs and draws get their numbers in the order in which they were, and transposes may be looked at in any shape."""
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.op != "output" and not is_random(node):
            continue
        for source in node.all_input_nodes:
            if source.op != "placeholder" and not (node.op == "output" and _is_row_major(source)):
                with graph.inserting_before(node):
                    copy = graph.call_function(
                        aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
                    )
                copy.meta = {**source.meta, "val": value_of(source).contiguous()}
                node.replace_input_with(source, copy)


def _is_row_major(node: fx.Node) -> bool:
    """Whether a result can only be stored row by row: a vector, or a product, however often transposed and back."""
    transposed = False
    while node.target in (aten.t.default, aten.detach.default):
        node, transposed = node.args[0], transposed ^ (node.target is aten.t.default)
    return value_of(node).dim() < 2 or (node.target in (aten.mm.default, aten.addmm.default) and not transposed)


def _learned(graph: fx.Graph) -> set[fx.Node]:
    """The graph's inputs that are weights it finds gradients for: it writes to them, or returns something of their shape."""
    *places, out = (node for node in graph.nodes if node.op in ("placeholder", "output"))
    returned = {tuple(value_of(node).shape) for node in out.all_input_nodes}
    moved, found = {places[i] for i in written(graph)}, set()
    for place in places:
        value = place.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() != 2:
            continue
        if (
            value.dtype is torch.float32
            and value.is_contiguous()
            and (place in moved or tuple(value.shape) in returned)
        ):
            found.add(place)
    return found


def _product(node: fx.Node, learned: set[fx.Node], turned: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The transpose of a product whose second factor is a weight."""
    *bias, left, right = node.args
    weight, transposed = right, False
    while weight.target in (aten.t.default, aten.detach.default):
        weight, transposed = weight.args[0], transposed ^ (weight.target is aten.t.default)
    if weight not in learned or node.kwargs or 2 * value_of(left).shape[0] > max(value_of(weight).shape):
        return None
    if value_of(weight).numel() < WORTH_IT and left not in turned:
        return None
    with node.graph.inserting_before(node):
        other = _transpose(left, turned)
        factors = (weight, other) if transposed else _rows_shared_out(weight, other)
        shape = value_of(node).shape[::-1]
        if value_of(factors[0]).dim() == 2:
            new = _call(aten.mm.default, factors, shape)
        else:
            sums = _call(aten.bmm.default, factors, (len(value_of(factors[0])), *shape))
            new, *more = (_view(aten.select.int, sums, 0, i) for i in range(len(value_of(sums))))
            for part in more:  # a sum over their dimension would be written down and read again
                new = _call(aten.add.Tensor, (new, part), shape)
        return _call(aten.add.Tensor, (new, _transpose(bias[0], turned)), shape) if bias else new


def _rows_shared_out(weight: fx.Node, other: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The factors of W'y: with large weights as many blocks of rows as there are threads, each of which takes one."""
    (rows, columns), batch = value_of(weight).shape, value_of(other).shape[1]
    shares = torch.get_num_threads()
    if shares > MOST_SHARES or rows % shares or rows * columns < WORTH_IT:
        return _view(aten.t.default, weight), other
    blocks = _view(aten.view.default, weight, [shares, rows // shares, columns])
    return _view(aten.transpose.int, blocks, 1, 2), _view(aten.reshape.default, other, [shares, rows // shares, batch])


def _entries(node: fx.Node, turned: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The transpose of a matrix computed entry by entry from others, of which one is a transpose."""
    if not isinstance(node.target, torch._ops.OpOverload) or turned.keys().isdisjoint(node.all_input_nodes):
        return None
    value, sources = node.meta.get("val"), [value_of(source) for source in node.all_input_nodes]
    if not _is_pointwise(node) or is_random(node) or node.target._schema.is_mutable or "memory_format" in node.kwargs:
        return None
    if not isinstance(value, torch.Tensor) or any(source.dim() > 2 for source in sources):
        return None
    with node.graph.inserting_before(node):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _transpose(source, turned))
        return _call(node.target, args, value.shape[::-1], **kwargs)


def _transpose(node: fx.Node, turned: dict[fx.Node, fx.Node]) -> fx.Node:
    """The transpose of a matrix, of a vector that stands for equal rows, or of a number."""
    if node in turned:
        return turned[node]
    dims = value_of(node).dim()
    if dims == 2:
        return _view(aten.t.default, node)
    return _view(aten.unsqueeze.default, node, -1) if dims else node


def _view(target: Callable[..., Any], node: fx.Node, *args: Any) -> fx.Node:
    new = node.graph.call_function(target, (node, *args))
    new.meta = {**node.meta, "val": target(value_of(node), *args)}
    return new


def _call(target: Callable[..., Any], args: tuple[Any, ...], shape: Sequence[int], **kwargs: Any) -> fx.Node:
    source = next(arg for arg in args if isinstance(arg, fx.Node))
    new = source.graph.call_function(target, args, kwargs)
    new.meta = {**source.meta, "val": value_of(source).new_empty(tuple(shape))}
    return new
