"""All components, found by themselves, with the sizes that the tests build them to."""

from __future__ import annotations

from typing import Any

import torch

from pyro_vae import VAE, guides, likelihoods, networks, priors
from pyro_vae.component import Component


def leaves(base: type[Component]) -> list[type[Component]]:
    """Every component below `base` in this package, found and not listed."""
    found = []
    for cls in base.__subclasses__():
        found += leaves(cls) if cls.__subclasses__() else []
        if cls.__module__.startswith("pyro_vae."):
            found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__name__)


PRIORS, LIKELIHOODS, GUIDES = leaves(priors.Prior), leaves(likelihoods.Likelihood), leaves(guides.Guide)
NETWORKS = [cls for cls in leaves(networks.Network) if cls is not networks.Wrapped]

# What the tests pass where a default is too large to be quick; a new component needs no entry.
SMALL: dict[type, dict[str, Any]] = {
    priors.Mixture: {"components": 3},
    priors.Vamp: {"pseudo_inputs": 4},
    likelihoods.Categorical: {"categories": 3},
    likelihoods.Binomial: {"total_count": 4},
    networks.MLP: {"hidden": [7]},
    networks.ConvEncoder: {"channels": [3, 4]},
    networks.ConvDecoder: {"channels": [4, 3]},
}
# Further ways of a component that are worth their own row.
VARIANTS: dict[type, list[dict[str, Any]]] = {
    likelihoods.Normal: [{"scale": 0.5}, {"scale": "shared"}, {"scale": "per datum"}],
    likelihoods.Bernoulli: [{}, {"relaxed": True}],
}


def small(cls: type[Component]) -> Component:
    """An instance that is quick to run."""
    return cls(**SMALL.get(cls, {}))


def variants(classes: list[type[Component]]) -> list[Component]:
    """Instances of all classes, with the ways that are worth a row of their own."""
    return [cls(**arguments) for cls in classes for arguments in VARIANTS.get(cls, [SMALL.get(cls, {})])]


def fresh(component: Component) -> Component:
    """An unbuilt twin."""
    return type(component)(**component.arguments())


def vae(event_shape=(4,), latent_dim=2, **components: Any) -> VAE:
    """A small VAE."""
    parts = {"encoder": networks.MLP([5]), "decoder": networks.MLP([5]), **components}
    return VAE(event_shape=event_shape, latent_dim=latent_dim, **parts)


def data_for(likelihood: likelihoods.Likelihood, size: int, event_shape: tuple[int, ...]) -> torch.Tensor:
    """Data inside a likelihood's support, drawn from a built copy of it."""
    built = fresh(likelihood).build(event_shape=torch.Size(event_shape))
    with torch.no_grad():
        return built(torch.randn(size, *built.params_shape)).sample()
