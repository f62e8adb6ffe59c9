"""Distributions on the hypersphere S^(D−1) = {z ∈ R^D : |z| = 1}: the uniform one, and the power spherical."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import Beta, TorchDistribution, constraints
from torch.distributions import register_kl
from typing_extensions import Self


def log_area(dim: int) -> float:
    """log of the area of S^(D−1), 2 π^(D/2) / Γ(D/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _uniform(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    normal = torch.randn(shape, dtype=like.dtype, device=like.device)
    return normal / normal.norm(dim=-1, keepdim=True)


class SphereUniform(TorchDistribution):
    """The uniform distribution on S^(D−1), with density Γ(D/2) / (2 π^(D/2)).

    Args:
        zero: a tensor of zeros, shape (*batch, D), whose dtype and device the draws have.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, zero: torch.Tensor, validate_args: bool | None = None):
        self.zero = zero
        super().__init__(zero.shape[:-1], zero.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.zero.expand(*batch_shape, *self.event_shape), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, which depend on no parameter."""
        return _uniform(self.zero, self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Minus the log of the area, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return (self.zero * value).sum(-1) - log_area(self.event_shape[0])

    @property
    def mean(self) -> torch.Tensor:
        """The centre of the sphere."""
        return self.zero

    @property
    def variance(self) -> torch.Tensor:
        """1 / D for each coordinate."""
        return self.zero + 1 / self.event_shape[0]


class PowerSpherical(TorchDistribution):
    """p(z) ∝ (1 + locᵀ z)^scale on S^(D−1) (De Cao & Aziz 2020, eq. 8), D at least 2.

    Args:
        loc: mean direction, unit vectors of shape (*batch, D).
        scale: concentration, positive, shape (*batch,); 0 would be the uniform distribution.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.sphere, "scale": constraints.positive}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, validate_args: bool | None = None):
        batch = torch.broadcast_shapes(loc.shape[:-1], scale.shape)
        self.loc, self.scale = loc.expand(*batch, loc.shape[-1]), scale.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        loc, scale = self.loc.expand(*batch_shape, *self.event_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, validate_args=False)

    @property
    def _beta(self) -> float:
        return (self.event_shape[0] - 1) / 2

    @property
    def _marginal(self) -> Beta:
        """Of (1 + locᵀ z) / 2."""
        return Beta(self.scale + self._beta, torch.full_like(self.scale, self._beta), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws by a Beta along the mean direction, the uniform around it, and a reflection (algorithm 1)."""
        sample_shape = torch.Size(sample_shape)
        shape = self._extended_shape(sample_shape)
        t = 2 * self._marginal.rsample(sample_shape).unsqueeze(-1) - 1
        around = _uniform(self.loc, torch.Size([*shape[:-1], shape[-1] - 1]))
        # The root's slope is infinite where z meets the mean direction.
        y = torch.cat([t, (1 - t.square()).clamp_min(torch.finfo(t.dtype).tiny).sqrt() * around], dim=-1)
        first = torch.zeros_like(self.loc)
        first = torch.cat([first[..., :1] + 1, first[..., 1:]], dim=-1)
        u = first - self.loc
        u = u / u.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return y - 2 * (u * y).sum(-1, keepdim=True) * u

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p in nats."""
        if self._validate_args:
            self._validate_sample(value)
        cosine = (self.loc * value).sum(-1)
        tiny = torch.finfo(cosine.dtype).eps / 4  # rounding may take the cosine below −1
        return self.scale * torch.log((1 + cosine).clamp_min(tiny)) - self._log_normalizer()

    def _log_normalizer(self) -> torch.Tensor:
        alpha, beta = self.scale + self._beta, self._beta
        return (
            (alpha + beta) * math.log(2) + beta * math.log(math.pi) + torch.lgamma(alpha) - torch.lgamma(alpha + beta)
        )

    @property
    def mean(self) -> torch.Tensor:
        """loc · scale / (scale + D − 1): shorter than 1, the less concentrated the more."""
        return self.loc * (self.scale / (self.scale + 2 * self._beta)).unsqueeze(-1)

    @property
    def mode(self) -> torch.Tensor:
        """The mean direction."""
        return self.loc

    @property
    def variance(self) -> torch.Tensor:
        """Of each coordinate."""
        alpha, beta = self.scale + self._beta, self._beta
        along = (4 * alpha * beta / ((alpha + beta).square() * (alpha + beta + 1))).unsqueeze(-1)
        square = 1 - (along + self.mean.square().sum(-1, keepdim=True))  # E[1 − t²]
        across = square / (self.event_shape[0] - 1)
        return along * self.loc.square() + across * (1 - self.loc.square())

    def entropy(self) -> torch.Tensor:
        """In nats (eq. 15)."""
        alpha, beta = self.scale + self._beta, self._beta
        expected = math.log(2) + torch.digamma(alpha) - torch.digamma(alpha + beta)  # E[log(1 + locᵀ z)]
        return self._log_normalizer() - self.scale * expected


@register_kl(PowerSpherical, SphereUniform)  # type: ignore[untyped-decorator]
def _kl_to_uniform(p: PowerSpherical, q: SphereUniform) -> torch.Tensor:
    return log_area(q.event_shape[0]) - p.entropy()


__all__ = ["PowerSpherical", "SphereUniform", "log_area"]
