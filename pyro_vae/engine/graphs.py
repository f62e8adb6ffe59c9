"""Captured graphs: what their nodes are, and how they are cleaned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


class Operations:
    """A graph that can be called; it is compiled to Python at its first call.

    Attributes:
        graph: the operations; `forget` is to be called if they are changed after a call.
    """

    def __init__(self, graph: fx.Graph):
        self.graph = graph

    @functools.cached_property
    def forward(self) -> Callable[..., Sequence[torch.Tensor]]:
        return fx.GraphModule(torch.nn.Module(), self.graph).forward  # a module's call costs as much as an operation

    def __call__(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.forward(*inputs)

    def forget(self) -> None:
        """Has it compiled anew."""
        vars(self).pop("forward", None)


def copied(graph: fx.Graph) -> fx.Graph:
    """Another graph of the same operations."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    return new


def clean(graph: fx.Graph) -> None:
    """Removes dead code, changes of nothing, and what is done twice; draws and writes are kept, in their order."""
    for node in list(graph.nodes):
        if node.op == "call_function" and _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
        if node.target is aten._is_all_true.default:  # which compilers do not know
            node.target = aten.all.default
    graph.eliminate_dead_code(lambda node: _has_effect(node))
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _has_effect(node) or FACTORIES.get(node.target):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        else:
            known[key] = node
    graph.lint()


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the result is the first argument, seen as it is."""
    if node.target in (aten.alias.default, aten.detach.default):  # nothing is recorded for autograd
        return True
    if node.target not in (aten.view.default, aten.expand.default, aten.reshape.default, aten._unsafe_view.default):
        return False
    before, after = value_of(node.args[0]), value_of(node)
    return before.shape == after.shape and before.stride() == after.stride()


# Results with undefined contents are not interchangeable: one may be written to where the other is not.
FACTORIES = {op: True for op in (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)}


#: Draws that do not look at their tensor argument, which only says shape, dtype and device.
BLIND = {
    aten.normal_functional.default,
    aten.uniform.default,
    aten.exponential.default,
    aten.bernoulli.p,
    aten.cauchy.default,
    aten.geometric.default,
    aten.log_normal.default,
    aten.rand_like.default,
    aten.randn_like.default,
}


def is_random(node: fx.Node) -> bool:
    """Whether the operation draws from torch's random state."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def has_varying_shape(node: fx.Node) -> bool:
    """Whether the shape of the result depends on values."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.dynamic_output_shape not in node.target.tags:
        return False
    if node.target is not aten.index.Tensor:
        return True
    return any(value_of(index).dtype in (torch.bool, torch.uint8) for index in node.args[1] if index is not None)


def value_of(node: fx.Node) -> torch.Tensor:
    """What the node gave at capture, as far as shape, strides, dtype and device go."""
    return node.meta["val"]


def _has_effect(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return is_random(node) or is_mutable(node)


def is_mutable(node: fx.Node) -> bool:
    """Whether the operation writes to its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _frozen(value: Any) -> Any:
    """Arguments as a hashable key that tells 1 from 1.0 and True."""
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_frozen, value))
    if isinstance(value, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    # repr tells 0.0 from -0.0, and equal NaNs for one
    return value if isinstance(value, fx.Node) else (type(value).__name__, repr(value))
