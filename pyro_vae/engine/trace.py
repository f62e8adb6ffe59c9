"""A Python function of tensors to a clean graph: what it did, once, as a list of aten operations to be replayed.

Pyro's handlers, distributions and autograd run while `capture` looks on; what remains is a graph without Python, whose
parameters and buffers are the user's own objects. Random draws stay draws, in their order, so a replay under a seed
gives what the function itself gives.

Example:
    >>> weight = torch.ones(2, requires_grad=True)
    >>> captured = capture(lambda x: (weight * x).sum(), torch.zeros(2))
    >>> captured(torch.tensor([1.0, 2.0]))
    tensor(3.)
    >>> captured.held[0] is weight
    True
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyro_vae.engine import compat
from pyro_vae.engine.graphs import FACTORIES, aten, clean, has_varying_shape, is_mutable, is_random
from pyro_vae.engine.values import CaptureError, Guard, Values, users_line
from pyro_vae.pair import kept_random_state

_lock = threading.Lock()  # torch's tracer has global state


@dataclass
class Captured:
    """A graph of aten operations and what it needs besides its inputs.

    Attributes:
        graph: takes `held`, then the inputs; returns the flat outputs, and whether all guards hold if there are any.
        held: the tensors that the function refers to: parameters, buffers, constants. Those of the user are the
            user's own objects, so a step of an optimizer shows in the next replay.
        spec: how the function's outputs are nested.
        fixed: the outputs that are no tensors, by their place among the flat outputs.
        recorded: the operations as they came, of the same arguments; it rounds as the function does, where `graph`
            may take the terms of a sum in another order.
        guards: the lines whose course the graph takes for granted.
        result: what the function returned as it was traced.
    """

    graph: fx.GraphModule
    held: list[torch.Tensor]
    spec: TreeSpec
    fixed: dict[int, Any]
    recorded: fx.GraphModule
    guards: list[str]
    result: Any

    def __call__(self, *inputs: torch.Tensor) -> Any:
        with torch.no_grad():
            return self.nested(self.graph(*self.held, *inputs))

    def nested(self, flat: Sequence[torch.Tensor]) -> Any:
        """The graph's outputs as the function's."""
        tensors = iter(flat)
        leaves = [self.fixed[i] if i in self.fixed else next(tensors) for i in range(self.spec.num_leaves)]
        return tree_unflatten(leaves, self.spec)

    @functools.cached_property
    def places_written(self) -> list[int]:
        """The places, among `held` and then the inputs, of tensors that the graph writes to."""
        return written(self.graph)


def written(graph: fx.GraphModule) -> list[int]:
    """The places of the inputs that a graph writes to, such as a batch norm's running mean."""
    into = {node.args[0] for node in graph.graph.nodes if node.target is aten.copy_.default}
    places = (node for node in graph.graph.nodes if node.op == "placeholder")
    return [i for i, place in enumerate(places) if place in into]


def capture(function: Callable[..., Any], *inputs: torch.Tensor) -> Captured:
    """The operations of `function(*inputs)` as a clean functional graph.

    The function runs once, in earnest: random state moves on, and buffers that it writes to are written to.
    A gradient that the function takes by itself (`backward`, `torch.autograd.grad`) becomes part of the graph, and
    nothing is recorded for autograd outside. Loops over Python values are unrolled; `x.item()` stays a tensor; where the
    function's course depends on values, the course taken becomes a guard.

    Args:
        function: of tensors, to a tensor or nested tuples, lists and dicts of tensors.
        inputs: the graph holds for their shapes, dtypes and device.

    Raises:
        CaptureError: if the function can't be captured; names the line.
    """
    seen: list[Any] = []
    guards: list[Guard] = []

    def flat(*tensors: torch.Tensor) -> list[Any]:
        with Values() as mode:
            result = function(*tensors)
        leaves, spec = tree_flatten(result)
        guards.extend(mode.guards)
        seen[:] = [spec, {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}, result]
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] + [guard.condition for guard in guards]

    try:
        with _lock:
            traced = compat.traced(flat, _annotated(), inputs)
        held = _lift(traced)
    except CaptureError:
        raise
    except Exception as error:  # the user's code may raise anything on what it is given here
        raise CaptureError(_why(error)) from error
    lines = _join_guards(traced, [guard.line for guard in guards])
    if (node := next(filter(has_varying_shape, traced.graph.nodes), None)) is not None:
        raise CaptureError(f"{node.target} gives a tensor whose shape depends on values")
    try:
        with torch.no_grad():
            graph = _functional(traced, [*held, *inputs])
        clean(graph)
    except Exception as error:  # torch's own, of operations that it can't run apart
        raise CaptureError(f"its graph can't be run: {str(error).splitlines()[0]}") from error
    spec, fixed, result = seen
    return Captured(graph, held, spec, fixed, traced, lines, result)


@functools.cache
def _annotated() -> dict[Any, Any]:
    """Batch norms write to running statistics without saying so; these say so."""
    from torch._decomp import get_decompositions

    return get_decompositions([aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm])


def _why(error: Exception) -> str:
    line = users_line(traceback.extract_tb(error.__traceback__))
    text = str(error).partition("Trace Shapes:")[0].strip().splitlines()
    if "tracing tensor" in str(error) or "data-dependent" in str(error).lower() or "symbolically traced" in str(error):
        return f"{line} decides by the value of a tensor"
    return f"{line} fails: {type(error).__name__}: {text[0] if text else ''}"


def _join_guards(traced: fx.GraphModule, lines: list[str]) -> list[str]:
    """Makes one output of all guards; those that no input and no draw can change are left out."""
    (out,) = (node for node in traced.graph.nodes if node.op == "output")
    outputs = list(out.args[0])
    count = len(outputs) - len(lines)
    varying: dict[fx.Node, bool] = {}
    for node in traced.graph.nodes:
        varying[node] = node.op == "placeholder" or _draws(node) or any(varying[n] for n in node.all_input_nodes)
    kept = [(node, line) for node, line in zip(outputs[count:], lines, strict=True) if varying[node]]
    conditions = list(dict.fromkeys(node for node, _ in kept))
    with traced.graph.inserting_before(out):
        holds = conditions[0] if conditions else None
        if len(conditions) > 1:
            together = traced.graph.call_function(aten.stack.default, (conditions,))
            holds = traced.graph.call_function(aten._is_all_true.default, (together,))
            value = conditions[0].meta["val"]
            together.meta["val"], holds.meta["val"] = value.new_empty(len(conditions)), value
    out.args = (outputs[:count] + ([holds] if conditions else []),)
    traced.graph.lint()
    traced.recompile()
    return list(dict.fromkeys(line for _, line in kept))


def _draws(node: fx.Node) -> bool:
    return is_random(node) or (isinstance(node.target, torch._ops.OpOverload) and is_mutable(node))


# --- cleaning -------------------------------------------------------------------------------------------------------


def _lift(traced: fx.GraphModule) -> list[torch.Tensor]:
    """Makes inputs of the tensors that the graph holds as attributes; they come before its own inputs."""
    graph, held = traced.graph, []
    places: dict[int, fx.Node] = {}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(traced, node.target)
        if node.users and id(tensor) not in places:
            with graph.inserting_before(first):
                places[id(tensor)] = graph.placeholder(f"held_{len(held)}")
            places[id(tensor)].meta["val"] = tensor.detach()
            held.append(tensor)
        if node.users:
            node.replace_all_uses_with(places[id(tensor)])
        graph.erase_node(node)
    traced.recompile()
    return held


def _functional(traced: fx.GraphModule, inputs: list[torch.Tensor]) -> fx.GraphModule:
    """The same graph without operations in place; what it writes to is copied into at the end."""
    if (plain := _without_fresh_draws(traced)) is not None:
        return plain
    copies = [t.detach().clone() for t in inputs]  # which the run below may write to
    with kept_random_state(inputs[0].device):
        return compat.traced(torch.func.functionalize(traced, remove="mutations"), None, copies)


# Draws into a tensor that was made for them, and the same as functions.
_DRAWS = {
    aten.normal_.default: aten.normal_functional.default,
    aten.uniform_.default: aten.uniform.default,
    aten.exponential_.default: aten.exponential.default,
    aten.bernoulli_.float: aten.bernoulli.p,
}


def _without_fresh_draws(traced: fx.GraphModule) -> fx.GraphModule | None:
    """The graph with such draws as functions, if nothing else in it is in place: the common case, for which
    functionalize would take apart operations that are whole. None if there is more."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(traced.graph, {}))
    for node in list(graph.nodes):
        if not is_mutable(node):
            continue
        place = node.args[0]
        if node.target not in _DRAWS or place.target not in FACTORIES or set(place.users) != {node}:
            return None
        node.target = _DRAWS[node.target]
    return fx.GraphModule(traced, graph)
