"""The family that a guide takes its members from, found by its distributions: their parameters, free for each datum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import distributions as torch_dist
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform
from typing_extensions import Self

from pyro_vae.distributions.flows import Pushed
from pyro_vae.errors import InputError
from pyro_vae.pair import Batch, ModelAndGuide, kept_random_state, sample_sites

# Attributes that are distributions themselves, and so searched for parameters: of which kinds, and how to put them back.
_PARTS: dict[tuple[str, ...], tuple[tuple[type, ...], Callable[..., Any]]] = {
    ("base",): ((Pushed,), lambda fn, base: Pushed(base, fn.maps, fn.support)),
    ("base_dist",): (
        (torch_dist.Independent, torch_dist.TransformedDistribution, MaskedDistribution),
        lambda fn, base: _around(fn, base),
    ),
    ("_mixture_distribution", "_component_distribution"): (
        (torch_dist.MixtureSameFamily,),
        lambda fn, mixture, component: type(fn)(mixture, component, validate_args=False),
    ),
}
# Of several ways to say the same, one.
_INSTEAD = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}

Key = tuple[str, ...]  # a site, then the attributes that lead to one parameter of its distribution


@dataclass(frozen=True)
class Free:
    """A parameter of a latent's distribution.

    Attributes:
        key: the site's name, and the attributes that lead to the parameter.
        shape: of the shift that frees it, with the data at the plate's dimension.
    """

    key: Key
    shape: torch.Size


class Shifted(Messenger):
    """Adds to the unconstrained parameters of latents' distributions, datum by datum.

    Args:
        shifts: by parameter, each with as many dimensions on the left as the parameter has without particles.
        by_path: whether gradients in the shifts flow through the draws alone: of the same mean, and of less variance
            the nearer q is to the posterior (Roeder et al. 2017, eq. 8).
    """

    def __init__(self, shifts: dict[Key, torch.Tensor], by_path: bool = False):
        super().__init__()
        self.shifts = shifts
        self.fixed = {key: shift.detach() for key, shift in shifts.items()} if by_path else None

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not poutine.util.site_is_subsample(msg):
            fn = msg["fn"]
            msg["fn"] = _moved(fn, (msg["name"],), self.shifts)
            if self.fixed is not None and not _has_maps(fn):
                msg["fn"] = _ByPath(msg["fn"], _moved(fn, (msg["name"],), self.fixed))


class _ByPath(TorchDistribution):
    """Draws from one distribution, scored by an equal one without gradients in the parameters."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, drawn: TorchDistribution, scored: TorchDistribution):
        self.drawn, self.scored = drawn, scored
        super().__init__(drawn.batch_shape, drawn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.drawn.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.drawn.has_rsample

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        return type(self)(self.drawn.expand(torch.Size(batch_shape)), self.scored.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self.drawn.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self.drawn.sample(torch.Size(sample_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.scored.log_prob(value)


def _moved(fn: Any, key: Key, shifts: dict[Key, torch.Tensor]) -> Any:
    """The distribution at `key` with its parameters, and those of its parts, shifted."""
    if not any(free[: len(key)] == key for free in shifts):
        return fn
    if parts := _parts_of(fn):
        return _PARTS[parts][1](fn, *(_moved(getattr(fn, part), (*key, part), shifts) for part in parts))
    given = {name: getattr(fn, name) for name in _names(type(fn))}
    for name in given:
        if (shift := shifts.get((*key, name))) is not None:
            bijection = _bijection(fn.arg_constraints[name])
            given[name] = bijection(bijection.inv(given[name]) + shift)
    return type(fn)(**given, validate_args=False)


def _bijection(constraint: Any) -> Transform:
    try:
        return biject_to(constraint)
    except NotImplementedError:  # of triangular matrices, which are real numbers in a square
        return transform_to(constraint)


def members(pair: ModelAndGuide, batch: Batch) -> tuple[list[Free], tuple[str, ...]]:
    """The parameters that say which member of its family the guide takes for each datum, and notes on what stays.

    These are the ones that depend on something that is learned; all of them if none does. Transforms stay as they are.

    Raises:
        InputError: if a latent has no reparameterised draws, or no parameter that could be freed; names the site.
    """
    with kept_random_state(batch[0].device), torch.enable_grad():
        sites = sample_sites(poutine.trace(pair.guide).get_trace(*batch), observed=False)
    found: list[tuple[Key, torch.Size, bool]] = []
    maps = False
    for name, site in sites.items():
        if not site["fn"].has_rsample:
            raise InputError(
                f"Latent {name!r} ({type(site['fn']).__name__}) has no reparameterised draws, so the best member of the "
                "guide's family can't be sought by gradient steps."
            )
        of_site = list(_parameters(site["fn"], (name,)))
        if not of_site:
            raise InputError(
                f"The distribution of latent {name!r} ({type(site['fn']).__name__}) has no parameter that can be set freely."
            )
        found += of_site
        maps |= _has_maps(site["fn"])
    chosen = [one for one in found if one[2]] or found
    notes = ("transforms in the guide stay as the encoder sets them; only their base is sought",) if maps else ()
    return [Free(key, shape) for key, shape, _ in chosen], notes


def _around(fn: Any, base: Any) -> Any:
    """What is around a base distribution, around another one."""
    if isinstance(fn, torch_dist.Independent):
        return type(fn)(base, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, MaskedDistribution):
        return type(fn)(base, fn._mask)
    return type(fn)(base, fn.transforms, validate_args=False)


def _parts_of(fn: Any) -> tuple[str, ...]:
    if _names(type(fn)):
        return ()
    return next((parts for parts, (kinds, _) in _PARTS.items() if isinstance(fn, kinds)), ())


_known_names: dict[Any, list[str]] = {}


def _names(kind: type) -> list[str]:
    """The constructor's arguments that are a distribution's parameters, one way of saying each."""
    if kind not in _known_names:
        known: Any = getattr(kind, "arg_constraints", {})
        known = known if isinstance(known, dict) else {}  # a property, of a distribution made of others
        names = [name for name in inspect.signature(kind).parameters if name in known]
        names = [name for name in names if _INSTEAD.get(name) not in names]
        dependent = any(known[name] is constraints.dependent for name in names)
        _known_names[kind] = [] if dependent else names
    return _known_names[kind]


def _parameters(fn: TorchDistribution, key: Key) -> Iterator[tuple[Key, torch.Size, bool]]:
    """The parameters of a distribution: where, the shape of the free value, and whether it depends on what is learned."""
    for part in _parts_of(fn):
        yield from _parameters(getattr(fn, part), (*key, part))
    for name in _names(type(fn)):
        value = getattr(fn, name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            bijection = _bijection(fn.arg_constraints[name])
            rank = value.dim() - fn.arg_constraints[name].event_dim
            full = value.expand(*fn.batch_shape, *value.shape[max(rank, 0) :]) if rank >= 0 else value
            yield (*key, name), bijection.inv(full.detach()).shape, value.requires_grad


def _has_maps(fn: Any) -> bool:
    own = isinstance(fn, (Pushed, torch_dist.TransformedDistribution)) and not _names(type(fn))
    return own or any(_has_maps(getattr(fn, part)) for part in _parts_of(fn))


Program = Callable[..., Any]


class ShiftedGuide:
    """A guide run under shifts of its own."""

    def __init__(self, guide: Program, shifts: dict[Key, torch.Tensor], by_path: bool = False):
        self.guide, self.shifts, self.by_path = guide, shifts, by_path

    def __call__(self, *batch: Any) -> Any:
        with Shifted(self.shifts, self.by_path):
            return self.guide(*batch)
