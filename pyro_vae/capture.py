"""Pyro to tensor graph: what a function of tensors did, once, as a list of aten operations to be replayed.

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

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer.util import Dice
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyro_vae.pair import kept_random_state

aten = torch.ops.aten


class CaptureError(RuntimeError):
    """A function can't be captured; the message says why, and where."""


@dataclass
class Captured:
    """A graph of aten operations and what it needs besides its inputs.

    Attributes:
        graph: takes `held`, then the inputs; returns the flat outputs.
        held: the tensors that the function refers to: parameters, buffers, constants. Those of the user are the
            user's own objects, so a step of an optimizer shows in the next replay.
        spec: how the function's outputs are nested.
        fixed: the outputs that are no tensors, by their place among the flat outputs.
        recorded: the operations as they came, of the same arguments; it rounds as the function does, where `graph`
            may take the terms of a sum in another order.
    """

    graph: fx.GraphModule
    held: list[torch.Tensor]
    spec: TreeSpec
    fixed: dict[int, Any]
    recorded: fx.GraphModule

    def __call__(self, *inputs: torch.Tensor) -> Any:
        with torch.no_grad():
            return self.nested(self.graph(*self.held, *inputs))

    def nested(self, flat: Sequence[torch.Tensor]) -> Any:
        """The graph's outputs as the function's."""
        tensors = iter(flat)
        leaves = [self.fixed[i] if i in self.fixed else next(tensors) for i in range(self.spec.num_leaves)]
        return tree_unflatten(leaves, self.spec)

    @property
    def written(self) -> list[torch.Tensor]:
        """The tensors of `held` that the graph writes to, such as a batch norm's running mean."""
        return [self.held[i] for i in written(self.graph) if i < len(self.held)]


def written(graph: fx.GraphModule) -> list[int]:
    """The places of the inputs that a graph writes to."""
    into = {node.args[0] for node in graph.graph.nodes if node.target is aten.copy_.default}
    places = (node for node in graph.graph.nodes if node.op == "placeholder")
    return [i for i, place in enumerate(places) if place in into]


def capture(function: Callable[..., Any], *inputs: torch.Tensor) -> Captured:
    """The operations of `function(*inputs)` as a clean functional graph.

    The function runs once, in earnest: random state moves on, and buffers that it writes to are written to.
    A gradient that the function takes by itself (`backward`, `torch.autograd.grad`) becomes part of the graph, and
    nothing is recorded for autograd outside. Loops over Python values are unrolled; `x.item()` stays a tensor.

    Args:
        function: of tensors, to a tensor or nested tuples, lists and dicts of tensors.
        inputs: the graph holds for their shapes, dtypes and device.

    Raises:
        CaptureError: if the function's course depends on the values of tensors; names the line.
    """
    seen: list[Any] = []

    def flat(*tensors: torch.Tensor) -> list[Any]:
        with _Looking(), _quiet_pyro():
            leaves, spec = tree_flatten(function(*tensors))
        seen[:] = [spec, {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}]
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    try:
        traced = make_fx(flat, decomposition_table=_annotated())(*inputs)
    except CaptureError:
        raise
    except Exception as error:  # the user's code may raise anything on what it is given here
        raise CaptureError(_why(error)) from error
    held = _lift(traced)
    with torch.no_grad():
        graph = _functional(traced, [*held, *inputs])
    _clean(graph)
    return Captured(graph, held, *seen, traced)


@functools.cache
def _annotated() -> dict[Any, Any]:
    """Batch norms write to running statistics without saying so; these say so."""
    from torch._decomp import get_decompositions

    return get_decompositions([aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm])


# --- looking on -----------------------------------------------------------------------------------------------------


_REFUSED = {
    torch.Tensor.tolist: "turns a tensor into a list",
    torch.Tensor.numpy: "turns a tensor into a NumPy array",
    torch.Tensor.__array__: "turns a tensor into a NumPy array",
    torch._pack_padded_sequence: "packs sequences whose lengths are values of a tensor",
    torch._pad_packed_sequence: "unpacks sequences whose lengths are values of a tensor",
}
_COUNTED = {
    *(torch.nonzero, torch.argwhere, torch.masked_select, torch.unique, torch.unique_consecutive, torch.bincount),
    *(torch.Tensor.nonzero, torch.Tensor.argwhere, torch.Tensor.masked_select, torch.Tensor.unique),
    *(torch.Tensor.unique_consecutive, torch.Tensor.bincount),
}
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


class _Looking(TorchFunctionMode):
    """Keeps numbers tensors while a function is captured, and refuses what would silently burn values in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:
            return args[0].detach().reshape(())
        if func in _COUNTED or (func is torch.Tensor.__getitem__ and _by_mask(args[1])):
            raise CaptureError(f"{_users_line(traceback.extract_stack())} gives a tensor whose shape depends on values")
        if func in _REFUSED:
            raise CaptureError(f"{_users_line(traceback.extract_stack())} {_REFUSED[func]}")
        if func in _RECURRENT and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.long:
            raise CaptureError(f"{_users_line(traceback.extract_stack())} runs over sequences whose lengths are values")
        return func(*args, **(kwargs or {}))


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


class _MaskInDice(TorchFunctionMode):
    """Lets zero weights be multiplied where Pyro's enumeration would select the others, a size that depends on values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.all and args[0].dtype == torch.bool:
            return False  # "not all weights are positive": leads to masked_select
        if func is torch.Tensor.masked_select:
            return torch.where(args[1], args[0], torch.zeros((), dtype=args[0].dtype, device=args[0].device))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _quiet_pyro() -> Iterator[None]:
    """Pyro without what asks tensors for their values: validation, warnings about NaN, masks in enumeration."""
    expectation = Dice.compute_expectation

    def masked(self: Dice, costs: Any) -> Any:
        with _MaskInDice():
            return expectation(self, costs)

    with (
        pyro.validation_enabled(False),
        mock.patch("pyro.util.torch_isnan", return_value=False),
        mock.patch.object(Dice, "compute_expectation", masked),
    ):
        yield


def _why(error: Exception) -> str:
    line = _users_line(traceback.extract_tb(error.__traceback__))
    text = str(error).strip().splitlines()
    if "tracing tensor" in str(error) or "data-dependent" in str(error).lower() or "symbolically traced" in str(error):
        return f"{line} decides by the value of a tensor"
    return f"{line} fails: {type(error).__name__}: {text[0] if text else ''}"


def _users_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the user's; where there is none, of Pyro's or of a component's."""
    inside = [i for i, frame in enumerate(frames) if frame.filename == __file__ and frame.name == "flat"]
    if not inside:  # the function has run, and what it did can't be written as a graph
        return "tracing it"
    called = [frame for frame in frames[inside[0] :] if frame.filename not in (__file__, contextlib.__file__)]
    outside = [frame for frame in called if not frame.filename.startswith(str(Path(torch.__file__).parent))]
    libraries = tuple(str(Path(file).parent) for file in (pyro.__file__, __file__))
    own = [frame for frame in outside if not frame.filename.startswith(libraries)]
    last = (own or outside or called)[-1]
    return f"{Path(last.filename).name}, line {last.lineno} ({(last.line or '').strip()!r})"


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
        return make_fx(torch.func.functionalize(traced, remove="mutations"))(*copies)


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
        if not _is_mutable(node):
            continue
        place = node.args[0]
        if node.target not in _DRAWS or place.target not in _FACTORIES or set(place.users) != {node}:
            return None
        node.target = _DRAWS[node.target]
    return fx.GraphModule(traced, graph)


def _clean(graph: fx.GraphModule) -> None:
    """Removes dead code, changes of nothing, and what is done twice; draws and writes are kept, in their order."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code(lambda node: _has_effect(node))
    known: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or _has_effect(node) or _FACTORIES.get(node.target):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.graph.erase_node(node)
        else:
            known[key] = node
    graph.graph.lint()
    graph.recompile()


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the result is the first argument, seen as it is."""
    if node.target is aten.alias.default:
        return True
    if node.target not in (aten.view.default, aten.expand.default, aten.reshape.default, aten._unsafe_view.default):
        return False
    before, after = value_of(node.args[0]), value_of(node)
    return before.shape == after.shape and before.stride() == after.stride()


# Results with undefined contents are not interchangeable: one may be written to where the other is not.
_FACTORIES = {op: True for op in (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)}


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


def value_of(node: fx.Node) -> torch.Tensor:
    """What the node gave at capture, as far as shape, strides, dtype and device go."""
    return node.meta["val"]


def _has_effect(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return is_random(node) or _is_mutable(node)


def _is_mutable(node: fx.Node) -> bool:
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
