"""Distributions over counts that torch and Pyro lack, or have with fewer digits: count vectors, excess zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch.nn import functional as F


class CountVector(TorchDistribution):
    """Multinomial(x | n, softmax(logits)) over an event of any shape, with n = Σ x taken from each x in `log_prob`.

    log p(x | n) = log n! − Σ_d log x_d! + Σ_d x_d log softmax(logits)_d.

    Args:
        total_count: n of the draws, the mean and the variance.
        logits: shape (..., *event_shape); the softmax runs over the whole event.
        event_dim: how many dimensions on the right one event has.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}

    def __init__(
        self, total_count: int, logits: torch.Tensor, event_dim: int = 1, *, validate_args: bool | None = None
    ):
        self.total_count, self.logits = total_count, logits
        batch_rank = logits.dim() - event_dim
        super().__init__(logits.shape[:batch_rank], logits.shape[batch_rank:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> CountVector:
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return type(self)(self.total_count, logits, len(self.event_shape), validate_args=False)

    @property
    def _flat_logits(self) -> torch.Tensor:
        return self.logits.flatten(len(self.batch_shape))

    @property
    def probs(self) -> torch.Tensor:
        """softmax(logits), shape (..., *event_shape), which sums to one over the event."""
        return self._flat_logits.softmax(-1).reshape(self.logits.shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        flat = dist.Multinomial(self.total_count, logits=self._flat_logits, validate_args=False)
        return flat.sample(torch.Size(sample_shape)).unflatten(-1, self.event_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.to(self.logits.dtype).flatten(value.dim() - len(self.event_shape))
        orders = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
        return orders + (x * self._flat_logits.log_softmax(-1)).sum(-1)

    @property
    def mean(self) -> torch.Tensor:
        return self.total_count * self.probs

    @property
    def variance(self) -> torch.Tensor:
        return self.total_count * self.probs * (1 - self.probs)


class NegativeBinomial(dist.NegativeBinomial):
    """Pyro's negative binomial, whose log p stays exact in float32 where a large θ = `total_count` makes it a Poisson.

    There log Γ(x + θ) − log Γ(θ) is the small difference of two large numbers, so it is written by Stirling's series,
    to 2e-12 (Abramowitz & Stegun 1964, 6.1.41).
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        theta, x = self.total_count, value.to(self.logits.dtype)
        large = theta.clamp(min=16)
        series = (large - 0.5) * torch.log1p(x / large) + x * (large + x).log() - x
        series = series + _stirling_rest(large + x) - _stirling_rest(large)
        rising = torch.where(theta < 16, torch.lgamma(x + theta) - torch.lgamma(theta), series)
        return rising - torch.lgamma(x + 1) + x * F.logsigmoid(self.logits) + theta * F.logsigmoid(-self.logits)


def _stirling_rest(a: torch.Tensor) -> torch.Tensor:
    """log Γ(a) − [(a − ½) log a − a + ½ log 2π] for a of 16 and more."""
    return (1 / 12 - (1 / 360 - 1 / (1260 * a**2)) / a**2) / a


class ZeroInflated(TorchDistribution):
    """π δ_0(x) + (1 − π) p(x) for counts with too many zeros (Lambert 1992), π kept as a logit.

    Pyro's distribution of that name computes with π itself from the first look at its mean or a draw on, where a π that
    rounds to 1 makes log p infinite, and can't be expanded then.

    Args:
        counts: p, a distribution of numbers.
        gate_logits: logit of π, which broadcasts with the batch shape of p.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}

    def __init__(self, counts: TorchDistribution, gate_logits: torch.Tensor, *, validate_args: bool | None = None):
        shape = torch.broadcast_shapes(counts.batch_shape, gate_logits.shape)
        self.counts, self.gate_logits = counts.expand(shape), gate_logits.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self.counts.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ZeroInflated:
        shape = torch.Size(batch_shape)
        return type(self)(self.counts.expand(shape), self.gate_logits.expand(shape), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        drawn = self.counts.sample(torch.Size(sample_shape))
        with torch.no_grad():
            kept = torch.rand(drawn.shape, dtype=self.gate_logits.dtype, device=drawn.device)
            return torch.where(kept < torch.sigmoid(-self.gate_logits), drawn, 0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        drawn = F.logsigmoid(-self.gate_logits) + self.counts.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(F.logsigmoid(self.gate_logits), drawn), drawn)

    @property
    def mean(self) -> torch.Tensor:
        return torch.sigmoid(-self.gate_logits) * self.counts.mean

    @property
    def variance(self) -> torch.Tensor:
        inner = self.counts.mean
        return torch.sigmoid(-self.gate_logits) * (self.counts.variance + inner**2) - self.mean**2

    @property
    def mode(self) -> torch.Tensor:
        """The mode of p, unless zero with all its excess weighs more."""
        inner = self.counts.mode
        zero = torch.zeros_like(inner)
        return torch.where(self.log_prob(inner) > self.log_prob(zero), inner, zero)
