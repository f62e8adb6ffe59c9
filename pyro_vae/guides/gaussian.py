"""Guide families made of Gaussians: diagonal, full or low-rank covariance, mixtures."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.nn import functional as F

from pyro_vae.distributions.mixtures import DiagonalMixture
from pyro_vae.errors import positive_int
from pyro_vae.guides.base import MIN_SCALE, Guide, normal


class MeanField(Guide):
    """q(z | x) = Π_d N(z_d | loc_d(x), scale_d(x)²) (Kingma & Welling 2014, eq. 9)."""

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.latent_shape[0], *self.latent_shape[1:]])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return normal(params, -self.latent_rank).to_event(self.latent_rank)


class FullCovariance(Guide):
    """q(z | x) = N(z | loc(x), L(x) L(x)ᵀ) with L lower triangular (Kingma & Welling 2019, section 2.5.1)."""

    below_diagonal: torch.Tensor

    def setup(self) -> None:
        rows, columns = torch.tril_indices(self.size, self.size, offset=-1)
        self.register_buffer("below_diagonal", rows * self.size + columns, persistent=False)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.size + self.size * (self.size - 1) // 2])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        d = self.size
        loc, raw_scale, below = params.split([d, d, d * (d - 1) // 2], dim=-1)
        lower = params.new_zeros(*params.shape[:-1], d * d).index_copy(-1, self.below_diagonal, below)
        scale_tril = lower.unflatten(-1, (d, d)) + torch.diag_embed(F.softplus(raw_scale) + MIN_SCALE)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


class LowRank(Guide):
    """q(z | x) = N(z | loc(x), W(x) W(x)ᵀ + diag scale(x)²), W of few columns (Ong et al. 2018, section 3).

    Args:
        rank: columns of W; 0 would be MeanField, D is no cheaper than FullCovariance.
    """

    def __init__(self, rank: int = 2):
        super().__init__()
        self.rank = positive_int("rank", rank)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([(2 + self.rank) * self.size])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        diagonal, factor = params.split([2 * self.size, self.rank * self.size], dim=-1)
        q = normal(diagonal)
        factor = factor.unflatten(-1, (self.size, self.rank)) / math.sqrt(self.rank)
        return dist.LowRankMultivariateNormal(q.loc, factor, q.scale.square())


class Mixture(Guide):
    """q(z | x) = Σ_k π_k(x) N(z | loc_k(x), diag scale_k(x)²), k marginalised in density and gradients.

    Draws are implicitly reparameterised: they have gradients in all that x says, π too (Figurnov et al. 2018).

    Args:
        components: number of Gaussians K.
        stratified: whether a batch's draws share out the components by their weights, evenly, instead of each by
            itself, which lowers the gradient's variance (Morningstar et al. 2021 for the idea).
    """

    def __init__(self, components: int = 3, stratified: bool = True):
        super().__init__()
        self.components = positive_int("components", components)
        self.stratified = stratified

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([self.components * (1 + 2 * self.size)])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        k = self.components
        logits, rest = params.split([k, 2 * k * self.size], dim=-1)
        parts = normal(rest.unflatten(-1, (k, 2 * self.size)))
        # Components start apart, or the first steps would pull all alike.
        apart = torch.linspace(-1, 1, k, dtype=params.dtype, device=params.device)[:, None] * (k > 1)
        return DiagonalMixture(parts.loc + apart, parts.scale, logits, self.stratified)
