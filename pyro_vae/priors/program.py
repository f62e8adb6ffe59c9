"""A prior written as a Pyro program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution

from pyro_vae.distributions.programs import Generative
from pyro_vae.errors import InputError
from pyro_vae.priors.base import Prior


class Program(Prior):
    """p(z) given by a Pyro program that samples the latent, so that a structured or causal prior is written as Pyro code.

    The values of the program's sites, in the order in which it samples them, make up z; their sizes sum up to
    `latent_dim`. The program is written for one latent, without plates, and run for many: its arithmetic should leave
    leading dimensions alone. Given y it is called with y. Parameters are those of a module.

        def chain():
            cause = pyro.sample("cause", dist.Normal(0.0, 1.0))
            pyro.sample("effect", dist.Normal(2 * cause, 0.5))

    Args:
        program: function or module; its sites are continuous, on the whole line.
    """

    def __init__(self, program: Callable[..., Any]):
        super().__init__()
        if not callable(program):
            raise InputError(f"program={program!r} must be a function that calls pyro.sample.")
        self.program = program

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        given = () if self.context(condition) is None else (condition,)
        batch = () if condition is None else condition.shape[: condition.dim() - len(self.condition_shape or ())]
        return Generative(self.program, given, self.zero.expand(*batch, *self.latent_shape))
