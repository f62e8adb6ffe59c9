"""What priors, likelihoods, guides and networks share: arguments now, sizes later."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from pyro_vae.errors import InputError


class Component(nn.Module):
    """A part of a VAE that carries its own hyper-parameters until `build` tells it the sizes.

    A subclass stores each constructor argument under the argument's name, so that it prints as, saves as
    and rebuilds from its spec. What depends on sizes (parameters, layers) is made in `setup`.
    """

    built: bool = False

    def __init__(self) -> None:
        super().__init__()  # without this, a subclass that takes no argument would seem to take nn.Module's

    def build(self, **sizes: Any) -> Self:
        """Makes the parameters, now that the sizes are known; each size becomes an attribute.

        Raises:
            InputError: if this instance is already part of a model.
        """
        if self.built:
            raise InputError(
                f"{self!r} is already built into a model; give each model, and each place in it, its own instance."
            )
        for name, value in sizes.items():
            setattr(self, name, value)
        # The zero that distributions expand from: it moves with the module, so no device is named anywhere.
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.setup()
        self.built = True
        return self

    def setup(self) -> None:
        """Makes parameters and layers; sizes are attributes by now. Nothing to do for most components."""

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as they were given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self)).parameters.items()}
        shown = {n: v.__qualname__ if inspect.isfunction(v) else repr(v) for n, v in self.arguments().items()}
        said = [f"{n}={shown[n]}" for n, v in self.arguments().items() if v != defaults[n]]
        return f"{type(self).__name__}({', '.join(said)})"
