"""Writing down the operations that run: below autograd, on the tensors of the run itself.

torch's own tracer (`make_fx`) tells the same, and computes each operation a second time on tensors without memory, for
symbolic shapes that we have no use for. That takes a millisecond an operation, this takes some ten microseconds.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import fx
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.engine import compat
from pyro_vae.engine.graphs import aten, is_random

_here = threading.local()


class Tape(compat.DispatchMode):
    """Within, all operations on tensors are written down as nodes of a graph.

    Attributes:
        graph: its inputs are `held`, then `inputs`; nodes have `meta["val"]`, a tensor without memory that has the result's
            shape, strides and dtype, and `meta["device"]`.
        held: the tensors from outside that operations have met.
        refusal: why what has run makes no graph, if so; the operations from then on run, and are not written down.
        varying: nodes whose values may differ from call to call: all but those of constants.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], decompositions: dict[Any, Callable[..., Any]]):
        super().__init__()
        self.graph = fx.Graph()
        self.held: list[torch.Tensor] = []
        self.refusal: str | None = None
        self.varying: set[fx.Node] = set()
        self._decompositions = decompositions
        self._nodes = WeakTensorKeyDictionary()  # torch keeps a tensor's identity as long as it has a use for it
        self._behind_held: fx.Node | None = None
        for i, tensor in enumerate(inputs):
            self._nodes[tensor] = node = _described(self.graph.placeholder(f"input_{i}"), tensor)
            self._behind_held = self._behind_held or node
            self.varying.add(node)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which is not asked to look at this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.refusal is not None or getattr(_here, "paused", 0):
            return func(*args, **kwargs)
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # a subclass's own way leads to plain tensors
        if func in self._decompositions:
            with self:
                return self._decompositions[func](*args, **kwargs)
        if compat.is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten.lift_fresh.default:  # a constant, whose copy the program gets, as it may write to it
            self._hold(args[0], varies=False)
            func = aten.lift_fresh_copy.default
        elif torch.Tag.data_dependent_output in func.tags:
            if any(self.varies(tensor) for tensor in args if isinstance(tensor, torch.Tensor)):
                self.refuse("decides by the value of a tensor")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, (torch.Tensor, list, tuple)) or result is None:
            try:
                self._write(func, args, kwargs, result)
            except Exception as error:  # the program is not to see it
                self.refuse(f"calls {func}, which can't be written down: {error}")
        return result

    def refuse(self, what: str) -> None:
        """Notes that what runs makes no graph; the program goes on as it would have."""
        self.refusal = self.refusal or f"{current_line()} {what}"

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        known = self._arguments(args), {name: self._arguments(value) for name, value in kwargs.items()}
        node = self.graph.call_function(func, *known)
        self._behind_held = self._behind_held or node
        if is_random(node) or not self.varying.isdisjoint(node.all_input_nodes):
            self.varying.add(node)
        if isinstance(result, torch.Tensor):
            self._nodes[result] = _described(node, result)
        elif result is not None:
            for i, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    self._nodes[part] = item = _described(self.graph.call_function(operator.getitem, (node, i)), part)
                    if node in self.varying:
                        self.varying.add(item)

    def _arguments(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, (list, tuple)):
            return (
                [self._arguments(part) for part in value] if type(value) is list else tuple(map(self._arguments, value))
            )
        return value

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        node = self._nodes.get(tensor)
        return self._hold(tensor, varies=True) if node is None else node

    def _hold(self, tensor: torch.Tensor, varies: bool) -> fx.Node:
        before = self._behind_held
        with self.graph.inserting_before(before) if before is not None else contextlib.nullcontext():
            self._nodes[tensor] = node = _described(self.graph.placeholder(f"held_{len(self.held)}"), tensor)
        self.held.append(tensor)
        if varies:
            self.varying.add(node)
        return node

    def varies(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor may have other values in another call."""
        return self._node(tensor) in self.varying

    def returns(self, tensors: Sequence[torch.Tensor]) -> list[fx.Node]:
        """The nodes of a run's results, which become the graph's outputs."""
        nodes = [self._node(tensor) for tensor in tensors]
        self.graph.output(nodes)
        return nodes


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Within, operations run without being written down."""
    _here.paused = getattr(_here, "paused", 0) + 1
    try:
        yield
    finally:
        _here.paused -= 1


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _described(node: fx.Node, tensor: torch.Tensor) -> fx.Node:
    if tensor.layout is not torch.strided:
        raise NotImplementedError(f"a tensor of layout {tensor.layout} can't be part of a graph")
    node.meta["val"] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    node.meta["device"] = tensor.device
    return node


# --- the user's line ------------------------------------------------------------------------------------------------


def current_line() -> str:
    """The user's line that is being executed; what is done to find it is hidden from a profiler."""
    profile = sys.getprofile()
    sys.setprofile(None)
    try:
        return users_line(traceback.extract_stack())
    finally:
        sys.setprofile(profile)


def users_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the user's; where there is none, of Pyro's or of a component's."""
    here = str(Path(__file__).parent)
    inside = [i for i, frame in enumerate(frames) if frame.filename.startswith(here) and frame.name == "capture"]
    if not inside:  # the function has run, and what it did can't be written as a graph
        return "tracing it"
    called = [frame for frame in frames[inside[-1] :] if not frame.filename.startswith(here)]
    outside = [frame for frame in called if not frame.filename.startswith(str(Path(torch.__file__).parent))]
    own = list(_outside_libraries(outside))
    last = (own or outside or called or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno} ({(last.line or '').strip()!r})"


def _outside_libraries(frames: Sequence[traceback.FrameSummary]) -> Iterator[traceback.FrameSummary]:
    import contextlib

    libraries = (str(Path(pyro.__file__).parent), str(Path(__file__).parents[1]))
    for frame in frames:
        if not frame.filename.startswith(libraries) and frame.filename != contextlib.__file__:
            yield frame
