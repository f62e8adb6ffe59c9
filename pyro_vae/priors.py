"""Priors: what z looks like before x is seen.

A prior is a module whose `forward()` returns p(z), a distribution with batch shape () and event shape
`latent_shape`; `VAE` expands it over the data. A new one is a class like those below.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.checks import positive, positive_int
from pyro_vae.component import Component


class Prior(Component):
    """p(z), the distribution of a latent of shape `latent_shape`.

    Sizes that `build` sets:
        latent_shape: shape of one latent, such as (20,).
        input_shape: shape of what the encoder reads, for priors that look at made-up data.
        pseudo_input: maps free real numbers of shape (..., *input_shape) to what the encoder could read.
        posterior: gives q(z | input) for inputs of shape (K, *input_shape).
    """

    latent_shape: torch.Size
    input_shape: torch.Size
    pseudo_input: Callable[[torch.Tensor], torch.Tensor]
    posterior: Callable[[torch.Tensor], TorchDistribution]

    @property
    def latent_rank(self) -> int:
        """How many dimensions one latent has."""
        return len(self.latent_shape)

    def forward(self) -> TorchDistribution:
        """p(z), batch shape (), event shape `latent_shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")


class StandardNormal(Prior):
    """p(z) = N(z | 0, I), the prior of Kingma & Welling 2014 (section 3)."""

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.zero, self.zero + 1).expand(self.latent_shape).to_event(self.latent_rank)


class Mixture(Prior):
    """p(z) = Σ_k π_k N(z | μ_k, diag σ_k²) with π, μ and σ learned (Dilokthanakul et al. 2016, section 3).

    Args:
        components: number of Gaussians K.
        spread: standard deviation of the starting means around 0, in latent units.
    """

    def __init__(self, components: int = 10, spread: float = 1.0):
        super().__init__()
        self.components = positive_int("components", components)
        self.spread = positive("spread", spread)

    def setup(self) -> None:
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.loc = nn.Parameter(self.spread * torch.randn(self.components, *self.latent_shape))
        self.log_scale = nn.Parameter(torch.zeros(self.components, *self.latent_shape))

    def forward(self) -> TorchDistribution:
        parts = dist.Normal(self.loc, self.log_scale.exp()).to_event(self.latent_rank)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


class Vamp(Prior):
    """p(z) = 1/K Σ_k q(z | u_k): the guide at K learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    Args:
        pseudo_inputs: number of pseudo-inputs K.
        spread: standard deviation of the free numbers that the pseudo-inputs start from.
    """

    def __init__(self, pseudo_inputs: int = 50, spread: float = 1.0):
        super().__init__()
        self.pseudo_inputs = positive_int("pseudo_inputs", pseudo_inputs)
        self.spread = positive("spread", spread)

    def setup(self) -> None:
        self.free_inputs = nn.Parameter(self.spread * torch.randn(self.pseudo_inputs, *self.input_shape))
        self.register_buffer("logits", torch.zeros(self.pseudo_inputs), persistent=False)

    def forward(self) -> TorchDistribution:
        parts = self.posterior(self.pseudo_input(self.free_inputs))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)
