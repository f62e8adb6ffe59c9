"""Tensors that lie on one another in memory: a graph that writes to one of them holds only while the same ones do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Overlaps = frozenset[tuple[int, int, int]]


class Memory:
    """Where the tensors of a graph lie, one on another.

    Args:
        held: the tensors that the graph refers to.
        inputs: of the call that was captured.
        written: the places, among both, of those that the graph writes to.

    Attributes:
        overlaps: of the captured call: a written tensor's place, that of another tensor, and how far apart they begin.
    """

    def __init__(self, held: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], written: Sequence[int]):
        self._written = written
        self._pointers: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self.overlaps = self._find(held, inputs) if written else frozenset()

    def is_as_it_was(self, held: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> bool:
        """Whether the same tensors lie on one another as in the captured call."""
        if not self._written:
            return True
        if not self.overlaps and self._written[-1] < len(held) and self._pointers == _pointers(held):
            spans = list(map(_span, inputs))
            return not any(a < d and c < b for a, b in self._spans for c, d in spans)
        return self._find(held, inputs) == self.overlaps

    def _find(self, held: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Overlaps:
        spans = list(map(_span, [*held, *inputs]))
        found = [
            (i, j, start - spans[i][0])
            for i in self._written
            for j, (start, end) in enumerate(spans)
            if i != j and start < spans[i][1] and spans[i][0] < end
        ]
        self._pointers = _pointers(held) if not found else []
        self._spans = [spans[i] for i in self._written]
        return frozenset(found)


def _pointers(tensors: Sequence[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """From where to where a tensor's numbers lie."""
    if not tensor.numel() or tensor.layout is not torch.strided:
        return 0, 0
    start = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()
