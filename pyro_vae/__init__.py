"""Variational autoencoders as Pyro programs: any model/guide pair, trained, scored, sampled and saved.

Names are imported at their first use, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import data, guides, likelihoods, networks, objectives, priors
    from pyro_vae.errors import InputError
    from pyro_vae.inference.annealing import Annealing
    from pyro_vae.inference.bidirectional import bidirectional
    from pyro_vae.inference.calibration import calibrate
    from pyro_vae.inference.diagnostics import pareto_khat
    from pyro_vae.inference.disentanglement import disentanglement
    from pyro_vae.inference.evaluation import evaluate
    from pyro_vae.inference.export import to_arviz
    from pyro_vae.inference.gaps import gaps
    from pyro_vae.inference.importance import log_weights
    from pyro_vae.inference.imputation import impute
    from pyro_vae.inference.latents import latent_use
    from pyro_vae.inference.likelihood import log_likelihood
    from pyro_vae.inference.predictive import posterior_predictive
    from pyro_vae.inference.sampling import encode, generate, reconstruct
    from pyro_vae.inference.terms import elbo_terms
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
    from pyro_vae.runs.saving import load, save
    from pyro_vae.training.ex_post import fit_prior
    from pyro_vae.training.fitting import fit
    from pyro_vae.training.nonfinite import TrainingDiverged

_HOMES = {
    "Annealing": "inference.annealing",
    "DeepMarkovModel": "models",
    "HierarchicalVAE": "models",
    "InputError": "errors",
    "Pair": "pair",
    "SemiSupervisedVAE": "models",
    "TrainingDiverged": "training.nonfinite",
    "VAE": "models",
    "VariationalRNN": "models",
    "VeryDeepVAE": "models",
    "bidirectional": "inference.bidirectional",
    "calibrate": "inference.calibration",
    "classify": "models",
    "disentanglement": "inference.disentanglement",
    "elbo_terms": "inference.terms",
    "encode": "inference.sampling",
    "evaluate": "inference.evaluation",
    "fit": "training.fitting",
    "fit_prior": "training.ex_post",
    "forecast": "models",
    "gaps": "inference.gaps",
    "generate": "inference.sampling",
    "impute": "inference.imputation",
    "latent_use": "inference.latents",
    "load": "runs.saving",
    "log_likelihood": "inference.likelihood",
    "log_weights": "inference.importance",
    "pareto_khat": "inference.diagnostics",
    "posterior_predictive": "inference.predictive",
    "reconstruct": "inference.sampling",
    "save": "runs.saving",
    "to_arviz": "inference.export",
}
_ROOMS = ("data", "guides", "likelihoods", "networks", "objectives", "priors")
__all__ = [*sorted(_HOMES), *_ROOMS]

# Modules of version 0.1 by their present names: the former names import the same modules.
_FORMER = {
    "adam": "engine.step.fused",
    "arithmetic": "engine.lower.logs",
    "capture": "engine.trace",
    "gradients": "engine.step.gradients",
    "layouts": "engine.lower.order",
    "lowering": "engine.lower",
    "machine": "engine.machine",
    "products": "engine.lower.products",
    "reach": "pair.reach",
    "recording": "engine.recording",
    "replay": "engine.replay",
    "whole_step": "engine.step.whole",
    "averaging": "training.averaging",
    "checks": "errors",
    "diagnostics": "inference.diagnostics",
    "divergence": "training.nonfinite",
    "evaluation": "inference",
    "ex_post": "training.ex_post",
    "examples": "data.resident",
    "files": "data.files",
    "grid": "cli.combinations",
    "importance": "inference.importance",
    "layers": "networks.layers",
    "pictures": "data.pictures",
    "plotting": "report.plotting",
    "progress": "training.progress",
    "readers": "data.readers",
    "refinement": "guides.refinement",
    "sampling": "inference.sampling",
    "saving": "runs",
    "settings": "training.settings",
    "streams": "data.streams",
    "temperature": "inference.temperature",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _FormerNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module that a former name stands for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, former = name.rpartition(".")
        known = package == __name__ and former in _FORMER
        return importlib.util.spec_from_loader(name, self) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{__name__}.{_FORMER[spec.name.rpartition('.')[2]]}")
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # which the import system has just replaced


sys.meta_path.insert(0, _FormerNames())  # before finders of editable installs, which may know an older tree
