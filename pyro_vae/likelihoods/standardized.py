"""Likelihoods in the units of the data: an affine of x, or of log x, before another likelihood."""

from __future__ import annotations

import copy
import math

import torch
from pyro.distributions import TorchDistribution, constraints

from pyro_vae.distributions.affine import Affine
from pyro_vae.errors import InputError, one_of, positive
from pyro_vae.likelihoods.base import MIN_MEAN, Likelihood
from pyro_vae.likelihoods.continuous import Normal


class Standardized(Likelihood):
    """p(x | z) = Π_d p_base(u_d | z) |dt/dx_d| / scale with u = (t(x) − loc) / scale, t(x) = x or log x.

    Networks see and say numbers of order one, while log p(x) is in the units of x: the Jacobian is part of it.

    Args:
        base: likelihood of u, over real numbers, or over positive ones where loc is 0; Normal() by default.
        loc, scale: of t(x), such as its mean and standard deviation in the training data.
        log: whether t is the logarithm, for positive data.
    """

    def __init__(self, base: Likelihood | None = None, loc: float = 0.0, scale: float = 1.0, log: bool = False):
        super().__init__()
        self.base = Normal() if base is None else base
        if not isinstance(self.base, Likelihood) or self.base.built:
            raise InputError(f"base={base!r} must be a likelihood that is in no model yet.")
        if isinstance(loc, bool) or not isinstance(loc, (int, float)) or not math.isfinite(loc):
            raise InputError(f"loc={loc!r} must be a finite number.")
        self.loc, self.scale, self.log = float(loc), positive("scale", scale), one_of("log", log, [False, True])
        known = self.base.support if type(self.base).__name__ != "Columns" else None
        if known is not constraints.real and (known is not constraints.positive or self.log or self.loc):
            raise InputError(
                f"base={self.base!r} must be a likelihood of real numbers, or of positive ones with loc=0 and log=False."
            )

    def setup(self) -> None:
        # A copy, so that the argument stays a recipe from which further models can be built.
        self.inner = copy.deepcopy(self.base).build(event_shape=self.event_shape)

    @property
    def params_per_value(self) -> int:
        return self.base.params_per_value

    @property
    def support(self) -> constraints.Constraint:
        return constraints.positive if self.log else self.base.support

    @property
    def input_shape(self) -> torch.Size:
        return self.inner.input_shape

    def inside(self) -> float:
        """Where u is 1 if that is positive, else 0: a value of x that has a density."""
        t = self.loc + self.scale * (self.base.support is constraints.positive)
        return math.exp(t) if self.log else t

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.as_input(((x.log() if self.log else x) - self.loc) / self.scale)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return self.inner.pseudo_input(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor | None:
        """As the base's; under the logarithm, where the base is Normal, by the mean of a log-normal variable."""
        mean = mean.to(self.zero)
        if not self.log:
            return self.inner.start((mean - self.loc) / self.scale)
        if not isinstance(self.inner, Normal):
            return None
        spread = self.scale * self.inner.starting_spread() ** 2 / 2
        return self.inner.start((mean.clamp(min=MIN_MEAN).log() - self.loc) / self.scale - spread)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return Affine(self.inner(params), self.loc, self.scale, self.log)
