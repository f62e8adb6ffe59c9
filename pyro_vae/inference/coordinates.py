"""Latents of any shape and support as one unconstrained tensor, through Pyro's bijections."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Layout, Values
from pyro_vae.pair import Site, sample_sites


@dataclass(frozen=True)
class Place:
    """Where one latent lies in the unconstrained vector.

    Attributes:
        name: of the site.
        bijection: from R^d to the site's support.
        shape: of one datum's unconstrained values, without the data's dimension: inner plates, then the event.
        event_dim: rank of the site's event.
    """

    name: str
    bijection: Transform
    shape: torch.Size
    event_dim: int

    @property
    def size(self) -> int:
        """How many coordinates the latent has."""
        return self.shape.numel()


class Coordinates:
    """The continuous latents of a pair as u, shape (K, N, D), and back.

    Discrete latents have no coordinates: those that Pyro can enumerate are listed in `discrete`, others are refused.

    Args:
        model_trace: of the model on a few data.
        layout: of the pair.

    Attributes:
        places: of the continuous latents, in the model's order.
        discrete: names of the latents to be summed over.
        size: D.

    Raises:
        InputError: naming the site, if a latent is discrete and cannot be enumerated, or its support is not an image of R^d
            that is the same for all data.
    """

    def __init__(self, model_trace: poutine.Trace, layout: Layout):
        self.data_at = (
            layout.plate.dim - layout.particle_dim
        )  # where the data lie in values of shape (K, ..., N, *event)
        self.batch_rank = -layout.particle_dim
        self.places: list[Place] = []
        self.discrete: tuple[str, ...] = ()
        for name, site in sample_sites(model_trace, observed=False).items():
            if getattr(site["fn"].support, "is_discrete", False):
                _refuse_unless_enumerable(name, site["fn"])
                self.discrete += (name,)
            else:
                self.places.append(self._place(name, site, layout))
        self.size = sum(place.size for place in self.places)

    def _place(self, name: str, site: Site, layout: Layout) -> Place:
        bijection = _bijection(name, site["fn"].support)
        if site["mask"] is not None and not torch.equal(probe := torch.tensor([0.3]), _try(bijection, probe)):
            raise InputError(f"Latent {name!r} is masked and has a constrained support, which annealing can't handle.")
        value = bijection.inv(site["value"])
        event_dim = layout.event_dims[name]
        free_dim = event_dim - bijection.codomain.event_dim + bijection.domain.event_dim
        shape = list(_padded(value, free_dim, self.batch_rank - 1).shape)
        del shape[self.data_at - 1]
        return Place(name, bijection, torch.Size(shape), event_dim)

    def pack(self, values: Values) -> torch.Tensor:
        """u, (K, N, D), of values that each have the shape (K, ..., N, *event)."""
        parts = []
        for place in self.places:
            u = place.bijection.inv(values[place.name])
            full = (len(u), *place.shape[: self.data_at - 1], u.shape[self.data_at], *place.shape[self.data_at - 1 :])
            parts.append(u.expand(full).movedim(self.data_at, 1).reshape(len(u), -1, place.size))
        return torch.cat(parts, -1)

    def pack_one(self, values: Values) -> torch.Tensor:
        """u, (N, D), of one value of each latent for N data, in the shape that the program drew it in."""
        return self.pack({p.name: _padded(values[p.name], p.event_dim, self.batch_rank) for p in self.places})[0]

    def unpack(self, u: torch.Tensor) -> tuple[Values, torch.Tensor]:
        """The latents' values and log |det dz/du|, (K, N)."""
        values: Values = {}
        log_det = u.new_zeros(u.shape[:2])
        for place, part in zip(self.places, u.split([place.size for place in self.places], -1), strict=True):
            free = part.reshape(*u.shape[:2], *place.shape).movedim(1, self.data_at)
            values[place.name] = value = place.bijection(free)
            term = place.bijection.log_abs_det_jacobian(free, value)
            log_det = log_det + term.movedim(self.data_at, 1).reshape(*u.shape[:2], -1).sum(-1)
        return values, log_det


def _padded(value: torch.Tensor, event_dim: int, batch_rank: int) -> torch.Tensor:
    """The value with ones on the left, up to so many batch dimensions."""
    return value.reshape((1,) * (batch_rank + event_dim - value.dim()) + tuple(value.shape))


def _try(bijection: Transform, probe: torch.Tensor) -> torch.Tensor:
    try:
        return bijection(probe)
    except (ValueError, RuntimeError):
        return probe + 1


def _refuse_unless_enumerable(name: str, fn: TorchDistributionMixin) -> None:
    if not fn.has_enumerate_support:
        raise InputError(
            f"Latent {name!r} is discrete ({type(fn).__name__}) and has no finite support to sum over, so it can't be "
            'annealed; use log_likelihood with method="importance".'
        )


def _bijection(name: str, support: Any) -> Transform:
    try:
        return biject_to(_shared(name, support))
    except NotImplementedError as error:
        raise InputError(
            f"Latent {name!r} has the support {support}, onto which torch knows no bijection from R^d, so it can't be "
            'annealed; use log_likelihood with method="importance".'
        ) from error


def _shared(name: str, support: Any) -> Any:
    """The support with bounds that are one number each, so that it holds for any batch."""
    bounds = {key: value for key, value in vars(support).items() if isinstance(value, torch.Tensor)}
    shared = copy.copy(support)
    for key, value in bounds.items():
        if not (value == value.flatten()[0]).all():
            raise InputError(
                f"Latent {name!r} has a support whose {key} differs between data or draws, so it can't be annealed; "
                'use log_likelihood with method="importance".'
            )
        setattr(shared, key, value.flatten()[0])
    if hasattr(support, "base_constraint"):
        shared.base_constraint = _shared(name, support.base_constraint)
    return shared
