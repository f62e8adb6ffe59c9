"""Guide families on other spaces than R^D: one-hot codes, the simplex, the sphere."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.nn import functional as F

from pyro_vae.distributions.codes import OneHotGroups, RelaxedGroups
from pyro_vae.distributions.flows import Pushed
from pyro_vae.distributions.spaces import OneHotCodes, Simplex, Space, Sphere
from pyro_vae.distributions.sphere import PowerSpherical
from pyro_vae.errors import InputError, positive, positive_int
from pyro_vae.guides.base import Guide, normal


class RelaxedCategorical(Guide):
    """q(z | x) = Π_g Categorical(z_g | softmax(logits_g(x))), groups of one-hot codes laid end to end, relaxed in training
    (Maddison et al. 2017; Jang et al. 2017). In evaluation codes are hard, so that scores are the hard model's.

    Args:
        categories: entries of each code; latent_dim is a multiple of it.
        temperature: of the relaxation as training starts.
        final_temperature: of the relaxation at the end of training, neared geometrically.
        hard: draw hard codes in training too, without a gradient through them, as EnumeratedELBO, VIMCO and
            ReweightedWakeSleep want them.
    """

    done: torch.Tensor

    def __init__(
        self, categories: int = 10, temperature: float = 1.0, final_temperature: float = 0.5, hard: bool = False
    ):
        super().__init__()
        self.categories = positive_int("categories", categories)
        self.temperature = positive("temperature", temperature)
        self.final_temperature = positive("final_temperature", final_temperature)
        self.hard = hard

    @property
    def space(self) -> Space:
        return OneHotCodes(self.categories)

    def setup(self) -> None:
        if self.size % self.categories:
            raise InputError(f"latent_dim={self.size} must be a multiple of categories={self.categories}.")
        self.register_buffer("done", torch.zeros(()))  # the fraction of training that is behind

    def progress(self, done: float) -> None:
        """Told by `fit` before each step how much of the run is behind, from 0 to 1."""
        self.done.fill_(done)

    def relaxation(self) -> torch.Tensor | None:
        if self.hard or not self.training:
            return None
        return self.temperature * (self.final_temperature / self.temperature) ** self.done

    @property
    def params_shape(self) -> torch.Size:
        return self.latent_shape

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        logits = params.unflatten(-1, (-1, self.categories))
        temperature = self.relaxation()
        return OneHotGroups(logits) if temperature is None else RelaxedGroups(temperature, logits)


class LogisticNormal(Guide):
    """q(z | x): N(loc(x), scale(x)²) on R^(D−1) mapped to the simplex (Srivastava & Sutton 2017, section 3.2)."""

    @property
    def space(self) -> Space:
        return Simplex()

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * (self.size - 1)])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        stick = torch.distributions.StickBreakingTransform()
        return Pushed(normal(params).to_event(1), [stick], dist.constraints.simplex)


class Spherical(Guide):
    """q(z | x) power spherical around a direction that x says, on |z| = 1 (De Cao & Aziz 2020; Davidson et al. 2018)."""

    @property
    def space(self) -> Space:
        return Sphere()

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([self.size + 1])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        direction, raw_scale = params.split([self.size, 1], dim=-1)
        return PowerSpherical(F.normalize(direction, dim=-1), F.softplus(raw_scale[..., 0]) + 1.0)
