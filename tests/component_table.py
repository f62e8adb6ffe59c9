"""All components, found by themselves, with the sizes that the tests build them to."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_vae import VAE, guides, likelihoods, networks, objectives, priors
from pyro_vae.component import Component
from pyro_vae.distributions.spaces import OneHotCodes, Simplex, Sphere


def leaves(base: type[Component]) -> list[type[Component]]:
    """Every component below `base` in this package, found and not listed."""
    found = []
    for cls in base.__subclasses__():
        found += leaves(cls) if cls.__subclasses__() else []
        if cls.__module__.startswith("pyro_vae.") and not inspect.isabstract(cls):
            found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__name__)


PRIORS, LIKELIHOODS, GUIDES = leaves(priors.Prior), leaves(likelihoods.Likelihood), leaves(guides.Guide)
# Those that want a program of the pair's own are walked with that pair.
OBJECTIVES = [
    cls
    for cls in leaves(objectives.Objective)
    if not cls.__name__.startswith("_") and "program" not in inspect.signature(cls).parameters
]
NETWORKS = [cls for cls in leaves(networks.Network) if cls is not networks.Wrapped]


def chain() -> None:
    """A structured prior of two sites, one of which depends on the other."""
    cause = pyro.sample("cause", dist.Normal(0.0, 1.0))
    pyro.sample("effect", dist.Normal(0.5 * cause.unsqueeze(-1), torch.ones(1)).to_event(1))


# What the tests pass where a default is too large to be quick; a new component needs no entry.
SMALL: dict[type, dict[str, Any]] = {
    priors.Mixture: {"components": 3},
    priors.Vamp: {"pseudo_inputs": 4},
    priors.Flow: {"hidden": [8]},
    priors.Autoregressive: {"components": 2, "hidden": [8]},
    priors.Categorical: {"categories": 2},
    priors.Program: {"program": chain},
    guides.InverseAutoregressive: {"hidden": [8], "context": 3},
    guides.Spline: {"hidden": [8], "context": 3},
    guides.RelaxedCategorical: {"categories": 2},
    guides.PerDatum: {"steps": 3},
    guides.SemiAmortized: {"steps": 2},
    likelihoods.Categorical: {"categories": 3},
    likelihoods.Binomial: {"total_count": 4},
    likelihoods.DiscretizedLogistic: {"levels": 8},
    likelihoods.DiscretizedLogisticMixture: {"components": 2, "levels": 8},
    networks.MLP: {"hidden": [7]},
    networks.ConvEncoder: {"channels": [3, 4]},
    networks.ConvDecoder: {"channels": [4, 3]},
    networks.GatedMLP: {"hidden": [7]},
    networks.GatedConvEncoder: {"channels": [3, 4]},
    networks.GatedConvDecoder: {"channels": [4, 3]},
    networks.ResNetEncoder: {"channels": [3, 4], "blocks": 1},
    networks.ResNetDecoder: {"channels": [4, 3], "blocks": 1},
    networks.PixelCNN: {"planes": 3, "depth": 2, "kernel": 3, "decoder_channels": [3]},
    networks.Features: {"y_shape": [4]},
    networks.DeepSets: {"hidden": [6], "readout": [5]},
}
# Further ways of a component that are worth their own row.
VARIANTS: dict[type, list[dict[str, Any]]] = {
    priors.Flow: [{"kind": kind, "hidden": [8]} for kind in ("coupling", "autoregressive", "spline")],
    guides.Mixture: [{"stratified": True}, {"stratified": False}],
    guides.RelaxedCategorical: [{"categories": 2}, {"categories": 2, "hard": True}],
    likelihoods.Normal: [{"scale": 0.5}, {"scale": "shared"}, {"scale": "per value"}, {"scale": "per datum"}],
    likelihoods.NegativeBinomial: [{"inverse_dispersion": 2.0}, {"inverse_dispersion": "per value"}],
    likelihoods.Bernoulli: [{}, {"relaxed": True}],
    likelihoods.Ordinal: [{"levels": 4}, {"levels": 4, "thresholds": "per datum"}],
    likelihoods.Standardized: [
        {"loc": 2.0, "scale": 3.0},
        {"base": likelihoods.Normal("per datum"), "loc": 0.5, "scale": 0.7, "transform": "log"},
        {"base": likelihoods.Gamma(), "scale": 3.0},
    ],
    likelihoods.RoundedLogistic: [{"loc": 2.0, "unit": 1.5}, {"scale": "per datum"}],
    networks.MLP: [{"hidden": [7]}]
    + [{"hidden": [7, 7], "residual": True, "norm": norm, "dropout": 0.2} for norm in ("batch", "layer")],
    networks.ConvEncoder: [{"channels": [3, 4]}, {"channels": [3, 4], "norm": "batch"}],
    networks.ConvDecoder: [{"channels": [4, 3]}, {"channels": [4, 3], "norm": "batch"}],
    networks.Features: [{"y_shape": [4]}, {"y_shape": [1, 8, 8], "num_features": 4}],
    networks.ResNetEncoder: [{"channels": [3, 4], "blocks": 2, "norm": norm} for norm in ("layer", "batch")],
    networks.ResNetDecoder: [{"channels": [4, 3], "blocks": 2, "norm": norm} for norm in ("layer", "batch")],
}


def small(cls: type[Component]) -> Component:
    """An instance that is quick to run."""
    return cls(**SMALL.get(cls, {}))


def variants(classes: list[type[Component]]) -> list[Component]:
    """Instances of all classes, with the ways that are worth a row of their own."""
    return [cls(**arguments) for cls in classes for arguments in VARIANTS.get(cls, [SMALL.get(cls, {})])]


def fresh(component: Component) -> Component:
    """An unbuilt twin."""
    return copy.deepcopy(component)


def vae(event_shape=(4,), latent_dim=2, **components: Any) -> VAE:
    """A small VAE."""
    parts = {"decoder": networks.MLP([5]), **components}
    if getattr(components.get("guide"), "amortized", True):
        parts = {"encoder": networks.MLP([5]), **parts}
    return VAE(event_shape=event_shape, latent_dim=latent_dim, **parts)


def prior_for(guide: guides.Guide) -> priors.Prior:
    """One that lives where the guide does."""
    match guide.space:
        case OneHotCodes(categories=categories):
            return priors.Categorical(categories)
        case Simplex():
            return priors.LogisticNormal()
        case Sphere():
            return priors.Spherical()
    return priors.StandardNormal()


def guide_for(prior: priors.Prior) -> guides.Guide:
    """One that lives where the prior does."""
    match prior.space:
        case OneHotCodes(categories=categories):
            return guides.RelaxedCategorical(categories)
        case Simplex():
            return guides.LogisticNormal()
        case Sphere():
            return guides.Spherical()
    return guides.MeanField()


def data_for(likelihood: likelihoods.Likelihood, size: int, event_shape: tuple[int, ...]) -> torch.Tensor:
    """Data inside a likelihood's support, drawn from a built copy of it."""
    built = fresh(likelihood).build(event_shape=torch.Size(event_shape))
    with torch.no_grad():
        return built(torch.randn(size, *built.params_shape)).sample()
