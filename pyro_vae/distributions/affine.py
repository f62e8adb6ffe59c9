"""A distribution in other units: of x with t(x) = loc + scale · u, t the identity or the logarithm, u of a base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch import distributions as torch_dist
from torch.nn import functional as F

TRANSFORMS = ("identity", "log", "softplus")


def transformed(x: torch.Tensor, transform: str) -> torch.Tensor:
    """t(x): x, log x, or the inverse of softplus, log (exp(x) − 1), which is log x near 0 and x far from it."""
    if transform == "log":
        return x.log()
    return x + torch.log(-torch.expm1(-x)) if transform == "softplus" else x


def _softplus_mean(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E[softplus(y)] of y ~ N(loc, scale²) by Gauss-Hermite quadrature."""
    import numpy as np

    points, weights = (torch.from_numpy(part).to(loc) for part in np.polynomial.hermite_e.hermegauss(16))
    return (F.softplus(loc.unsqueeze(-1) + scale.unsqueeze(-1) * points) * weights).sum(-1) / math.sqrt(2 * math.pi)


class Affine(TorchDistribution):
    """p(x) = p_base(u) |dt/dx| / scale per entry, with u = (t(x) − loc) / scale.

    Args:
        base: of u, over real numbers, or over positive ones where loc is 0.
        loc, scale: of t(x); numbers, or tensors that broadcast with x.
        transform: t, one of "identity", "log" and "softplus".
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: TorchDistribution,
        loc: float | torch.Tensor,
        scale: float | torch.Tensor,
        transform: str = "identity",
    ):
        self.base, self.loc, self.scale, self.transform = base, loc, scale, transform
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        if self.transform != "identity":
            return constraints.independent(constraints.positive, len(self.event_shape))
        return self.base.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Affine:
        return type(self)(self.base.expand(torch.Size(batch_shape)), self.loc, self.scale, self.transform)

    def _outer(self, u: torch.Tensor) -> torch.Tensor:
        moved = self.loc + self.scale * u
        if self.transform == "log":
            return moved.exp()
        tiny = torch.finfo(moved.dtype).tiny  # softplus rounds to 0 far below 0
        return F.softplus(moved).clamp(min=tiny) if self.transform == "softplus" else moved

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self._outer(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self._outer(self.base.sample(torch.Size(sample_shape)))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        t = transformed(value, self.transform)
        log_scale = self.scale.log() if isinstance(self.scale, torch.Tensor) else math.log(self.scale)
        # log |dt/dx|: of log x it is −log x, of log (exp(x) − 1) it is −log (1 − exp(−x)) = x − t
        slopes = {"identity": torch.zeros_like(t), "log": -t, "softplus": value - t}[self.transform]
        return self.base.log_prob((t - self.loc) / self.scale) + sum_rightmost(
            slopes - log_scale, len(self.event_shape)
        )

    def _normal(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """loc and scale of t(x), where that is a Normal variable."""
        inner = self.base
        while isinstance(inner, torch_dist.Independent):
            inner = inner.base_dist
        if not isinstance(inner, torch_dist.Normal):
            return None
        return self.loc + self.scale * inner.loc, self.scale * inner.scale

    @property
    def mean(self) -> torch.Tensor:
        """E[x], under "softplus" by a quadrature of 16 points; NaN where x is no function of a Normal variable."""
        if self.transform == "identity":
            return self._outer(self.base.mean)
        found = self._normal()
        if found is None:
            return torch.full_like(self.base.mean, math.nan)
        return (found[0] + found[1] ** 2 / 2).exp() if self.transform == "log" else _softplus_mean(*found)

    @property
    def mode(self) -> torch.Tensor:
        """The mode; where it has no closed form, the x that belongs to the mode of t(x)."""
        found = self._normal() if self.transform == "log" else None
        return self._outer(self.base.mode) if found is None else (found[0] - found[1] ** 2).exp()

    @property
    def variance(self) -> torch.Tensor:
        """Var[x]; NaN where it has no closed form."""
        if self.transform == "identity":
            return self.scale**2 * self.base.variance
        found = self._normal() if self.transform == "log" else None
        if found is None:
            return torch.full_like(self.base.mean, math.nan)
        return torch.expm1(found[1] ** 2) * (2 * found[0] + found[1] ** 2).exp()
