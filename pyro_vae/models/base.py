"""What every pair made of components has: a name for Pyro, a spec, a check of its data."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pyro_vae.checks import InputError, shape
from pyro_vae.component import Component

_numbers = itertools.count()


class ComposedPair(nn.Module):
    """A model and a guide built from components, for data of shape `event_shape`.

    Args:
        event_shape: shape of one datum, such as (784,) or (1, 28, 28).
    """

    def __init__(self, event_shape: Sequence[int]):
        super().__init__()
        self.event_shape = shape("event_shape", event_shape)
        self._rename()

    def _rename(self) -> None:
        # Pyro keeps parameters by name in one store, so each instance needs a name that no other has.
        self.name = f"{type(self).__name__}_{next(_numbers)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # reached by copy.deepcopy: the copy must not share the original's parameters
        self._rename()

    def place(self, component: Any, kind: type[Component], argument: str) -> Any:
        """`component` after a look that it is of the right kind and not yet part of a model."""
        if not isinstance(component, kind):
            raise InputError(f"{argument}={component!r} must be a {kind.__module__}.{kind.__name__}.")
        if component.built:
            raise InputError(
                f"{argument}={component!r} is already built into a model; give each model, and each place in it, its "
                "own instance."
            )
        return component

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name; components as they are."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def check(self, x: torch.Tensor, *further: torch.Tensor) -> None:
        """Refuses data that the model can't have made, naming the first offending entry."""
        raise NotImplementedError

    def __repr__(self) -> str:
        said = ", ".join(
            f"{name}={tuple(value)!r}" if isinstance(value, torch.Size) else f"{name}={value!r}"
            for name, value in self.arguments().items()
        )
        return f"{type(self).__name__}({said})"
