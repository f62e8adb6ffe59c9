"""Probabilities of intervals under a logistic variable: levels in order, and whole numbers from 0 on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

NEAR = 8  # whole numbers on each side of a mean that are summed one by one


def log_between(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """log (σ(high) − σ(low)) for low < high, σ the logistic function, without cancellation.

    σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)).
    """
    width = (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    return F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(-width))


def level_log_probs(location: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """log P(x = r) under P(x ≤ r) = σ(θ_r − h), r = 0, ..., L − 1 (McCullagh 1980; Nazabal et al. 2020, section 3).

    Args:
        location: h, shape (...).
        thresholds: θ_0 < ... < θ_{L−2}, shape (..., L − 1).

    Returns:
        shape (..., L).
    """
    a = thresholds - location.unsqueeze(-1)
    first, last = F.logsigmoid(a[..., :1]), F.logsigmoid(-a[..., -1:])
    return torch.cat([first, log_between(a[..., :-1], a[..., 1:]), last], dim=-1)


class RoundedLogistic(TorchDistribution):
    """P(x = k) = σ((k + ½ − loc) / scale) − σ((k − ½ − loc) / scale) for k ≥ 1, and P(0) = σ((½ − loc) / scale).

    A logistic variable rounded to a whole number, 0 taking all that lies below.

    Args:
        loc, scale: of the logistic variable.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.nonnegative_integer

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, *, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RoundedLogistic:
        shape = torch.Size(batch_shape)
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        high = (value + 0.5 - self.loc) / self.scale
        low = (value - 0.5 - self.loc) / self.scale
        return torch.where(value <= 0, F.logsigmoid(high), log_between(low, high))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        with torch.no_grad():
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            tiny = torch.finfo(u.dtype).eps
            return (self.loc + self.scale * torch.logit(u, eps=tiny)).round().clamp(min=0)

    @property
    def mean(self) -> torch.Tensor:
        """E[x] = Σ_k P(x ≥ k): the terms near loc one by one, those far from it, where they are smooth, by an integral."""
        first = (self.loc.round() - NEAR).clamp(min=1)
        k = first.unsqueeze(-1) + torch.arange(2 * NEAR + 1, dtype=self.loc.dtype, device=self.loc.device)
        near = torch.sigmoid((self.loc.unsqueeze(-1) - k + 0.5) / self.scale.unsqueeze(-1)).sum(-1)
        after = lambda end: self.scale * F.softplus((self.loc - end) / self.scale)  # noqa: E731 - ∫ P(x ≥ t) dt from end + ½
        zero = torch.zeros_like(self.loc)
        return near + after(zero) - after(first - 1) + after(first + 2 * NEAR)

    @property
    def mode(self) -> torch.Tensor:
        """The largest of the probabilities: at 0, or where loc rounds to."""
        near = self.loc.round().clamp(min=0)
        zero = torch.zeros_like(near)
        return torch.where(self.log_prob(zero) >= self.log_prob(near), zero, near)
