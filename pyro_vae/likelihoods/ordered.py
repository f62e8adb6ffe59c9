"""Likelihoods of what has an order: levels such as grades, and counts as rounded real numbers."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F

from pyro_vae.distributions.rounded import RoundedLogistic as _RoundedLogistic
from pyro_vae.distributions.rounded import level_log_probs
from pyro_vae.errors import InputError, one_of, positive, positive_int
from pyro_vae.likelihoods.base import Likelihood, Spread, SpreadArgument


class Ordinal(Likelihood):
    """P(x_d ≤ r | z) = σ(θ_r − h_d) with a location h from the decoder and thresholds θ_0 < θ_1 < ..., for ordered levels.

    These are the cumulative logits of McCullagh 1980 (Nazabal et al. 2020, section 3). The encoder reads thermometer
    codes: for each r ≥ 1 whether x ≥ r, stacked along the first event dimension.

    Args:
        levels: number of values L that an entry can take, 0, ..., L − 1.
        thresholds: "shared" learns θ for each entry of x, one for all data; "per datum" has the decoder move them for
            each datum, as HI-VAE does.
    """

    def __init__(self, levels: int = 5, thresholds: Literal["shared", "per datum"] = "shared"):
        super().__init__()
        if positive_int("levels", levels) < 2:
            raise InputError(f"levels={levels!r} must be at least 2.")
        self.levels = levels
        self.thresholds = one_of("thresholds", thresholds, ["shared", "per datum"])

    def setup(self) -> None:
        levels, zero = self.levels, self.zero
        even = torch.logit(torch.arange(1, levels, dtype=zero.dtype, device=zero.device) / levels)
        widths = even.diff()
        # softplus of these are the distances at which all levels have one probability
        start = torch.cat([even[:1], widths + torch.log(-torch.expm1(-widths))])
        start = start.reshape(-1, *(1,) * self.event_rank).expand(-1, *self.event_shape).contiguous()
        if self.thresholds == "shared":
            self.raw_thresholds = nn.Parameter(start)
        else:
            self.register_buffer("raw_thresholds", start, persistent=False)

    @property
    def params_per_value(self) -> int:
        return 1 if self.thresholds == "shared" else self.levels

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def input_shape(self) -> torch.Size:
        return torch.Size([(self.levels - 1) * self.event_shape[0], *self.event_shape[1:]])

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, self.levels, device=x.device)
        codes = (x.unsqueeze(-1) >= steps).to(self.zero.dtype)  # (..., C, *rest, L − 1)
        return codes.movedim(-1, -self.event_rank - 1).flatten(-self.event_rank - 1, -self.event_rank)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        shares = torch.sigmoid(free.unflatten(-self.event_rank, (self.levels - 1, -1)))
        falling = shares.cumprod(-self.event_rank - 1)
        return falling.flatten(-self.event_rank - 1, -self.event_rank)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        rank = self.event_rank
        table = params.unflatten(-rank, (self.params_per_value, -1)).movedim(-rank - 1, -1)  # (..., *event, numbers)
        raw = self.raw_thresholds.movedim(0, -1)
        if self.thresholds == "per datum":
            raw = raw + table[..., 1:]
        apart = F.softplus(raw[..., 1:]) + 1e-4
        theta = torch.cat([raw[..., :1], apart], dim=-1).cumsum(-1)
        logits = level_log_probs(table[..., 0], theta.expand(*table.shape[:-1], -1))
        return dist.Categorical(logits=logits).to_event(rank)


class RoundedLogistic(SpreadArgument, Likelihood):
    """P(x_d = k) = σ((k + ½ − μ_d) / s_d) − σ((k − ½ − μ_d) / s_d) for counts, μ = loc + unit · params, s = unit · scale.

    A logistic variable rounded to whole numbers, 0 taking all below. Its variance is free, unlike Poisson's.

    Args:
        loc, unit: such as the mean and the standard deviation of the training data; networks see (x − loc) / unit.
        scale: of the logistic variable, in those units: a number, or learned as Normal's is.
        min_scale: floor of a learned scale.
    """

    spread: ClassVar[str] = "scale"

    def __init__(self, loc: float = 0.0, unit: float = 1.0, scale: Spread = "shared", min_scale: float = 1e-2):
        super().__init__()
        if isinstance(loc, bool) or not isinstance(loc, (int, float)) or not math.isfinite(loc):
            raise InputError(f"loc={loc!r} must be a finite number.")
        self.loc, self.unit = float(loc), positive("unit", unit)
        self.keep_spread(scale, min_scale)

    support = constraints.nonnegative_integer

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(self.zero.dtype) - self.loc) / self.unit

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        """At the location that the mean would have if nothing lay below 0: E[x] ≈ s softplus(μ / s)."""
        spread = self.unit * self.starting_spread()
        ratio = (mean.to(self.zero) / spread).clamp(min=1e-4)
        return self.filled((spread * (ratio + torch.log(-torch.expm1(-ratio))) - self.loc) / self.unit)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        location, scale = self.with_spread(params)
        return _RoundedLogistic(self.loc + self.unit * location, self.unit * scale).to_event(self.event_rank)
