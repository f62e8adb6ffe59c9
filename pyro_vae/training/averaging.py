"""An exponential moving average of parameters, for evaluation (Polyak & Juditsky 1992; Child 2020, appendix)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """a ← decay · a + (1 − decay) · θ after each step, from a = θ at the start.

    Args:
        params: the parameters θ by name, which stay the caller's.
        decay: share of the average that a step leaves.

    Attributes:
        values: the average by name.
    """

    def __init__(self, params: Mapping[str, torch.Tensor], decay: float):
        self.params = dict(params)
        self.values = {name: tensor.detach().clone() for name, tensor in params.items()}
        self._move = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Moves the average towards the parameters as they are now."""
        if self.params:
            self._move(list(self.values.values()), [tensor.detach() for tensor in self.params.values()], 0)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the parameters' place; they are put back afterwards."""
        kept = {name: tensor.detach().clone() for name, tensor in self.params.items()}
        self.take()
        try:
            yield
        finally:
            _copy(self.params, kept)

    def take(self) -> None:
        """Gives the parameters the average's values."""
        _copy(self.params, self.values)

    def state(self) -> dict[str, torch.Tensor]:
        """The average by the parameters' places, as Pyro's names differ from one instance of a model to the next."""
        return {str(place): value for place, value in enumerate(self.values.values())}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `state` returned."""
        _copy(self.values, {name: state[str(place)] for place, name in enumerate(self.values)})


@torch.no_grad()
def _copy(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
