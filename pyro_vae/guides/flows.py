"""Guide families made by pushing a Gaussian through invertible maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.distributions.transforms.planar import ConditionedPlanar

from pyro_vae.distributions.flows import Pushed, autoregressive_maps
from pyro_vae.errors import positive_int, widths
from pyro_vae.guides.base import Guide, normal


class Planar(Guide):
    """q(z | x) = N(loc(x), scale(x)²) pushed through planar maps z + u tanh(wᵀ z + b), whose u, w and b the encoder
    says for each x (Rezende & Mohamed 2015, eq. 10). No one can invert them, so q is known at its own draws alone.

    Args:
        transforms: number of maps.
    """

    evaluable = False

    def __init__(self, transforms: int = 4):
        super().__init__()
        self.transforms = positive_int("transforms", transforms)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.size + self.transforms * (2 * self.size + 1)])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        d = self.size
        start, *rest = params.split([2 * d, *[2 * d + 1] * self.transforms], dim=-1)
        maps = [ConditionedPlanar(part.split([1, d, d], dim=-1)) for part in rest]
        return Pushed(normal(start).to_event(1), maps)


class Householder(Guide):
    """q(z | x) = N(loc(x), scale(x)²) through Householder reflections that x sets: a Gaussian with full covariance,
    whose eigenvectors the reflections turn (Tomczak & Welling 2016, eq. 7).

    Args:
        transforms: number of reflections.
    """

    def __init__(self, transforms: int = 4):
        super().__init__()
        self.transforms = positive_int("transforms", transforms)

    def setup(self) -> None:
        # Added to the vectors, since the direction of a reflection is not defined at zero.
        axes = torch.eye(self.size)[torch.arange(self.transforms) % self.size]
        self.register_buffer("axes", axes, persistent=False)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([(2 + self.transforms) * self.size])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        start, vectors = params.split([2 * self.size, self.transforms * self.size], dim=-1)
        vectors = vectors.unflatten(-1, (self.transforms, self.size)) + self.axes
        return Pushed(normal(start).to_event(1), [ConditionedHouseholder(vectors)])


class Autoregression(Guide, ABC):
    """A Gaussian that x says, with autoregressive maps in its sampling direction, given a context that x says too.

    Draws and their densities take one pass; other values take one for each dimension.
    """

    kind: Literal["autoregressive", "spline"]

    def __init__(self, transforms: int = 2, hidden: Sequence[int] = (64,), context: int = 16):
        super().__init__()
        self.transforms = positive_int("transforms", transforms)
        self.hidden = widths("hidden", hidden)
        self.context = positive_int("context", context)

    def setup(self) -> None:
        self.maps = autoregressive_maps(self.kind, self.size, self.context, self.transforms, self.hidden)

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.size + self.context])

    def _parts(self, params: torch.Tensor) -> tuple[dist.Normal, list[torch.distributions.Transform]]:
        start, context = params.split([2 * self.size, self.context], dim=-1)
        return normal(start), [one(context) for one in self.maps]

    @abstractmethod
    def forward(self, params: torch.Tensor) -> TorchDistribution:
        """q(z | params)."""


class InverseAutoregressive(Autoregression):
    """q(z | x) = N(loc(x), scale(x)²) pushed through z_t ↦ μ_t(z_<t, h(x)) + σ_t(z_<t, h(x)) z_t, several times
    (Kingma et al. 2016, eqs. 9 and 10).

    Args:
        transforms: number of maps, whose orders alternate.
        hidden: widths of the hidden layers in each map's network.
        context: width of h(x), which the encoder returns beside loc and scale.
    """

    kind = "autoregressive"

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        start, maps = self._parts(params)
        return Pushed(start.to_event(1), maps)


class Spline(Autoregression):
    """q(z | x): standard normal noise through autoregressive rational quadratic splines, then loc(x) + scale(x) · ε
    (Durkan et al. 2019, section 3.2). Splines bend within ±5 standard deviations.

    Args:
        transforms: number of maps, whose orders alternate.
        hidden: widths of the hidden layers in each map's network.
        context: width of h(x), which the encoder returns beside loc and scale.
    """

    kind = "spline"

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        last, maps = self._parts(params)
        noise = dist.Normal(torch.zeros_like(last.loc), 1.0).to_event(1)
        return Pushed(noise, [*maps, torch.distributions.AffineTransform(last.loc, last.scale, event_dim=1)])
