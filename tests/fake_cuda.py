"""A CUDA device without a card: torch's fake tensors on device "cuda", each with its true values beside it on the CPU.

torch's `FakeTensorMode` checks shapes, dtypes and devices as a card does. Its tensors hold no values, so `.item()`, Pyro's
validation and branches on values raise. Here every operation runs twice: on the fake tensors, for the checks, and on CPU
tensors of the same values. A program then runs on "cuda" as on the CPU and, under one seed, returns the same numbers.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from pyro.poutine import subsample_messenger
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")


_DEPENDS_ON_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class HostTensor(RuntimeError):
    """An operation reads or makes a tensor on the CPU where all tensors should be on the device."""


@contextlib.contextmanager
def fake_cuda(files: Sequence[str] = (), calls: Sequence[Callable[..., Any]] = ()) -> Iterator[None]:
    """Within, device "cuda" is there; a tensor on the CPU that has dimensions raises `HostTensor` or torch's own error.

    A 0-d tensor on the CPU may meet tensors on a card, and so it may here.

    Args:
        files: source files that keep tensors on the CPU by design, such as the one that shuffles the data.
        calls: functions that make tensors on the CPU, themselves and by what they call, such as one that builds modules.
    """
    fake = _NoCard(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # 0, where memory is counted
        for patch in _driver():
            stack.enter_context(patch)
        stack.enter_context(fake)
        # Pyro keeps the indices of a plate on the CPU.
        files = frozenset([subsample_messenger.__file__, *files])
        stack.enter_context(_WithValues(files, frozenset(call.__code__ for call in calls)))
        yield


def values(tensor: torch.Tensor) -> torch.Tensor:
    """The CPU tensor that holds a fake tensor's values; any other tensor as it is."""
    return getattr(tensor, "true_values", tensor)


def to_cuda(thing: Any) -> Any:
    """A module, tensor or tuple of tensors, moved to the device as users move theirs, outside the check for CPU tensors."""
    with _Moving():
        return tuple(map(to_cuda, thing)) if isinstance(thing, tuple) else thing.to("cuda")


class _Moving:
    """While one is entered, CPU tensors are welcome: the user puts data and modules on the device."""

    depth = 0

    def __enter__(self) -> None:
        _Moving.depth += 1

    def __exit__(self, *_: Any) -> None:
        _Moving.depth -= 1


class _NoCard(FakeTensorMode):
    """A mode that never asks the driver, whatever `torch.cuda.is_available` answers."""

    avoid_device_init = True


class _WithValues(TorchDispatchMode):
    """Runs each operation on fake tensors, and again on their values."""

    def __init__(self, files: frozenset[str], calls: frozenset[Any]):
        super().__init__()
        self.files, self.calls = files, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.check((args, kwargs), func, "reads")
        try:
            known, out = True, func(*args, **kwargs)
        except _DEPENDS_ON_VALUES:
            known = False
        except UnsupportedOperatorException:  # there is no fake kernel, as for the Dirichlet's draws
            known = False
            _check_devices(func, (args, kwargs))
        true_args, true_kwargs = _each(values, args), _each(values, kwargs)
        if true_kwargs.get("device") is not None:
            true_kwargs["device"] = CPU
        with unset_fake_temporarily():
            true = func(*true_args, **true_kwargs)
        if known:
            _keep(out, true)
        else:
            device = next(t.device for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
            out = _each(lambda t: _fake(t, device), true)
        self.check(out, func, "makes")
        return out

    def check(self, tree: Any, func: Any, what: str) -> None:
        """Raises `HostTensor` if there is a CPU tensor with dimensions, and the line that runs is not allowed one."""
        if isinstance(tree, torch.Tensor):
            if tree.device == CPU and tree.dim() and tree.numel() and not _Moving.depth and not self.may():
                raise HostTensor(f"{func} {what} a tensor on the CPU of shape {tuple(tree.shape)}.")
        elif isinstance(tree, (tuple, list, dict)):
            for part in tree.values() if isinstance(tree, dict) else tree:
                self.check(part, func, what)

    def may(self) -> bool:
        """Whether the innermost file that is not torch's is one of those allowed, or an allowed call is under way."""
        frame, innermost = sys._getframe(2), True
        while frame is not None:
            code = frame.f_code
            if code in self.calls or code.co_name in ("get_rng_state", "set_rng_state"):
                return True
            modes = code.co_name == "__torch_dispatch__" or code.co_filename == __file__
            if innermost and not modes and "/torch/" not in code.co_filename:
                if code.co_filename in self.files:
                    return True
                innermost = False
            frame = frame.f_back
        return False


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of every leaf; torch's own `tree_map` takes several times as long."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([_each(function, part) for part in tree])
    if isinstance(tree, dict):
        return {name: _each(function, part) for name, part in tree.items()}
    return function(tree)


def _check_devices(func: Any, tree: Any) -> None:
    devices = {t.device for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.dim()}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} is given {devices}.")


def _fake(true: Any, device: torch.device) -> Any:
    if not isinstance(true, torch.Tensor):
        return true
    out = torch.empty_strided(true.shape, true.stride(), dtype=true.dtype, device=device)
    out.true_values = true
    return out


def _keep(out: Any, true: Any) -> None:
    """Puts the true values beside each fake tensor."""
    if isinstance(out, FakeTensor):
        out.true_values = true
    elif isinstance(out, (tuple, list)):
        for part, its_own in zip(out, true, strict=True):
            _keep(part, its_own)


def _driver() -> list[Any]:
    """Patches of what torch asks the driver for."""
    none: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    answers = {
        "_lazy_init": none,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "synchronize": none,
        "get_rng_state": lambda *_: CPU,  # the values are drawn from the CPU's random state, which is kept anyway
        "set_rng_state": none,
        "manual_seed_all": none,
        "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (2**34, 2**34),
    }
    patches = [mock.patch.object(torch.cuda, name, answer) for name, answer in answers.items()]
    return [
        *patches,
        mock.patch("torch._subclasses.fake_tensor.init_gpu_context", none),  # of torch 2.11, which asks the driver
        mock.patch("torch.autograd._engine_run_backward", _run_backward),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(torch._VF, "gru_cell", _gru_cell),
        torch.backends.cudnn.flags(enabled=False),  # whose kernels have no twin on the CPU
    ]


def _apply(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """As torch's, which changes a parameter's data in place: a fake tensor cannot be the data of a true one."""
    moved: dict[int, torch.Tensor] = {}
    for part in module.modules() if recurse else [module]:
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    with torch.no_grad():
                        new = function(tensor)
                    is_parameter = isinstance(tensor, nn.Parameter) and new is not tensor
                    moved[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
                held[name] = moved[id(tensor)]
    return module


def _gru_cell(x: torch.Tensor, h: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """One step of a gated recurrent unit, whose fused kernel there is on CUDA alone."""
    from_x, from_h = weights[:2]
    of_x, of_h = (x @ from_x.T + weights[2]).chunk(3, -1), (h @ from_h.T + weights[3]).chunk(3, -1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(of_x[:2], of_h[:2], strict=True))
    new = torch.tanh(of_x[2] + reset * of_h[2])
    return new + update * (h - new)


# --- backward -----------------------------------------------------------------------------------------------------------


def _run_backward(
    outputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[torch.Tensor] = (),
    allow_unreachable: bool = False,
    accumulate_grad: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """What torch's engine does: it asks the driver for streams, and so refuses fake tensors where there is no card."""
    edges = [_edge(tensor) for tensor in outputs]
    wanted = [_edge(tensor) for tensor in inputs]
    arrived: dict[Any, dict[int, torch.Tensor]] = {}
    for (node, number), gradient in zip(edges, gradients, strict=True):
        _add(arrived, node, number, gradient)
    found: dict[Any, torch.Tensor] = {}
    with torch.set_grad_enabled(create_graph):
        for node in _in_order([node for node, _ in edges]):
            here = arrived.pop(node, {})
            found |= {edge: here[edge[1]] for edge in wanted if edge[0] is node and edge[1] in here}
            if hasattr(node, "variable"):
                if here and (not inputs or (accumulate_grad and (node, 0) in wanted)):
                    held = node.variable.grad
                    node.variable.grad = here[0] if held is None else held + here[0]
            elif here:
                call = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
                given = call(*[here.get(i) for i in range(len(node._input_metadata))])
                given = given if isinstance(given, tuple) else (given,)
                for (after, number), gradient in zip(node.next_functions, given, strict=True):
                    if after is not None and gradient is not None:
                        _add(arrived, after, number, gradient)
    if accumulate_grad:
        return ()
    if not allow_unreachable and any(edge not in found for edge in wanted):
        raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph.")
    return tuple(found.get(edge) for edge in wanted)


def _edge(tensor: Any) -> tuple[Any, int]:
    node, number = torch.autograd.graph.get_gradient_edge(tensor)[:2]
    return node, number


def _add(arrived: dict[Any, dict[int, torch.Tensor]], node: Any, number: int, gradient: torch.Tensor) -> None:
    """Adds to what has arrived at a node's input, after the engine's checks of device and shape."""
    wanted = node.variable if hasattr(node, "variable") else node._input_metadata[number]
    if gradient.device != wanted.device and gradient.dim():
        raise RuntimeError(
            f"{node.name()} is given a gradient on {gradient.device}, but its input is on {wanted.device}."
        )
    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
    here = arrived.setdefault(node, {})
    here[number] = here[number] + gradient if number in here else gradient


def _in_order(roots: Sequence[Any]) -> list[Any]:
    """All nodes behind `roots`, each after those that send it gradients."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None and after not in seen]
    return order[::-1]
