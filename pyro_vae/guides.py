"""Guides: the families from which q(z | x) is taken.

A guide family is a module whose `forward(params)` returns q(z | params), a distribution with the batch shape
of `params` and event shape `latent_shape`; `params`, of shape `params_shape`, is what the encoder returns.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.nn import functional as F

from pyro_vae.component import Component

# Keeps a standard deviation off zero when the encoder is very sure, in latent units.
MIN_SCALE = 1e-6


class Guide(Component):
    """q(z | params) for a latent of shape `latent_shape` (set by `build`)."""

    latent_shape: torch.Size

    @property
    def latent_rank(self) -> int:
        """How many dimensions one latent has."""
        return len(self.latent_shape)

    @property
    def params_shape(self) -> torch.Size:
        """What the encoder must return per datum."""
        raise NotImplementedError(f"{type(self).__name__} must define params_shape.")

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        """q(z | params), batch shape (...) for params of shape (..., *params_shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params).")


class MeanField(Guide):
    """q(z | x) = Π_d N(z_d | loc_d(x), scale_d(x)²) (Kingma & Welling 2014, eq. 9)."""

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.latent_shape[0], *self.latent_shape[1:]])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, raw_scale = params.chunk(2, dim=-self.latent_rank)
        return dist.Normal(loc, F.softplus(raw_scale) + MIN_SCALE).to_event(self.latent_rank)


class FullCovariance(Guide):
    """q(z | x) = N(z | loc(x), L(x) L(x)ᵀ) with L lower triangular (Kingma & Welling 2019, section 2.5.1)."""

    def setup(self) -> None:
        rows, columns = torch.tril_indices(self.size, self.size, offset=-1)
        self.register_buffer("below_diagonal", rows * self.size + columns, persistent=False)

    @property
    def size(self) -> int:
        """Number of latent dimensions D."""
        return self.latent_shape.numel()

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.size + self.size * (self.size - 1) // 2])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        d = self.size
        loc, raw_scale, below = params.split([d, d, d * (d - 1) // 2], dim=-1)
        lower = params.new_zeros(*params.shape[:-1], d * d).index_copy(-1, self.below_diagonal, below)
        scale_tril = lower.unflatten(-1, (d, d)) + torch.diag_embed(F.softplus(raw_scale) + MIN_SCALE)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)
