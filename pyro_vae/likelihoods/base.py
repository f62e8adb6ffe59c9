"""What every likelihood shares: the base class, a spread beside the location, and where a mean says to start.

A likelihood is a module whose `forward(params)` returns p(x | params), a distribution with the batch shape
of `params` and event shape `event_shape`. Raw network outputs are `params`, of shape `params_shape`: the
numbers that one pixel needs are stacked along the first event dimension, as convolutions like them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F

from pyro_vae.component import Component
from pyro_vae.errors import InputError, one_of, positive

# Keeps a positive mean off zero, where its logarithm and its gradient end; in data units. log(1e-15) is −35 nats.
MIN_MEAN = 1e-15
# How sure an output bias may be: a mean at the end of the support would need an infinite one.
START_MARGIN = 1e-4

Spread = float | Literal["shared", "per value", "per datum"]


class Likelihood(Component):
    """p(x | params) for x of shape `event_shape` (set by `build`)."""

    sizes: ClassVar[tuple[str, ...]] = ("event_shape",)
    event_shape: torch.Size
    params_per_value: int = 1
    missing_allowed: bool = False  # whether NaN in x stands for a missing value

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

    def start(self, mean: torch.Tensor) -> torch.Tensor | None:
        """The params at which this likelihood's mean is `mean`: where a decoder's output biases may start.

        Args:
            mean: the data's mean, shape `event_shape`; at the end of the support it is moved in a little.

        Returns:
            shape `params_shape`; None where a mean does not say.
        """
        return None

    def filled(self, *first: torch.Tensor) -> torch.Tensor:
        """Params that begin with `first`, each of shape `event_shape`, and are 0 from there on."""
        rest = [torch.zeros_like(first[0])] * (self.params_per_value - len(first))
        return torch.cat([*first, *rest])

    def inside(self) -> float:
        """A value that one entry of x may take."""
        candidates = torch.tensor([0.0, 0.5, 1.0])
        return float(candidates[self.support.check(candidates).long().argmax()])

    def check(self, x: torch.Tensor) -> None:
        """Refuses data that this likelihood gives no density, naming the first such entry.

        Args:
            x: shape (N, *event_shape).

        Raises:
            InputError: on another shape, or values that are not finite or outside the support.
        """
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but event_shape={tuple(self.event_shape)} "
                f"wants (N, {', '.join(map(str, self.event_shape))})."
            )
        there = self.support.check(x) & x.isfinite()
        outside = (~(there | x.isnan() if self.missing_allowed else there)).nonzero()
        if len(outside):
            self.refuse(x, tuple(outside[0].tolist()))

    def refuse(self, x: torch.Tensor, index: tuple[int, ...]) -> None:
        """Raises for the entry of x at `index`, which lies outside the support."""
        if x[index].isnan():
            hint = " likelihoods.Columns leaves missing values out of log p(x)."
        else:
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


class SpreadArgument:
    """Mixed into likelihoods that have a positive number beside their location: a scale, a concentration, a dispersion.

    It is fixed (a number), learned as one number for all of x ("shared"), learned for each entry of x ("per value"),
    or said by the decoder for each entry of each x ("per datum"); learned ones stay above a floor. `spread` names the
    constructor's argument, and `min_<spread>` the floor's.
    """

    spread: ClassVar[str] = "scale"
    others: ClassVar[int] = 1  # numbers per entry that the decoder says in any case

    def keep_spread(self, value: Spread, minimum: float) -> None:
        """Checks and stores the two arguments."""
        words = ["shared", "per value", "per datum"]
        known = one_of(self.spread, value, words) if isinstance(value, str) else positive(self.spread, value)
        setattr(self, self.spread, known)
        setattr(self, f"min_{self.spread}", positive(f"min_{self.spread}", minimum))

    def setup(self) -> None:
        how = getattr(self, self.spread)
        if how in ("shared", "per value"):
            raw = self.zero.expand(self.event_shape if how == "per value" else ()).clone()
            self.register_parameter(f"raw_{self.spread}", nn.Parameter(raw))

    @property
    def params_per_value(self) -> int:
        return self.others + (getattr(self, self.spread) == "per datum")

    def with_spread(self, params: torch.Tensor) -> list[torch.Tensor]:
        """`params` (..., *params_shape) as tensors (..., *event_shape), the last of which is the spread."""
        parts = list(self.split(params))
        how = getattr(self, self.spread)
        if not isinstance(how, str):
            return [*parts, torch.full_like(parts[0], how)]
        raw = parts.pop() if how == "per datum" else getattr(self, f"raw_{self.spread}")
        return [*parts, (F.softplus(raw) + getattr(self, f"min_{self.spread}")).expand_as(parts[0])]

    def starting_spread(self) -> torch.Tensor:
        """The spread where all params are 0, shape `event_shape`."""
        return self.with_spread(self.zero.new_zeros(self.params_shape))[-1].detach()


def positive_mean(raw: torch.Tensor) -> torch.Tensor:
    """A real number made a positive mean that grows no faster than the number."""
    return F.softplus(raw) + MIN_MEAN


def raw_mean(mean: torch.Tensor) -> torch.Tensor:
    """What `positive_mean` makes into `mean`, the mean kept START_MARGIN off 0."""
    mean = mean.clamp(min=START_MARGIN)
    return mean + torch.log(-torch.expm1(-mean))


def margin_logit(mean: torch.Tensor) -> torch.Tensor:
    """log (mean / (1 − mean)), the mean kept START_MARGIN off 0 and 1."""
    return torch.logit(mean, eps=START_MARGIN)


def where_mean_is(mean: torch.Tensor, mean_of: Callable[[torch.Tensor], torch.Tensor], reach: float) -> torch.Tensor:
    """The point of [−reach, reach] at which an increasing `mean_of` is `mean`, by halving the interval in float64."""
    low = torch.full_like(mean, -reach, dtype=torch.float64)
    high = -low
    for _ in range(60):
        middle = (low + high) / 2
        beyond = mean_of(middle) > mean
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return low.to(mean.dtype)
