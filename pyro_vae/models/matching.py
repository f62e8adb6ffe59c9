"""Which priors and guide families fit together, and what a pair tells each component of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyro_vae import guides, priors
from pyro_vae.component import Component
from pyro_vae.distributions.spaces import OneHotCodes, Simplex, Space, Sphere, as_space
from pyro_vae.errors import InputError
from pyro_vae.guides import Guide
from pyro_vae.priors import Prior


def wanted_by(component: Component, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those sizes among `offered` that a component's `build` takes.

    Raises:
        InputError: if the component takes one that is not offered.
    """
    if missing := [name for name in component.sizes if name not in offered]:
        raise InputError(f"{component!r} needs {', '.join(missing)}, which this model does not give.")
    return {name: offered[name] for name in component.sizes}


def built_to(component: Any, place: str = "", **sizes: Any) -> Any:
    """The component built to the sizes; one that is built already must have been built to the same shapes.

    Raises:
        InputError: if it was not.
    """
    if not component.built:
        return component.build(**sizes)
    for name, size in sizes.items():
        if isinstance(size, torch.Size) and getattr(component, name) != size:
            raise InputError(
                f"The {place or type(component).__name__} has {name}={tuple(getattr(component, name))}, but the new parts "
                f"want {tuple(size)}; replace it too{f': {place}=...' if place else ''}."
            )
        if not isinstance(size, torch.Size):
            setattr(component, name, size)
    return component


def refuse_strangers(prior: Prior, guide: Guide) -> None:
    """Refuses a prior and a guide that live in different spaces, or a prior that asks of the guide what it can't give.

    Raises:
        InputError: naming what would fit.
    """
    if prior.needs_posterior:
        if not guide.evaluable:
            raise InputError(
                f"prior={prior!r} needs the guide's density at any z, which guide={guide!r} has at its own draws alone; use "
                "guides.InverseAutoregressive() or guides.MeanField(), or priors.Mixture()."
            )
        if not guide.amortized:
            raise InputError(
                f"prior={prior!r} puts pseudo-inputs through the encoder, but guide={guide!r} has none; use "
                "guides.SemiAmortized() or guides.MeanField(), or priors.Mixture()."
            )
        return
    ours, theirs = as_space(prior.space), as_space(guide.space)
    if ours != theirs:
        raise InputError(
            f"prior={prior!r} lives on {ours}, but guide={guide!r} on {theirs}; use guides.{guide_on(ours)!r}, or "
            f"priors.{prior_on(theirs)!r}."
        )


def guide_on(space: Space) -> Guide:
    """A guide family on a space; MeanField() where none is known."""
    if isinstance(space, OneHotCodes):
        return guides.RelaxedCategorical(categories=space.categories)
    known = {Simplex(): guides.LogisticNormal, Sphere(): guides.Spherical}
    return known.get(space, guides.MeanField)()


def prior_on(space: Space) -> Prior:
    """A prior on a space; StandardNormal() where none is known."""
    if isinstance(space, OneHotCodes):
        return priors.Categorical(categories=space.categories)
    known = {Simplex(): priors.LogisticNormal, Sphere(): priors.Spherical}
    return known.get(space, priors.StandardNormal)()
