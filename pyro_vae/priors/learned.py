"""Priors with learned shapes: mixtures, the guide at pseudo-inputs, flows, autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.distributions.flows import Pushed, autoregressive_maps
from pyro_vae.distributions.sequences import Sequential
from pyro_vae.distributions.spaces import GuidesSpace, Space
from pyro_vae.errors import one_of, positive, positive_int, widths
from pyro_vae.priors.base import Prior


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
        self.learn("logits", torch.zeros(self.components))
        self.learn("loc", self.spread * torch.randn(self.components, *self.latent_shape))
        self.learn("log_scale", torch.zeros(self.components, *self.latent_shape))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        loc, log_scale = self.value("loc", condition), self.value("log_scale", condition)
        parts = dist.Normal(loc, log_scale.exp()).to_event(self.latent_rank)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.value("logits", condition)), parts)


class Vamp(Prior):
    """p(z) = 1/K Σ_k q(z | u_k): the guide at K learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    Given y, the weights of the pseudo-inputs depend on y: p(z | y) = Σ_k π_k(y) q(z | u_k).

    Args:
        pseudo_inputs: number of pseudo-inputs K.
        spread: standard deviation of the free numbers that the pseudo-inputs start from.

    Sizes that `build` sets, beside those of every prior:
        input_shape: shape of what the encoder reads.
        pseudo_input: maps free real numbers of shape (..., *input_shape) to what the encoder could read.
        posterior: gives q(z | input) for inputs of shape (K, *input_shape).
    """

    sizes = (*Prior.sizes, "input_shape", "pseudo_input", "posterior")
    input_shape: torch.Size
    pseudo_input: Callable[[torch.Tensor], torch.Tensor]
    posterior: Callable[[torch.Tensor], TorchDistribution]

    def __init__(self, pseudo_inputs: int = 50, spread: float = 1.0):
        super().__init__()
        self.pseudo_inputs = positive_int("pseudo_inputs", pseudo_inputs)
        self.spread = positive("spread", spread)

    @property
    def space(self) -> Space:
        return GuidesSpace()

    def setup(self) -> None:
        self.free_inputs = nn.Parameter(self.spread * torch.randn(self.pseudo_inputs, *self.input_shape))
        if self.condition_shape is None:
            self.register_buffer("logits", torch.zeros(self.pseudo_inputs), persistent=False)
        else:
            self.learn("logits", torch.zeros(self.pseudo_inputs))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        logits: Any = self.logits if self.context(condition) is None else self.value("logits", condition)
        parts: Any = self.posterior(self.pseudo_input(self.free_inputs))
        if logits.dim() > 1:
            parts = parts.expand(logits.shape)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


class Flow(Prior):
    """p(z) = N(f(z) | 0, I) |det ∂f/∂z| with f an invertible network (Dinh et al. 2017; Chen et al. 2017, section 3.2).

    Densities take one pass; draws, which training does not need, invert f one dimension at a time ("coupling": at once).

    Args:
        kind: "coupling" (Dinh et al. 2017), "autoregressive" (Papamakarios et al. 2017), both affine, or "spline",
            autoregressive with rational quadratic splines (Durkan et al. 2019).
        transforms: number of maps that f is made of.
        hidden: widths of the hidden layers in each map's network.
    """

    def __init__(
        self,
        kind: Literal["coupling", "autoregressive", "spline"] = "autoregressive",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ):
        super().__init__()
        self.kind = one_of("kind", kind, ["coupling", "autoregressive", "spline"])
        self.transforms = positive_int("transforms", transforms)
        self.hidden = widths("hidden", hidden)

    def setup(self) -> None:
        context = 0 if self.condition_shape is None else self.condition_shape.numel()
        size = self.latent_shape.numel()
        self.maps = autoregressive_maps(self.kind, size, context, self.transforms, self.hidden)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        y = self.context(condition)
        base = self.zero.expand(*(() if y is None else y.shape[:-1]), *self.latent_shape)
        # f runs from z to the base, so that the density of any z is what takes one pass.
        maps = [one(y).inv for one in reversed(self.maps)]
        return Pushed(dist.Normal(base, self.zero + 1).to_event(1), maps)


class Autoregressive(Prior):
    """p(z) = Π_t p(z_t | z_<t), each a mixture of Gaussians said by one masked network (Germain et al. 2015, section 4;
    Gregor et al. 2014 for its use as a prior).

    Args:
        components: Gaussians in each dimension's mixture.
        hidden: widths of the hidden layers.
    """

    def __init__(self, components: int = 4, hidden: Sequence[int] = (64, 64)):
        super().__init__()
        self.components = positive_int("components", components)
        self.hidden = widths("hidden", hidden)

    def setup(self) -> None:
        context = 0 if self.condition_shape is None else self.condition_shape.numel()
        self.network = Sequential.network(self.latent_shape[0], context, self.components, self.hidden)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        y = self.context(condition)
        base = self.zero.expand(*(() if y is None else y.shape[:-1]), *self.latent_shape)
        return Sequential(self.network, base, self.components, y)
