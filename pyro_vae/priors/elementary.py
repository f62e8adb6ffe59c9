"""Priors with independent dimensions: normal, Laplace, Student's t."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyro_vae.errors import positive
from pyro_vae.priors.base import Centred, Prior


class StandardNormal(Centred):
    """p(z) = N(z | 0, I), the prior of Kingma & Welling 2014 (section 3); p(z | y) = N(z | W y, I)."""

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        return dist.Normal(self.centred(condition), self.zero + 1).to_event(self.latent_rank)


class Normal(Prior):
    """p(z) = N(z | loc, diag scale²), both learned (Kingma & Welling 2019); given y, linear in y."""

    def setup(self) -> None:
        self.learn("loc", torch.zeros(self.latent_shape))
        self.learn("log_scale", torch.zeros(self.latent_shape))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        scale = self.value("log_scale", condition).exp()
        return dist.Normal(self.value("loc", condition), scale).to_event(self.latent_rank)


class Laplace(Centred):
    """p(z) = Π_d Laplace(z_d | 0, scale), for sparser codes than the normal's (Park et al. 2019).

    Args:
        scale: width of each dimension, in latent units.
    """

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = positive("scale", scale)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        return dist.Laplace(self.centred(condition), self.zero + self.scale).to_event(self.latent_rank)


class StudentT(Centred):
    """p(z) = Π_d StudentT(z_d | df, 0, scale): heavy tails, which pull outliers in less (Chen et al. 2020, t-VAE).

    Args:
        df: degrees of freedom; the variance is finite above 2.
        scale: width of each dimension, in latent units.
    """

    def __init__(self, df: float = 5.0, scale: float = 1.0):
        super().__init__()
        self.df = positive("df", df)
        self.scale = positive("scale", scale)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        zero = self.zero
        return dist.StudentT(zero + self.df, self.centred(condition), zero + self.scale).to_event(self.latent_rank)
