"""Likelihoods in the units of the data: an affine of x, or of log x, before another likelihood."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from pyro.distributions import TorchDistribution, constraints

from pyro_vae.distributions.affine import TRANSFORMS, Affine, transformed
from pyro_vae.errors import InputError, one_of, positive
from pyro_vae.likelihoods.base import MIN_MEAN, Likelihood
from pyro_vae.likelihoods.continuous import Normal


class Standardized(Likelihood):
    """p(x | z) = Π_d p_base(u_d | z) |dt/dx_d| / scale with u = (t(x) − loc) / scale.

    Networks see and say numbers of order one, while log p(x) is in the units of x: the Jacobian is part of it.

    Args:
        base: likelihood of u, over real numbers, or over positive ones where loc is 0; Normal() by default.
        loc, scale: of t(x), such as its mean and standard deviation in the training data.
        transform: t(x): "identity"; for positive data "log", or "softplus" for log (exp(x / unit) − 1), which is a logarithm
            near 0 and linear far from it, so that means stay in proportion to the data.
        unit: of "softplus", such as the data's median.
    """

    def __init__(
        self,
        base: Likelihood | None = None,
        loc: float = 0.0,
        scale: float = 1.0,
        transform: Literal["identity", "log", "softplus"] = "identity",
        unit: float = 1.0,
    ):
        super().__init__()
        self.base = Normal() if base is None else base
        if not isinstance(self.base, Likelihood) or self.base.built:
            raise InputError(f"base={base!r} must be a likelihood that is in no model yet.")
        if isinstance(loc, bool) or not isinstance(loc, (int, float)) or not math.isfinite(loc):
            raise InputError(f"loc={loc!r} must be a finite number.")
        self.loc, self.scale, self.unit = float(loc), positive("scale", scale), positive("unit", unit)
        self.transform = one_of("transform", transform, TRANSFORMS)
        if self.unit != 1 and transform != "softplus":
            raise InputError(f"unit={unit!r} is for transform='softplus' alone.")
        known = self.base.support if type(self.base).__name__ != "Columns" else None
        if known is not constraints.real and (
            known is not constraints.positive or self.transform != "identity" or self.loc
        ):
            raise InputError(
                f"base={self.base!r} must be a likelihood of real numbers, or of positive ones with loc=0 and no transform."
            )

    def setup(self) -> None:
        # A copy, so that the argument stays a recipe from which further models can be built.
        self.inner = copy.deepcopy(self.base).build(event_shape=self.event_shape)

    @property
    def params_per_value(self) -> int:
        return self.base.params_per_value

    @property
    def support(self) -> constraints.Constraint:
        return self.base.support if self.transform == "identity" else constraints.positive

    @property
    def input_shape(self) -> torch.Size:
        return self.inner.input_shape

    def inside(self) -> float:
        """Where u is 1 if that is positive, else 0: a value of x that has a density."""
        t = self.loc + self.scale * (self.base.support is constraints.positive)
        if self.transform == "softplus":
            return self.unit * (max(t, 0.0) + math.log1p(math.exp(-abs(t))))
        return math.exp(t) if self.transform == "log" else t

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.as_input((transformed(x / self.unit, self.transform) - self.loc) / self.scale)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return self.inner.pseudo_input(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor | None:
        """As the base's; under "log", where the base is Normal, by the mean of a log-normal variable, else by the median."""
        mean = mean.to(self.zero)
        if self.transform != "log":
            raw = (
                transformed((mean / self.unit).clamp(min=MIN_MEAN), "softplus")
                if self.transform == "softplus"
                else mean
            )
            return self.inner.start((raw - self.loc) / self.scale)
        if not isinstance(self.inner, Normal):
            return None
        spread = self.scale * self.inner.starting_spread() ** 2 / 2
        return self.inner.start((mean.clamp(min=MIN_MEAN).log() - self.loc) / self.scale - spread)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        inner = Affine(self.inner(params), self.loc, self.scale, self.transform)
        return Affine(inner, 0.0, self.unit) if self.transform == "softplus" else inner
