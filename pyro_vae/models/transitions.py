"""Transitions: how the latent of a sequence moves from one step to the next."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.nn import functional as F

from pyro_vae.component import Component
from pyro_vae.errors import positive_int
from pyro_vae.guides import MIN_SCALE


class Transition(Component):
    """p(z_t | z_{t−1}) for latents of shape `latent_shape` (set by `build`)."""

    sizes: ClassVar[tuple[str, ...]] = ("latent_shape",)
    latent_shape: torch.Size

    def forward(self, z: torch.Tensor) -> TorchDistribution:
        """p(z_t | z_{t−1} = z), batch shape (...) for z of shape (..., D)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(z).")


class Gated(Transition):
    """z_t ~ N((1 − g) ⊙ (W z + b) + g ⊙ h, softplus(V relu(h) + c)²), g and h networks of z = z_{t−1}
    (Krishnan et al. 2017, "Gated Transition Function").

    W starts as the identity, so that the untrained chain stays where it is.

    Args:
        hidden: width of the hidden layer in each of the networks g and h.
    """

    def __init__(self, hidden: int = 200):
        super().__init__()
        self.hidden = positive_int("hidden", hidden)

    def setup(self) -> None:
        size = self.latent_shape[0]
        self.gate = nn.Sequential(nn.Linear(size, self.hidden), nn.ReLU(), nn.Linear(self.hidden, size), nn.Sigmoid())
        self.proposal = nn.Sequential(nn.Linear(size, self.hidden), nn.ReLU(), nn.Linear(self.hidden, size))
        self.linear = identity(size)
        self.raw_scale = nn.Linear(size, size)

    def forward(self, z: torch.Tensor) -> TorchDistribution:
        gate, proposal = self.gate(z), self.proposal(z)
        loc = (1 - gate) * self.linear(z) + gate * proposal
        scale = F.softplus(self.raw_scale(F.relu(proposal))) + MIN_SCALE
        return dist.Normal(loc, scale).to_event(1)


class LinearGaussian(Transition):
    """z_t ~ N(A z_{t−1} + b, diag scale²): with a linear Normal emission, the model of the Kalman filter (Kalman 1960)."""

    def setup(self) -> None:
        size = self.latent_shape[0]
        self.linear = identity(size)
        self.raw_scale = nn.Parameter(torch.zeros(size))

    @property
    def scale(self) -> torch.Tensor:
        """Standard deviations of a step's noise, (D,)."""
        return F.softplus(self.raw_scale) + MIN_SCALE

    def forward(self, z: torch.Tensor) -> TorchDistribution:
        return dist.Normal(self.linear(z), self.scale).to_event(1)


def identity(size: int) -> nn.Linear:
    """A linear map that starts as z ↦ z."""
    linear = nn.Linear(size, size)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
