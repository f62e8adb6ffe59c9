"""Objectives: what training minimises, each a Pyro ELBO that takes any pair, a hand-written one too.

Losses are summed over the batch, in nats. The factors that a subsampled plate and `poutine.scale` put on all sites
multiply each datum's bound from outside: loss = −Σ_n scale · bound_n.
"""

from pyro_vae.objectives.base import Objective
from pyro_vae.objectives.bounds import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    DReG,
    Renyi,
    ReweightedWakeSleep,
    StickingTheLanding,
)
from pyro_vae.objectives.divergences import WAE, BetaTC, Capacity, FreeBits, InfoVAE
from pyro_vae.objectives.elbo import ELBO, Annealed, Beta, EnumeratedELBO, MeanFieldELBO
from pyro_vae.objectives.labels import Classified, LeaveOneOut

__all__ = [
    "CIWAE", "ELBO", "IWAE", "MIWAE", "PIWAE", "VIMCO", "WAE", "Annealed", "Beta", "BetaTC", "Capacity", "Classified",
    "DReG", "EnumeratedELBO", "FreeBits", "InfoVAE", "LeaveOneOut", "MeanFieldELBO", "Objective", "Renyi",
    "ReweightedWakeSleep", "StickingTheLanding",
]  # fmt: skip
