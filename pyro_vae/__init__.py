"""Variational autoencoders as Pyro programs: any model/guide pair, trained, scored, sampled and saved.

Names are imported at their first use, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import data, guides, likelihoods, networks, objectives, priors
    from pyro_vae.checks import InputError
    from pyro_vae.diagnostics import pareto_khat
    from pyro_vae.divergence import TrainingDiverged
    from pyro_vae.evaluation import elbo_terms, log_likelihood
    from pyro_vae.ex_post import fit_prior
    from pyro_vae.importance import log_weights
    from pyro_vae.models import (
        VAE,
        DeepMarkovModel,
        HierarchicalVAE,
        SemiSupervisedVAE,
        VariationalRNN,
        VeryDeepVAE,
        classify,
        forecast,
    )
    from pyro_vae.pair import Pair
    from pyro_vae.sampling import encode, generate, reconstruct
    from pyro_vae.saving import load, save
    from pyro_vae.training import fit

_HOMES = {
    "DeepMarkovModel": "models",
    "HierarchicalVAE": "models",
    "InputError": "checks",
    "Pair": "pair",
    "SemiSupervisedVAE": "models",
    "TrainingDiverged": "divergence",
    "VAE": "models",
    "VariationalRNN": "models",
    "VeryDeepVAE": "models",
    "classify": "models",
    "elbo_terms": "evaluation",
    "encode": "sampling",
    "fit": "training",
    "fit_prior": "ex_post",
    "forecast": "models",
    "generate": "sampling",
    "load": "saving",
    "log_likelihood": "evaluation",
    "log_weights": "importance",
    "pareto_khat": "diagnostics",
    "reconstruct": "sampling",
    "save": "saving",
}
_ROOMS = ("data", "guides", "likelihoods", "networks", "objectives", "priors")
__all__ = [*sorted(_HOMES), *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
