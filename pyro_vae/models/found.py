"""What a guide that optimises has found for a batch, kept while batch and parameters stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Found:
    """The params found for the last batch.

    A later call with equal tensors and untouched parameters gets them at once, so that draws of one posterior share it.
    """

    def __init__(self) -> None:
        self._batch: tuple[torch.Tensor | None, ...] = ()
        self._state: Any = None
        self._params: torch.Tensor | None = None

    def __deepcopy__(self, memo: Any) -> Found:
        return Found()

    def __reduce__(self) -> Any:
        return Found, ()

    def of(
        self,
        batch: tuple[torch.Tensor | None, ...],
        parameters: Iterable[torch.Tensor],
        find: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """The params for this batch: those kept, or what `find` returns.

        Args:
            batch: what the params depend on.
            parameters: those of the model and of the guide.
            find: the search.
        """
        state = [(id(tensor), tensor._version) for tensor in parameters]
        same = self._params is not None and state == self._state and len(batch) == len(self._batch)
        if not same or not all(map(_equal, batch, self._batch)):
            self._params = find()
            self._batch = tuple(t if t is None else t.clone() for t in batch)
            self._state = state
        assert self._params is not None
        return self._params


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
