"""Priors: what z looks like before x is seen.

A prior is a module whose `forward()` returns p(z), a distribution with batch shape () and event shape
`latent_shape`; `VAE` expands it over the data. Given y of shape (N, *condition_shape) it returns p(z | y), batch
shape (N,).
"""

from pyro_vae.priors.base import Centred, Prior
from pyro_vae.priors.constrained import Categorical, LogisticNormal, Spherical, groups_of, simplex
from pyro_vae.priors.elementary import Laplace, Normal, StandardNormal, StudentT
from pyro_vae.priors.learned import Autoregressive, Flow, Mixture, Vamp
from pyro_vae.priors.program import Program

__all__ = [
    "Autoregressive", "Categorical", "Centred", "Flow", "Laplace", "LogisticNormal", "Mixture", "Normal", "Prior",
    "Program", "Spherical", "StandardNormal", "StudentT", "Vamp", "groups_of", "simplex",
]  # fmt: skip
