"""What a prior is: a module whose `forward()` returns p(z), or p(z | y) where it is given y."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.component import Component
from pyro_vae.distributions.spaces import Reals, Space
from pyro_vae.errors import InputError


class Prior(Component):
    """p(z), the distribution of a latent of shape `latent_shape`.

    Sizes that `build` sets:
        latent_shape: shape of one latent, such as (20,).
        condition_shape: shape of y for p(z | y); None for p(z).
    """

    sizes: ClassVar[tuple[str, ...]] = ("latent_shape", "condition_shape")
    latent_shape: torch.Size
    condition_shape: torch.Size | None = None

    @property
    def space(self) -> Space:
        """Where z lies: the guide must draw from there too."""
        return Reals()

    @property
    def needs_posterior(self) -> bool:
        """Whether the prior looks at q(z | x) of given inputs, and so at the whole VAE."""
        return "posterior" in self.sizes

    @property
    def latent_rank(self) -> int:
        """How many dimensions one latent has."""
        return len(self.latent_shape)

    def learn(self, name: str, start: torch.Tensor, *, given: bool = True) -> None:
        """Makes an array to be learned; for p(z | y) one that is linear in y, and starts as `start` for every y."""
        if self.condition_shape is None or not given:
            self.register_parameter(name, nn.Parameter(start))
            return
        layer = nn.Linear(self.condition_shape.numel(), start.numel())
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(start.flatten())
        self.add_module(name, nn.Sequential(layer, nn.Unflatten(-1, start.shape)) if start.dim() else layer)

    def value(self, name: str, condition: torch.Tensor | None) -> torch.Tensor:
        """The array, shape (*batch, *start.shape): one for each y if there are some."""
        held, y = getattr(self, name), self.context(condition)
        return held if isinstance(held, nn.Parameter) else held(y)

    def context(self, condition: torch.Tensor | None) -> torch.Tensor | None:
        """y as vectors, (*batch, C); None for p(z).

        Raises:
            InputError: if y is missing, or there is one and none is wanted.
        """
        if (condition is None) != (self.condition_shape is None):
            wanted = "none" if self.condition_shape is None else f"(N, {', '.join(map(str, self.condition_shape))})"
            raise InputError(
                f"condition={'None' if condition is None else tuple(condition.shape)}; wanted is {wanted}."
            )
        return None if condition is None else condition.flatten(condition.dim() - len(self.condition_shape or ()))

    def centred(self, condition: torch.Tensor | None) -> torch.Tensor:
        """Zero, or where y moves the centre to (see `setup` of those that use it), (*batch, *latent_shape)."""
        if self.context(condition) is None:
            return self.zero.expand(self.latent_shape)
        return self.value("centre", condition)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        """p(z), batch shape (), event shape `latent_shape`; or p(z | y), batch shape that of y."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")


class Centred(Prior, ABC):
    """A prior of fixed form around zero; given y, around a point that is linear in y."""

    def setup(self) -> None:
        if self.condition_shape is not None:
            self.learn("centre", torch.zeros(self.latent_shape))

    @abstractmethod
    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        """p(z) or p(z | y)."""
