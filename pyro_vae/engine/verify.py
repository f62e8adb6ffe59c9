"""A graph against an eager call: the same numbers to rounding, and the same draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pyro_vae.engine.trace import Captured
from pyro_vae.engine.values import CaptureError
from pyro_vae.pair import kept_random_state

#: How far results may lie apart, relative to their largest entry: the operations as they came, and as they are run. Where
#: weights are exp of large numbers, as in IWAE, rounding grows to 1e-4; mistakes are larger.
RECORDED, LOWERED = 1e-5, 2e-3


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


@contextlib.contextmanager
def as_before(random: RandomState, written: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """The random state, and tensors that have been written to since, as they were before a call."""
    with unwritten([tensor for tensor, _ in written]), kept_random_state(random.device):
        random.restore()
        with torch.no_grad():
            for tensor, copy in written:
                tensor.copy_(copy)
        yield


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
