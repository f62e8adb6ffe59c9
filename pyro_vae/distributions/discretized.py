"""Discretized distributions over levels 0, ..., L − 1, such as the bytes of an image.

A discretized distribution gives level k the mass that a continuous one has in the level's bin. Levels are scaled to
s = 2 k / (L − 1) − 1 in [−1, 1]; the bins of the first and the last level reach to −∞ and ∞.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F


def scaled(level: torch.Tensor, levels: int) -> torch.Tensor:
    """Levels 0, ..., L − 1 as numbers from −1 to 1."""
    return level * (2 / (levels - 1)) - 1


def nearest_level(s: torch.Tensor, levels: int) -> torch.Tensor:
    """The level in whose bin a number lies."""
    return ((s + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1)


def level_log_prob(level: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor, levels: int) -> torch.Tensor:
    """log [σ(a) − σ(b)], a and b the bin's ends from `loc` in units of `scale`; broadcast, in nats.

    σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)), which has a finite logarithm however far the bin lies.
    """
    half = 1 / (levels - 1)
    level = level.to(loc.dtype)
    first, last = level <= 0, level >= levels - 1
    centre = scaled(level, levels) - loc
    below = torch.where(last, 0.0, F.logsigmoid((centre + half) / scale))
    above = torch.where(first, 0.0, F.logsigmoid((half - centre) / scale))
    inside = torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half / scale)))
    return below + above + inside


def level_moments(loc: torch.Tensor, scale: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x] = Σ_{k ≥ 1} P(x ≥ k) and E[x²] = Σ_{k ≥ 1} (2k − 1) P(x ≥ k), of the shape of `loc`."""
    first, second = torch.zeros_like(loc), torch.zeros_like(loc)
    for k in range(1, levels):
        beyond = torch.sigmoid((loc - (2 * k - 1) / (levels - 1) + 1) / scale)
        first, second = first + beyond, second + (2 * k - 1) * beyond
    return first, second


def draw_level(loc: torch.Tensor, scale: torch.Tensor, levels: int) -> torch.Tensor:
    """The level of one draw from each logistic distribution, by the inverse of its distribution function."""
    u = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).tiny)
    return nearest_level(loc + scale * torch.logit(u), levels)


class DiscretizedLogistic(TorchDistribution):
    """p(x = k) = σ((s_k + h − loc) / scale) − σ((s_k − h − loc) / scale), h = 1 / (L − 1) (Salimans et al. 2017, eq. 2).

    Args:
        loc: location in the scaled units, −1 for level 0 and 1 for level L − 1.
        scale: scale of the logistic in the same units; the standard deviation is π / √3 times that.
        levels: number of levels L, 256 for bytes.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, levels: int = 256, *, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return draw_level(self.loc.expand(shape), self.scale.expand(shape), self.levels)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return level_log_prob(value, self.loc, self.scale, self.levels)

    @property
    def mean(self) -> torch.Tensor:
        return level_moments(self.loc, self.scale, self.levels)[0]

    @property
    def variance(self) -> torch.Tensor:
        first, second = level_moments(self.loc, self.scale, self.levels)
        return second - first**2

    @property
    def mode(self) -> torch.Tensor:
        nearest = nearest_level(self.loc, self.levels)
        # The end levels hold a tail each, and may outweigh the level at the peak.
        ends = torch.zeros_like(nearest), torch.full_like(nearest, self.levels - 1)
        candidates = torch.stack([nearest, *ends])
        best = level_log_prob(candidates, self.loc, self.scale, self.levels).argmax(0, keepdim=True)
        return candidates.gather(0, best).squeeze(0)


class DiscretizedLogisticMixture(TorchDistribution):
    """p(x) = Σ_k π_k Π_c DiscretizedLogistic(x_c | μ_kc, scale_kc), a mixture for each pixel, whose channels hang together.

    μ_kc = loc_kc + Σ_{j < c} coefficient_kcj s_j, with s_j the scaled channel before it (Salimans et al. 2017, section 2.2).

    Args:
        logits: log-weights of the K components, shape (..., *pixels, K).
        loc: locations in scaled units, shape (..., *pixels, C, K).
        scale: scales in scaled units, of the shape of `loc`.
        coefficients: coefficients of (c, j) = (1, 0), (2, 0), (2, 1), ..., shape (..., *pixels, C (C − 1) / 2, K).
        event_shape: shape of x, (C, *pixels); or `pixels` alone where C = 1.
        levels: number of levels L, 256 for bytes.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "logits": constraints.real,
        "loc": constraints.real,
        "scale": constraints.positive,
        "coefficients": constraints.real,
    }

    def __init__(
        self,
        logits: torch.Tensor,
        loc: torch.Tensor,
        scale: torch.Tensor,
        coefficients: torch.Tensor,
        event_shape: torch.Size,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ):
        self.logits, self.loc, self.scale, self.coefficients = logits, loc, scale, coefficients
        self.levels, self.channels = levels, loc.shape[-2]
        self.channels_first = self.channels > 1
        self._pixel_rank = len(event_shape) - self.channels_first
        batch_shape = logits.shape[: logits.dim() - self._pixel_rank - 1]
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> DiscretizedLogisticMixture:
        shape, rank = torch.Size(batch_shape), len(self.batch_shape)
        parts = (self.logits, self.loc, self.scale, self.coefficients)
        wide = [part.expand(*shape, *part.shape[rank:]) for part in parts]
        return type(self)(*wide, self.event_shape, self.levels, validate_args=False)

    def _channels_last(self, value: torch.Tensor) -> torch.Tensor:
        return value.movedim(-len(self.event_shape), -1) if self.channels_first else value[..., None]

    def _channels_first(self, value: torch.Tensor) -> torch.Tensor:
        return value.movedim(-1, -len(self.event_shape)) if self.channels_first else value[..., 0]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = self._channels_last(value).to(self.loc.dtype)[..., None]  # (..., *pixels, C, 1)
        s = scaled(x, self.levels)
        loc = torch.stack(torch.broadcast_tensors(*[self._loc_given(c, s) for c in range(self.channels)]), dim=-2)
        per_component = level_log_prob(x, loc, self.scale, self.levels).sum(-2)
        per_pixel = (self.logits.log_softmax(-1) + per_component).logsumexp(-1)
        return sum_rightmost(per_pixel, self._pixel_rank)

    def _loc_given(self, channel: int, s: torch.Tensor) -> torch.Tensor:
        """μ of one channel given the scaled channels before it, s of shape (..., *pixels, C, 1 or K)."""
        start = channel * (channel - 1) // 2
        loc = self.loc[..., channel, :]
        for j in range(channel):
            loc = loc + self.coefficients[..., start + j, :] * s[..., j, :]
        return loc

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            wide = self.expand(shape + self.batch_shape)
            chosen = dist.Categorical(logits=wide.logits, validate_args=False).sample()
            return wide._follow(chosen, lambda loc, scale: draw_level(loc, scale, self.levels))

    @property
    def mode(self) -> torch.Tensor:
        """The heaviest component's mode, channel after channel; the mixture's own has no closed form."""

        def take(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return DiscretizedLogistic(loc, scale, self.levels, validate_args=False).mode

        return self._follow(self.logits.argmax(-1), take)

    def _follow(self, component: torch.Tensor, level: Any) -> torch.Tensor:
        """x by one component a pixel, (..., *pixels), each channel being `level(μ, scale)` given those before it."""
        pick = component[..., None]
        before = self.loc  # not looked at by the first channel
        channels: list[torch.Tensor] = []
        for c in range(self.channels):
            loc = self._loc_given(c, before).gather(-1, pick).squeeze(-1)
            channels.append(level(loc, self.scale[..., c, :].gather(-1, pick).squeeze(-1)))
            before = torch.stack([scaled(x, self.levels) for x in channels], dim=-1)[..., None]
        return self._channels_first(torch.stack(channels, dim=-1))

    def _moments(self) -> list[torch.Tensor]:
        if self.channels > 1:
            raise NotImplementedError("Channels that hang together have no moments in closed form.")
        weights = self.logits.softmax(-1)
        moments = level_moments(self.loc[..., 0, :], self.scale[..., 0, :], self.levels)
        return [(weights * moment).sum(-1) for moment in moments]

    @property
    def mean(self) -> torch.Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> torch.Tensor:
        first, second = self._moments()
        return second - first**2
