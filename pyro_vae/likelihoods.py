"""Likelihoods: how x is spread around what the decoder says.

A likelihood is a module whose `forward(params)` returns p(x | params), a distribution with the batch shape
of `params` and event shape `event_shape`. Raw network outputs are `params`, of shape `params_shape`: the
numbers that one pixel needs are stacked along the first event dimension, as convolutions like them.
"""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F

from pyro_vae.checks import InputError, one_of, positive, positive_int
from pyro_vae.component import Component


class Likelihood(Component):
    """p(x | params) for x of shape `event_shape` (set by `build`)."""

    event_shape: torch.Size
    params_per_value: int = 1

    @property
    def event_rank(self) -> int:
        """How many dimensions one datum has."""
        return len(self.event_shape)

    @property
    def params_shape(self) -> torch.Size:
        """What the decoder must return per datum: (params_per_value · C, ...) for event_shape (C, ...)."""
        return torch.Size([self.params_per_value * self.event_shape[0], *self.event_shape[1:]])

    @property
    def support(self) -> constraints.Constraint:
        """Which values one entry of x may take."""
        raise NotImplementedError(f"{type(self).__name__} must define support.")

    @property
    def input_shape(self) -> torch.Size:
        """Shape of `as_input(x)` per datum, which is what the encoder reads."""
        return self.event_shape

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """x as the encoder should see it, shape (..., *input_shape)."""
        return x

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        """Real numbers of shape (..., *input_shape) squeezed to where `as_input(x)` lies."""
        return free

    def check(self, x: torch.Tensor) -> None:
        """Refuses data that this likelihood gives no density, naming the first such entry.

        Args:
            x: shape (N, *event_shape).

        Raises:
            InputError: on another shape, or values outside the support.
        """
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but event_shape={tuple(self.event_shape)} "
                f"wants (N, {', '.join(map(str, self.event_shape))})."
            )
        outside = (~self.support.check(x)).nonzero()
        if len(outside):
            self.refuse(x, tuple(outside[0].tolist()))

    def refuse(self, x: torch.Tensor, index: tuple[int, ...]) -> None:
        """Raises for the entry of x at `index`, which lies outside the support."""
        hint = " Counts of a data set are kept by pixels='integer'." if self.support.is_discrete else ""
        raise InputError(
            f"x[{', '.join(map(str, index))}] = {x[index].item():g} lies outside the support of "
            f"likelihood={self!r}, {self.support}.{hint}"
        )

    def split(self, params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`params` (..., *params_shape) as `params_per_value` tensors (..., *event_shape)."""
        return params.chunk(self.params_per_value, dim=-self.event_rank)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        """p(x | params), batch shape (...) for params of shape (..., *params_shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params).")


class Bernoulli(Likelihood):
    """p(x | z) = Π_d Bernoulli(x_d | sigmoid(params_d)) for 0/1 data (Kingma & Welling 2014, appendix C.1).

    Args:
        relaxed: admit greys between 0 and 1 as the VAE tutorial does. Σ x log p + (1 − x) log(1 − p) is no
            density of grey data, so scores are then labelled as no likelihoods.
    """

    def __init__(self, relaxed: bool = False):
        super().__init__()
        self.relaxed = relaxed

    @property
    def support(self) -> constraints.Constraint:
        return constraints.unit_interval if self.relaxed else constraints.boolean

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def refuse(self, x: torch.Tensor, index: tuple[int, ...]) -> None:
        value = x[index].item()
        if not 0 < value < 1:
            super().refuse(x, index)
        raise InputError(
            f"x[{', '.join(map(str, index))}] = {value:g} is grey, but likelihood=Bernoulli() takes 0/1 data: "
            'binarise it (binarize="dynamic", "static" or "threshold"), use likelihoods.ContinuousBernoulli(), or '
            "likelihoods.Bernoulli(relaxed=True) for the tutorial's practice, whose scores are no likelihoods."
        )

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        validate = False if self.relaxed else None
        return dist.Bernoulli(logits=params, validate_args=validate).to_event(self.event_rank)


class ContinuousBernoulli(Likelihood):
    """p(x | z) = Π_d C(λ_d) λ_d^x_d (1 − λ_d)^(1 − x_d) for x in [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.unit_interval

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return dist.ContinuousBernoulli(logits=params).to_event(self.event_rank)


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

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return dist.Binomial(self.total_count, logits=params).to_event(self.event_rank)


class Categorical(Likelihood):
    """p(x | z) = Π_d Categorical(x_d | softmax(params_d)) for entries in {0, ..., categories − 1}.

    The encoder reads one-hot codes, stacked along the first event dimension.

    Args:
        categories: number of values that an entry can take.
    """

    def __init__(self, categories: int = 256):
        super().__init__()
        self.categories = positive_int("categories", categories)

    @property
    def params_per_value(self) -> int:
        return self.categories

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.categories - 1)

    @property
    def input_shape(self) -> torch.Size:
        return self.params_shape

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        codes = F.one_hot(x.long(), self.categories).to(self.zero.dtype)  # (..., C, *rest, categories)
        return codes.movedim(-1, -self.event_rank - 1).flatten(-self.event_rank - 1, -self.event_rank)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        codes = free.unflatten(-self.event_rank, (self.categories, -1)).softmax(-self.event_rank - 1)
        return codes.flatten(-self.event_rank - 1, -self.event_rank)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        logits = params.unflatten(-self.event_rank, (self.categories, -1)).movedim(-self.event_rank - 1, -1)
        return dist.Categorical(logits=logits).to_event(self.event_rank)


class Normal(Likelihood):
    """p(x | z) = Π_d N(x_d | loc_d, scale²) for real data (Kingma & Welling 2014, appendix C.2).

    Args:
        scale: a positive number fixes the standard deviation; "shared" learns one for all of x;
            "per datum" has the decoder say one for each entry of each x.
        min_scale: floor of a learned scale, in data units; a likelihood without one can grow without bound.
    """

    def __init__(self, scale: float | Literal["shared", "per datum"] = "shared", min_scale: float = 1e-3):
        super().__init__()
        if isinstance(scale, str):
            self.scale = one_of("scale", scale, ["shared", "per datum"])
        else:
            self.scale = positive("scale", scale)
        self.min_scale = positive("min_scale", min_scale)

    def setup(self) -> None:
        if self.scale == "shared":
            self.raw_scale = nn.Parameter(self.zero.clone())

    @property
    def params_per_value(self) -> int:
        return 2 if self.scale == "per datum" else 1

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, *raw = self.split(params)
        if self.scale == "per datum":
            scale = F.softplus(raw[0]) + self.min_scale
        elif self.scale == "shared":
            scale = (F.softplus(self.raw_scale) + self.min_scale).expand_as(loc)
        else:
            scale = torch.full_like(loc, self.scale)
        return dist.Normal(loc, scale).to_event(self.event_rank)
