"""Likelihoods: how x is spread around what the decoder says; the classes, wherever they are written."""

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.continuous import (
    Beta,
    ContinuousBernoulli,
    Gamma,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
    VonMises,
)
from pyro_vae.likelihoods.counts import (
    Binomial,
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.likelihoods.levels import Bernoulli, Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.ordered import Ordinal, RoundedLogistic
from pyro_vae.likelihoods.standardized import Standardized
from pyro_vae.likelihoods.tables import Columns

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gamma",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "RoundedLogistic",
    "Standardized",
    "StudentT",
    "VonMises",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
