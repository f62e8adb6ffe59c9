"""Likelihoods of counts."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch.nn import functional as F

from pyro_vae.distributions.counts import CountVector, ZeroInflated
from pyro_vae.distributions.counts import NegativeBinomial as _NegativeBinomial
from pyro_vae.errors import positive_int
from pyro_vae.likelihoods.base import (
    START_MARGIN,
    Likelihood,
    Spread,
    SpreadArgument,
    margin_logit,
    positive_mean,
    raw_mean,
)


class Binomial(Likelihood):
    """p(x | z) = Π_d Binomial(x_d | total_count, sigmoid(params_d)) for counts, such as integer greys.

    Args:
        total_count: the largest value of a pixel, 255 for bytes and 16 for `digits`.
    """

    def __init__(self, total_count: int = 255):
        super().__init__()
        self.total_count = positive_int("total_count", total_count)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.total_count)

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.total_count

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return margin_logit(mean.to(self.zero) / self.total_count)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return dist.Binomial(self.total_count, logits=params).to_event(self.event_rank)


class Multinomial(Likelihood):
    """p(x | z) = Multinomial(x | n, softmax(params)), the softmax over all entries of x and n = Σ x of each datum.

    The encoder reads x / n. A bag of words under it is a topic model (Miao et al. 2016, section 3).

    Args:
        total_count: n of data that are drawn, and of the mean; log p(x | z) takes it from x.
    """

    def __init__(self, total_count: int = 100):
        super().__init__()
        self.total_count = positive_int("total_count", total_count)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative_integer

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.zero.dtype)
        return x / x.sum(dim=list(range(-self.event_rank, 0)), keepdim=True).clamp(min=1)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return free.flatten(-self.event_rank).softmax(-1).unflatten(-1, self.event_shape)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return mean.to(self.zero).clamp(min=START_MARGIN).log()

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return CountVector(self.total_count, params, self.event_rank)


class CountArgument:
    """Mixed into likelihoods of counts 0, 1, ...: the encoder reads log(1 + x)."""

    zero: torch.Tensor

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0 on."""
        return constraints.nonnegative_integer

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """log(1 + x), shape (..., *event_shape)."""
        return torch.log1p(x.to(self.zero.dtype))

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        """softplus, which is log(1 + exp(free)): `as_input` of a positive number."""
        return F.softplus(free)


class Poisson(CountArgument, Likelihood):
    """p(x | z) = Π_d Poisson(x_d | softplus(params_d)) for counts."""

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return raw_mean(mean.to(self.zero))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return dist.Poisson(positive_mean(params)).to_event(self.event_rank)


class ZeroInflatedPoisson(CountArgument, Likelihood):
    """p(x | z) = Π_d π_d δ_0(x_d) + (1 − π_d) Poisson(x_d | rate_d) for counts with too many zeros (Lambert 1992).

    The decoder says softplus⁻¹(rate) and logit(π) for each entry.
    """

    params_per_value: int = 2

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(raw_mean(2 * mean.to(self.zero)))  # π starts at one half

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        raw, gate_logits = self.split(params)
        return ZeroInflated(dist.Poisson(positive_mean(raw)), gate_logits).to_event(self.event_rank)


def _negative_binomial(raw: torch.Tensor, inverse_dispersion: torch.Tensor) -> TorchDistribution:
    logits = positive_mean(raw).log() - inverse_dispersion.log()
    return _NegativeBinomial(inverse_dispersion, logits=logits)


class NegativeBinomial(CountArgument, SpreadArgument, Likelihood):
    """p(x | z) = Π_d NB(x_d | mean_d, θ), of variance mean + mean² / θ, for counts (Lopez et al. 2018, Methods).

    Args:
        inverse_dispersion: θ, under which a large number gives a Poisson: a number, or learned as Normal's scale is.
        min_inverse_dispersion: floor of a learned θ.
    """

    spread: ClassVar[str] = "inverse_dispersion"

    def __init__(self, inverse_dispersion: Spread = "per value", min_inverse_dispersion: float = 1e-3):
        super().__init__()
        self.keep_spread(inverse_dispersion, min_inverse_dispersion)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(raw_mean(mean.to(self.zero)))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return _negative_binomial(*self.with_spread(params)).to_event(self.event_rank)


class ZeroInflatedNegativeBinomial(CountArgument, SpreadArgument, Likelihood):
    """p(x | z) = Π_d π_d δ_0(x_d) + (1 − π_d) NB(x_d | mean_d, θ), scVI's likelihood (Lopez et al. 2018, Methods).

    The decoder says softplus⁻¹(mean) and logit(π) for each entry.

    Args:
        inverse_dispersion: θ of the variance mean + mean² / θ: a number, or learned as Normal's scale is.
        min_inverse_dispersion: floor of a learned θ.
    """

    spread: ClassVar[str] = "inverse_dispersion"
    others: ClassVar[int] = 2

    def __init__(self, inverse_dispersion: Spread = "per value", min_inverse_dispersion: float = 1e-3):
        super().__init__()
        self.keep_spread(inverse_dispersion, min_inverse_dispersion)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(raw_mean(2 * mean.to(self.zero)))  # π starts at one half

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        raw, gate_logits, inverse_dispersion = self.with_spread(params)
        counts = _negative_binomial(raw, inverse_dispersion)
        return ZeroInflated(counts, gate_logits).to_event(self.event_rank)
