"""The pairs: models and guides built from the components."""

from pyro_vae.models.base import ComposedPair
from pyro_vae.models.forecasts import forecast
from pyro_vae.models.hierarchical import HierarchicalVAE
from pyro_vae.models.semisupervised import SemiSupervisedVAE, classify
from pyro_vae.models.sequential import DeepMarkovModel, VariationalRNN
from pyro_vae.models.vae import VAE
from pyro_vae.models.very_deep import VeryDeepVAE

__all__ = [
    "VAE",
    "ComposedPair",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "SemiSupervisedVAE",
    "VariationalRNN",
    "VeryDeepVAE",
    "classify",
    "forecast",
]
