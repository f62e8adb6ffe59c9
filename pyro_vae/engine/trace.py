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

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyro_vae.engine.graphs import FACTORIES, Operations, aten, clean, copied, has_varying_shape, is_mutable
from pyro_vae.engine.tape import Tape, users_line
from pyro_vae.engine.values import CaptureError, NoGraph, Values
from pyro_vae.pair import kept_random_state


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

    graph: Operations
    held: list[torch.Tensor]
    spec: TreeSpec
    fixed: dict[int, Any]
    recorded: Operations
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
        return written(self.graph.graph)


def written(graph: fx.Graph) -> list[int]:
    """The places of the inputs that a graph writes to, such as a batch norm's running mean."""
    into = {node.args[0] for node in graph.nodes if node.target is aten.copy_.default}
    places = (node for node in graph.nodes if node.op == "placeholder")
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
        NoGraph: if the function ran as it would have by itself, and what it did makes no graph; names the line.
        CaptureError: if it failed, and may have done so as `x.item()` is a tensor here.
        Exception: what the function itself raises.
    """
    tape = Tape(inputs, _annotated())
    mode = Values(tape)
    try:
        with tape, mode, autocast_uncached():
            result = function(*inputs)
    except Exception as error:
        if not mode.gave_numbers or not isinstance(error, (TypeError, AttributeError, RuntimeError)):
            raise
        raise CaptureError(_why(error)) from error
    if tape.refusal is not None:
        raise NoGraph(tape.refusal, result)
    leaves, spec = tree_flatten(result)
    conditions = [(guard.condition, guard.line) for guard in mode.guards]
    try:
        lines = _end(tape, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], conditions)
        if (node := next(filter(has_varying_shape, tape.graph.nodes), None)) is not None:
            raise NoGraph(f"{node.target} gives a tensor whose shape depends on values", result)
        recorded = Operations(tape.graph)
        with torch.no_grad():
            graph = _functional(recorded, [*tape.held, *inputs])
        clean(graph)
    except NoGraph:
        raise
    except Exception as error:  # torch's own, of operations that it can't run apart
        raise NoGraph(f"its graph can't be run: {str(error).splitlines()[0]}", result) from error
    fixed = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}
    return Captured(Operations(graph), tape.held, spec, fixed, recorded, lines, result)


@contextlib.contextmanager
def autocast_uncached() -> Iterator[None]:
    """What autocast has cast before is cast again, so that it is seen."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@functools.cache
def _annotated() -> dict[Any, Any]:
    """Batch norms write to running statistics without saying so; these say so."""
    from torch._decomp import get_decompositions

    return get_decompositions([aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm])


def _why(error: Exception) -> str:
    text = [*str(error).partition("Trace Shapes:")[0].strip().splitlines(), ""][0]
    return f"{users_line(traceback.extract_tb(error.__traceback__))} fails: {type(error).__name__}: {text}"


def _end(tape: Tape, results: list[torch.Tensor], conditions: list[tuple[torch.Tensor, str]]) -> list[str]:
    """Makes outputs of results and, as one, of all guards; those that no input and no draw can change are left out."""
    kept = [(tensor, line) for tensor, line in conditions if tape.varies(tensor)]
    with tape:
        if len(kept) > 1:
            holds = [torch.stack([tensor for tensor, _ in kept]).all()]
        else:
            holds = [tensor for tensor, _ in kept]
    tape.returns([*results, *holds])
    return list(dict.fromkeys(line for _, line in kept))


# --- functions of what was in place ---------------------------------------------------------------------------------


def _functional(recorded: Operations, inputs: list[torch.Tensor]) -> fx.Graph:
    """The same graph without operations in place; what it writes to is copied into at the end."""
    if (plain := _without_fresh_draws(recorded.graph)) is not None:
        return plain
    copies = [t.detach().clone() for t in inputs]  # which the run below may write to
    tape = Tape(copies, {})
    with kept_random_state(inputs[0].device), tape:
        results = torch.func.functionalize(recorded.forward, remove="mutations")(*copies)
    tape.returns(results)
    if tape.held:
        raise RuntimeError("as functions, its operations need tensors that it does not hold")
    return tape.graph


# Draws into a tensor that was made for them, and the same as functions.
_DRAWS = {
    aten.normal_.default: aten.normal_functional.default,
    aten.uniform_.default: aten.uniform.default,
    aten.exponential_.default: aten.exponential.default,
    aten.bernoulli_.float: aten.bernoulli.p,
}


def _without_fresh_draws(recorded: fx.Graph) -> fx.Graph | None:
    """The graph with such draws as functions, if nothing else in it is in place: the common case, for which
    functionalize would take apart operations that are whole. None if there is more."""
    for node in filter(is_mutable, recorded.nodes):
        if node.target not in _DRAWS or node.args[0].target not in FACTORIES or set(node.args[0].users) != {node}:
            return None
    graph = copied(recorded)
    for node in filter(is_mutable, graph.nodes):
        node.target = _DRAWS[node.target]
    return graph
