"""Likelihoods of real numbers, positive numbers, proportions and angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch.nn import functional as F

from pyro_vae.errors import positive
from pyro_vae.likelihoods.base import (
    MIN_MEAN,
    Likelihood,
    Spread,
    SpreadArgument,
    margin_logit,
    positive_mean,
    raw_mean,
    where_mean_is,
)


class Normal(SpreadArgument, Likelihood):
    """p(x | z) = Π_d N(x_d | loc_d, scale²) for real data (Kingma & Welling 2014, appendix C.2).

    Args:
        scale: a positive number fixes the standard deviation; "shared" learns one for all of x, "per value" one for
            each entry of x; "per datum" has the decoder say one for each entry of each x.
        min_scale: floor of a learned scale, in data units; a likelihood without one can grow without bound.
    """

    def __init__(self, scale: Spread = "shared", min_scale: float = 1e-3):
        super().__init__()
        self.keep_spread(scale, min_scale)

    support = constraints.real

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(mean.to(self.zero))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, scale = self.with_spread(params)
        return dist.Normal(loc, scale).to_event(self.event_rank)


class Laplace(SpreadArgument, Likelihood):
    """p(x | z) = Π_d exp(−|x_d − loc_d| / scale) / (2 scale), whose best loc is a median.

    Args:
        scale: mean absolute deviation: a number, or learned as Normal's is.
        min_scale: floor of a learned scale, in data units.
    """

    def __init__(self, scale: Spread = "shared", min_scale: float = 1e-3):
        super().__init__()
        self.keep_spread(scale, min_scale)

    support = constraints.real

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(mean.to(self.zero))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, scale = self.with_spread(params)
        return dist.Laplace(loc, scale).to_event(self.event_rank)


class StudentT(SpreadArgument, Likelihood):
    """p(x | z) = Π_d t_df((x_d − loc_d) / scale) / scale, which outliers pull less than a Normal (Takahashi et al. 2018).

    Args:
        df: degrees of freedom; the mean exists above 1, the variance above 2.
        scale: a number, or learned as Normal's is; the standard deviation is √(df / (df − 2)) times that.
        min_scale: floor of a learned scale, in data units.
    """

    def __init__(self, df: float = 4.0, scale: Spread = "shared", min_scale: float = 1e-3):
        super().__init__()
        self.df = positive("df", df)
        self.keep_spread(scale, min_scale)

    support = constraints.real

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(mean.to(self.zero))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, scale = self.with_spread(params)
        return dist.StudentT(torch.full_like(loc, self.df), loc, scale).to_event(self.event_rank)


class LogNormal(SpreadArgument, Likelihood):
    """p(x | z) = Π_d N(log x_d | loc_d, scale²) / x_d for positive data; the encoder reads log x.

    Args:
        scale: standard deviation of log x: a number, or learned as Normal's is.
        min_scale: floor of a learned scale.
    """

    def __init__(self, scale: Spread = "shared", min_scale: float = 1e-3):
        super().__init__()
        self.keep_spread(scale, min_scale)

    support = constraints.positive

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(mean.to(self.zero).clamp(min=MIN_MEAN).log() - self.starting_spread() ** 2 / 2)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, scale = self.with_spread(params)
        return dist.LogNormal(loc, scale).to_event(self.event_rank)


class Gamma(SpreadArgument, Likelihood):
    """p(x | z) = Π_d Gamma(x_d | concentration, concentration / mean_d) with mean_d = softplus(params_d), for positive data.

    The encoder reads log x.

    Args:
        concentration: the squared mean over the variance: a number, or learned as Normal's scale is.
        min_concentration: floor of a learned concentration.
    """

    spread: ClassVar[str] = "concentration"

    def __init__(self, concentration: Spread = "shared", min_concentration: float = 1e-2):
        super().__init__()
        self.keep_spread(concentration, min_concentration)

    support = constraints.positive

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(raw_mean(mean.to(self.zero)))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        raw, concentration = self.with_spread(params)
        return dist.Gamma(concentration, concentration / positive_mean(raw)).to_event(self.event_rank)


class _OpenInterval(constraints.interval):
    """Numbers between two bounds, the bounds left out."""

    def check(self, value: torch.Tensor) -> torch.Tensor:
        """Which entries lie between."""
        return (self.lower_bound < value) & (value < self.upper_bound)


class _OpenBeta(dist.Beta):
    """Beta whose draws never round to 0 or 1, where its density may be infinite."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws of shape (*sample_shape, *batch_shape) between the smallest normal number and 1 − eps."""
        drawn = super().rsample(torch.Size(sample_shape))
        info = torch.finfo(drawn.dtype)
        return drawn.clamp(info.tiny, 1 - info.eps)


class Beta(SpreadArgument, Likelihood):
    """p(x | z) = Π_d Beta(x_d | c m_d, c (1 − m_d)), m_d = sigmoid(params_d), for x in (0, 1) (Ferrari & Cribari-Neto 2004).

    Args:
        concentration: c, which the variance m (1 − m) / (1 + c) falls with: a number, or learned as Normal's scale is.
        min_concentration: floor of a learned concentration.
    """

    spread: ClassVar[str] = "concentration"

    def __init__(self, concentration: Spread = "shared", min_concentration: float = 1e-2):
        super().__init__()
        self.keep_spread(concentration, min_concentration)

    @property
    def support(self) -> constraints.Constraint:
        return _OpenInterval(0.0, 1.0)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(margin_logit(mean.to(self.zero)))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        raw, concentration = self.with_spread(params)
        ones, zeros = (concentration * torch.sigmoid(side) + MIN_MEAN for side in (raw, -raw))
        return _OpenBeta(ones, zeros).to_event(self.event_rank)


class _VonMises(dist.VonMises):
    """Von Mises with log I₀(c) = c + log(e^(−c) I₀(c)), where the gradient of torch's polynomial overflows."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        from_peak = -2 * torch.sin((value - self.loc) / 2) ** 2  # cos − 1, to all digits
        return self.concentration * from_peak - math.log(2 * math.pi) - torch.special.i0e(self.concentration).log()


class VonMises(SpreadArgument, Likelihood):
    """p(x | z) = Π_d exp(c cos(x_d − loc_d)) / (2π I₀(c)) for angles in radians (Mardia & Jupp 2000, eq. 3.5.17).

    The decoder says a point whose direction is loc, so that no angle is the end of the range; the encoder reads cos x
    and sin x.

    Args:
        concentration: c, about one over the variance where it is large: a number, or learned as Normal's scale is.
        min_concentration: floor of a learned concentration.
    """

    spread: ClassVar[str] = "concentration"
    others: ClassVar[int] = 2

    def __init__(self, concentration: Spread = "shared", min_concentration: float = 1e-2):
        super().__init__()
        self.keep_spread(concentration, min_concentration)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(-math.pi, math.pi)

    @property
    def input_shape(self) -> torch.Size:
        return torch.Size([2 * self.event_shape[0], *self.event_shape[1:]])

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.cos(), x.sin()], dim=-self.event_rank)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        pairs = free.unflatten(-self.event_rank, (2, -1))
        return F.normalize(pairs, dim=-self.event_rank - 1).flatten(-self.event_rank - 1, -self.event_rank)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        mean = mean.to(self.zero)
        return self.filled(mean.cos(), mean.sin())

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        along, across, concentration = self.with_spread(params)
        # The origin has no direction, and an infinite gradient.
        along = along + (along**2 + across**2 < 1e-12).to(along.dtype)
        return _VonMises(torch.atan2(across, along), concentration).to_event(self.event_rank)


class ContinuousBernoulli(Likelihood):
    """p(x | z) = Π_d C(λ_d) λ_d^x_d (1 − λ_d)^(1 − x_d) for x in [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.unit_interval

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return where_mean_is(mean.to(self.zero), lambda logits: dist.ContinuousBernoulli(logits=logits).mean, 16.0)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return dist.ContinuousBernoulli(logits=params).to_event(self.event_rank)
