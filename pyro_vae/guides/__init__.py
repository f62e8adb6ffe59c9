"""Guides: the families from which q(z | x) is taken.

A guide family is a module whose `forward(params)` returns q(z | params), a distribution with the batch shape
of `params` and event shape `latent_shape`; `params`, of shape `params_shape`, is what the encoder returns.
"""

from pyro_vae.guides.base import MIN_SCALE, Guide, normal
from pyro_vae.guides.constrained import LogisticNormal, RelaxedCategorical, Spherical
from pyro_vae.guides.flows import Autoregression, Householder, InverseAutoregressive, Planar, Spline
from pyro_vae.guides.gaussian import FullCovariance, LowRank, MeanField, Mixture
from pyro_vae.guides.refining import Hamiltonian, PerDatum, Refining, SemiAmortized

__all__ = [
    "MIN_SCALE", "Autoregression", "FullCovariance", "Guide", "Hamiltonian", "Householder", "InverseAutoregressive",
    "LogisticNormal", "LowRank", "MeanField", "Mixture", "PerDatum", "Planar", "Refining", "RelaxedCategorical",
    "SemiAmortized", "Spherical", "Spline", "normal",
]  # fmt: skip
