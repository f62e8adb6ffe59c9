"""Priors on other spaces than R^D: one-hot codes, the simplex, the sphere."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.nn import functional as F

from pyro_vae.distributions.codes import OneHotGroups, RelaxedGroups
from pyro_vae.distributions.flows import Pushed
from pyro_vae.distributions.spaces import OneHotCodes, Simplex, Space, Sphere
from pyro_vae.distributions.sphere import PowerSpherical, SphereUniform
from pyro_vae.errors import InputError, positive, positive_int
from pyro_vae.priors.base import Centred, Prior


class Categorical(Prior):
    """p(z) = Π_g Categorical(z_g | π_g): groups of one-hot codes, laid end to end (Jang et al. 2017; Maddison et al. 2017).

    While the guide relaxes the codes at a temperature, so does the prior, and the bound is that of the relaxed model;
    in evaluation both are hard.

    Args:
        categories: entries of each code; latent_dim is a multiple of it.
        learned: whether π is learned, or uniform.

    Sizes that `build` sets, beside those of every prior:
        relaxation: gives the temperature at which the guide relaxes the codes at present, or None.
    """

    sizes = (*Prior.sizes, "relaxation")
    relaxation: Callable[[], torch.Tensor | None]

    def __init__(self, categories: int = 10, learned: bool = True):
        super().__init__()
        self.categories = positive_int("categories", categories)
        self.learned = learned

    @property
    def space(self) -> Space:
        return OneHotCodes(self.categories)

    def setup(self) -> None:
        logits = torch.zeros(groups_of(self.categories, self.latent_shape[0]), self.categories)
        if self.learned or self.condition_shape is not None:
            self.learn("logits", logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        logits = self.logits if isinstance(self.logits, torch.Tensor) else self.value("logits", condition)
        temperature = self.relaxation()
        return OneHotGroups(logits) if temperature is None else RelaxedGroups(temperature, logits)


class LogisticNormal(Centred):
    """z = softmax-like map of N(0, scale² I) to the simplex, Σ_d z_d = 1 (Atchison & Shen 1980), as the topic
    proportions of Srivastava & Sutton 2017 (section 3.2); zero is mapped to the centre of the simplex.

    Args:
        scale: standard deviation before the map; large values prefer few topics per datum.
    """

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = positive("scale", scale)

    @property
    def space(self) -> Space:
        return Simplex()

    def setup(self) -> None:
        if self.latent_shape[0] < 2:
            raise InputError("latent_dim=1 leaves a LogisticNormal nothing to vary; take at least 2.")
        if self.condition_shape is not None:
            self.learn("centre", torch.zeros(self.latent_shape[0] - 1))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        free = self.latent_shape[0] - 1
        centre = self.zero.expand(free) if self.context(condition) is None else self.value("centre", condition)
        return simplex(dist.Normal(centre, self.zero + self.scale).to_event(1))


class Spherical(Prior):
    """p(z) uniform on the hypersphere |z| = 1 (Davidson et al. 2018, section 3.2); given y, power spherical."""

    @property
    def space(self) -> Space:
        return Sphere()

    def setup(self) -> None:
        if self.latent_shape[0] < 2:
            raise InputError("latent_dim=1 has no sphere to speak of; take at least 2.")
        if self.condition_shape is not None:
            self.learn("direction", torch.eye(1, self.latent_shape[0])[0])
            self.learn("raw_scale", torch.zeros(1))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        if self.context(condition) is None:
            return SphereUniform(self.zero.expand(self.latent_shape))
        scale = F.softplus(self.value("raw_scale", condition)[..., 0])
        return PowerSpherical(F.normalize(self.value("direction", condition), dim=-1), scale)


def groups_of(categories: int, latent_dim: int) -> int:
    """How many codes of `categories` entries make up a latent.

    Raises:
        InputError: if they don't fill it.
    """
    if latent_dim % categories:
        raise InputError(
            f"latent_dim={latent_dim} must be a multiple of categories={categories}, one code after another."
        )
    return latent_dim // categories


def simplex(base: TorchDistribution) -> Pushed:
    """A distribution on R^(D−1) mapped to the simplex in R^D by breaking a stick."""
    return Pushed(base, [torch.distributions.StickBreakingTransform()], dist.constraints.simplex)
