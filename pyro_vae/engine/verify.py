"""A graph against an eager call: the same numbers to rounding, and the same draws."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from pyro_vae.engine import compat
from pyro_vae.engine.arguments import Call
from pyro_vae.engine.trace import Captured
from pyro_vae.engine.values import CaptureError
from pyro_vae.pair import kept_random_state

if TYPE_CHECKING:
    from pyro_vae.engine.kept import Graph

#: How far results may lie apart, relative to their largest entry: the operations as they came, and as they are run. Where
#: weights are exp of large numbers, as in IWAE, rounding grows to 1e-4; mistakes are larger.
RECORDED, LOWERED = 1e-5, 2e-3


class Outcome(enum.Enum):
    """What an eager call tells of a graph."""

    AGREES = "the same numbers, to rounding"
    DIFFERS = "other numbers"
    MISSED = "the function takes another course than the graph"


class RandomState:
    """torch's random state on the CPU and on a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._generator = None
        if device.type == "cuda":
            self._generator = torch.cuda.default_generators[device.index or torch.cuda.current_device()]
        self._states = self._now()

    def restore(self) -> None:
        """Puts it back as it was."""
        torch.default_generator.set_state(self._states[0])
        if self._generator is not None:
            self._generator.set_state(self._states[1])

    def is_now(self, other: RandomState) -> bool:
        """Whether another one, taken later, is the same."""
        return all(map(torch.equal, self._states, other._states))

    def _now(self) -> list[torch.Tensor]:
        return [g.get_state() for g in (torch.default_generator, self._generator) if g is not None]


class Before:
    """The random state, and some tensors, as they are before a call.

    Args:
        device: of the call.
        tensors: that it may write to.
        store: whether Pyro's param store, and the gradients of its parameters, are among it.
    """

    def __init__(self, device: torch.device, tensors: Iterable[torch.Tensor] = (), store: bool = False):
        self.random = RandomState(device)
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        parts = compat.store_parts() if store else ()
        self._parts = [(part, dict(part)) for part in parts]
        self._grads = [(tensor, tensor.grad) for tensor in parts[0].values()] if parts else []

    def put_back(self) -> None:
        """Has everything as it was."""
        self.random.restore()
        for tensor, grad in self._grads:
            tensor.grad = grad
        for part, before in self._parts:
            if part.keys() != before.keys() or any(part[key] is not value for key, value in before.items()):
                part.clear()
                part.update(before)
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.copy_(copy)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, everything is as it was."""
        with unwritten([tensor for tensor, _ in self._copies]), kept_random_state(self.random.device):
            self.put_back()
            yield


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor has been written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def unwritten(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Leaves tensors as they were."""
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


def written_to(captured: Captured, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that a replay on these inputs writes to."""
    if not captured.places_written:
        return []
    tensors = [*captured.held, *inputs]
    return [tensors[i] for i in captured.places_written]


def run_apart(
    run: Callable[..., Sequence[torch.Tensor]], captured: Captured, inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What a graph gives, leaving what it writes to and the random state as they were."""
    device = inputs[0].device if inputs else torch.device("cpu")
    with unwritten(written_to(captured, inputs)), kept_random_state(device), torch.no_grad():
        return [tensor.detach().clone() for tensor in run(*captured.held, *inputs)]


def check_lowered(run: Callable[..., Any], captured: Captured, inputs: Sequence[torch.Tensor], mode: str) -> None:
    """Compares a way of running a graph with the operations as they came.

    Raises:
        CaptureError: if their values differ by more than rounding.
    """
    expected, got = (run_apart(way, captured, inputs) for way in (captured.recorded, run))
    if not agree(got, expected, LOWERED, lambda: _sensitivity(captured, inputs, expected)):
        raise CaptureError(f"run by {mode}, its graph gives other values")


def agree(
    got: Sequence[Any], expected: Sequence[Any], relative: float, sensitivity: Callable[[], list[float]] | None = None
) -> bool:
    """Whether results are equal but for rounding.

    Some results are nothing but rounding, such as the gradient of a bias before a batch norm, whose exact value is zero.
    Where results lie apart, they may do so by a hundred times what the result moves if its inputs move by rounding once, as
    the operations in between round too.
    """
    apart = [i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if not close(a, b, relative)]
    if not apart or sensitivity is None:
        return not apart
    moves = sensitivity()
    return all(close(got[i], expected[i], relative, 100 * moves[i]) for i in apart if i < len(moves)) and len(
        moves
    ) > max(apart)


def _sensitivity(captured: Captured, inputs: Sequence[torch.Tensor], expected: Sequence[Any]) -> list[float]:
    """How far each output moves, at most, if each number that goes in moves by float32's rounding."""
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return tensor.detach() * (1 + torch.finfo(tensor.dtype).eps * signs)

    device = inputs[0].device if inputs else torch.device("cpu")
    with kept_random_state(device), torch.no_grad():
        other = captured.recorded(*map(moved, captured.held), *map(moved, inputs))
    return [
        (a.double() - b.double()).abs().max().item() if a.numel() and a.shape == b.shape else 0.0
        for a, b in zip(other, expected, strict=False)
    ]


def against_eager(
    captured: Captured,
    inputs: Sequence[torch.Tensor],
    got: Sequence[Any],
    expected: Sequence[Any],
    before: contextlib.AbstractContextManager[None] | None = None,
) -> bool:
    """Whether the operations as they came gave what an eager call gave.

    Args:
        before: a context in which the random state and what is written to are as they were before that call; by default
            they are so now.
    """

    def sensitivity() -> list[float]:
        with before or contextlib.nullcontext():
            return _sensitivity(captured, inputs, got)

    return agree(got, expected, RECORDED, sensitivity)


def close(a: Any, b: Any, relative: float, absolute: float = 1e-12) -> bool:
    """Whether two results are equal but for rounding, measured by the largest entry."""
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        return a == b or (a != a and b != b)
    if a is None or b is None:
        return False
    a, b = (torch.as_tensor(t).detach().double().cpu() for t in (a, b))
    if a.shape != b.shape:
        return False
    size = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=relative, atol=relative * size + absolute, equal_nan=True)


def verify(graph: Graph, call: Call, before: Before, eager: Callable[[], Any]) -> tuple[Outcome, Any]:
    """An eager call, with which a graph is compared.

    Args:
        before: the state before the call.
        eager: makes the call.

    Returns:
        What it tells, and what the call returned.
    """
    captured, got, lowered, after = graph.captured, None, None, None
    with contextlib.suppress(Exception):  # eager code raises it too, or the comparison fails
        with unwritten(written_to(captured, call.tensors)), torch.no_grad():
            got = [tensor.clone() for tensor in captured.recorded(*captured.held, *call.tensors)]
            after = RandomState(call.device)
        before.random.restore()
        if graph.precision == "float32":
            lowered = run_apart(lambda *_: graph.run(*call.tensors), captured, call.tensors)
    before.random.restore()
    result = eager()
    if got is None or after is None:
        return Outcome.DIFFERS, result
    if captured.guards and not got[-1].item():
        return Outcome.MISSED, result
    leaves = tree_leaves(result, is_leaf=lambda leaf: leaf is None)
    if len(leaves) != captured.spec.num_leaves or not after.is_now(RandomState(call.device)):
        return Outcome.DIFFERS, result
    same = all(agree([leaves[i]], [value], 0.0) for i, value in captured.fixed.items())
    expected = [leaf for i, leaf in enumerate(leaves) if i not in captured.fixed]
    same = same and against_eager(captured, call.tensors, got[: len(expected)], expected, before.again())
    if same and lowered is not None:
        with before.again():
            same = agree(lowered, got, LOWERED) or _agree_but_for_rounding(graph, call)
    return (Outcome.AGREES if same else Outcome.DIFFERS), result


def _agree_but_for_rounding(graph: Graph, call: Call) -> bool:
    """Whether the graph as it is run and the operations as they came differ by no more than rounding."""
    try:
        check_lowered(lambda *_: graph.run(*call.tensors), graph.captured, call.tensors, "graph")
    except CaptureError:
        return False
    return True


def check_nothing_left_out(graph: Graph, call: Call, watched: Iterable[torch.Tensor]) -> None:
    """Refuses what a replay would leave out.

    Args:
        watched: the tensors that are watched.

    Raises:
        CaptureError: with the reason.
    """
    known = [*watched, *graph.params.values(), *call.tensors]
    places = {_memory_of(tensor) for tensor in known} - {0}
    new = set(map(id, graph.captured.held)) - set(map(id, known))
    if any(id(tensor) in new and _memory_of(tensor) in places for tensor in graph.captured.held):
        raise CaptureError("it makes another tensor of the memory of one, such as a Parameter of a buffer")
    if any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in graph.params.values()):
        raise CaptureError("a parameter has a hook on its gradient")
    if any(place >= len(graph.captured.held) for place in graph.captured.places_written):
        raise CaptureError("it changes its arguments in place")
    if not torch.is_grad_enabled():
        return
    known = {id(tensor) for tensor in graph.params.values()}
    foreign = [t for t in (*graph.captured.held, *call.tensors) if t.requires_grad and id(t) not in known]
    if any(tensor.is_leaf and tensor.grad is not None for tensor in foreign):
        raise CaptureError("a tensor that is no parameter of Pyro's gets a gradient")


def _memory_of(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
