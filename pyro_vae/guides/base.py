"""What a guide family is: a module whose `forward(params)` returns q(z | params)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.nn import functional as F

from pyro_vae.component import Component
from pyro_vae.distributions.spaces import Reals, Space

# Keeps a standard deviation off zero when the encoder is very sure, in latent units.
MIN_SCALE = 1e-6


LogJoint = Callable[[torch.Tensor], torch.Tensor]


class Guide(Component):
    """q(z | params) for a latent of shape `latent_shape` (set by `build`).

    Attributes:
        evaluable: whether log q(z | x) can be had at any z, not only at q's own draws.
        amortized: whether an encoder says the params; if not, they are sought for each datum.
        optimises: whether gradient steps on the model are taken for each datum.
    """

    sizes: ClassVar[tuple[str, ...]] = ("latent_shape",)
    latent_shape: torch.Size
    evaluable: bool = True
    amortized: bool = True
    optimises: bool = False

    @property
    def space(self) -> Space:
        """Where z lies: the prior must live there too."""
        return Reals()

    @property
    def latent_rank(self) -> int:
        """How many dimensions one latent has."""
        return len(self.latent_shape)

    @property
    def size(self) -> int:
        """Number of latent dimensions D."""
        return self.latent_shape.numel()

    @property
    def params_shape(self) -> torch.Size:
        """What the encoder must return per datum."""
        raise NotImplementedError(f"{type(self).__name__} must define params_shape.")

    def relaxation(self) -> torch.Tensor | None:
        """The temperature at which discrete latents are relaxed just now; None where they are not."""
        return None

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        """q(z | params), batch shape (...) for params of shape (..., *params_shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params).")

    def refine(self, params: torch.Tensor, log_joint: LogJoint) -> TorchDistribution:
        """q(z | x), for families that look at the model as well as at the params.

        Args:
            params: shape (..., *params_shape).
            log_joint: log p(x, z) of latents of shape (*samples, ..., *latent_shape), for the params' own x.
        """
        return self(params)


def normal(params: torch.Tensor, dim: int = -1) -> dist.Normal:
    """N(loc, scale²), entry by entry, of params that hold loc and a raw scale side by side."""
    loc, raw_scale = params.chunk(2, dim=dim)
    return dist.Normal(loc, F.softplus(raw_scale) + MIN_SCALE)
