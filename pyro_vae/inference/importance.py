"""Importance weights log p(x, z_k) − log q(z_k | x) per datum, for any pair: one function behind every estimate.

K draws ("particles") for N data are laid over a pair's programs in one of two ways, found out by trying:
*stacked*, as a plate to the left of all others, which costs nothing extra where networks take any leading
dimensions; or *folded* into the batch, (K · N) data, for networks that accept exactly one batch dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.errors import InputError
from pyro_vae.pair import (
    Batch,
    DataPlate,
    ModelAndGuide,
    Site,
    Sites,
    data_plate,
    log_prob,
    outside,
    plates_of,
    sample_sites,
    trace_pair,
)

Values = dict[str, torch.Tensor]
PARTICLES = "_particles"
PROBES = 2  # particles with which a layout is tried


@dataclass(frozen=True)
class Layout:
    """How particles are laid over a pair's programs.

    Attributes:
        plate: the plate over the data.
        particle_dim: the batch dimension of the particles, left of all of the pair's plates.
        event_dims: rank of one event, by latent site.
        fold_model, fold_guide: whether that program gets the particles as further data.
        one_site: whether the guide samples one latent, whose distribution then serves all particles.
    """

    plate: DataPlate
    particle_dim: int
    event_dims: dict[str, int]
    one_site: bool
    fold_model: bool = False
    fold_guide: bool = False


def log_weights(pair: ModelAndGuide, batch: Batch, num_samples: int, layout: Layout | None = None) -> torch.Tensor:
    """log p(x_n, z_kn) − log q(z_kn | x_n) in nats, shape (K, N), summed over all sites.

    Plate and `poutine.scale` factors do not enter; masks do. Draws are reparameterised where the guide can, so that
    the weights are differentiable when gradients are on.

    Args:
        pair: model and guide.
        batch: tensors of N data.
        num_samples: K.
        layout: what `find_layout` returned for this pair; found anew by default.

    Raises:
        InputError: if a site lies outside the plate over the data, so that no weight per datum exists.
    """
    if layout is None:
        layout = find_layout(pair, batch)
    return Draws(pair, batch, layout).log_weights(num_samples)


class Draws:
    """Draws from q(z | x) for one batch, and their weights. The guide runs once if it has one latent site."""

    def __init__(self, pair: ModelAndGuide, batch: Batch, layout: Layout):
        self.pair, self.batch, self.layout = pair, batch, layout
        self.num_data = len(batch[0])
        self._posterior: dict[str, Any] | None = None
        if layout.one_site:
            trace = poutine.trace(pair.guide).get_trace(*batch)
            self._posterior = sample_sites(trace, observed=False)

    @property
    def fold_guide(self) -> bool:
        """Whether the guide's sites have the particles among the data."""
        return self.layout.fold_guide and self._posterior is None

    def draw(self, num_samples: int) -> tuple[Values, torch.Tensor]:
        """K values of every latent, (K, ..., N, *event), and log q of them, (K, N)."""
        values, sites = self.sample(num_samples)
        if not sites:  # as where all latents are global, and given
            return values, torch.zeros(num_samples, self.num_data, device=self.batch[0].device)
        return values, per_datum(sites, self.layout, num_samples, self.num_data, self.fold_guide)

    def sample(self, num_samples: int) -> tuple[Values, Sites]:
        """K values of every latent, (K, ..., N, *event), and the guide's sites that they were drawn at."""
        layout = self.layout
        if self._posterior is None:
            sites = run(self.pair.guide, self.batch, num_samples, layout, fold=layout.fold_guide)
            sites = {n: s for n, s in sites.items() if not s["is_observed"]}
            values = {n: self._unfolded(s, num_samples, layout.fold_guide) for n, s in sites.items()}
            return values, sites
        values, drawn = {}, {}
        for name, site in self._posterior.items():
            inner = site["fn"].batch_shape
            padded = (1,) * (-layout.particle_dim - 1 - len(inner)) + tuple(inner)
            fn = site["fn"].expand((num_samples, *padded))
            values[name] = fn.rsample() if fn.has_rsample else fn.sample()
            drawn[name] = {**site, "fn": fn, "value": values[name], "mask": site["mask"]}
        return values, drawn

    def guide_sites(self, values: Values, drawn: Sites, num_samples: int) -> Sites:
        """The guide's sites at given values, for K draws whose sites were `drawn`."""
        if self._posterior is not None:
            return {name: {**site, "value": values[name]} for name, site in drawn.items()}
        sites = run(self.pair.guide, self.batch, num_samples, self.layout, fold=self.fold_guide, values=values)
        return {name: site for name, site in sites.items() if name in values}

    def model_sites(self, values: Values, num_samples: int) -> Sites:
        """The model's sites at K given values of every latent."""
        return run(self.pair.model, self.batch, num_samples, self.layout, fold=self.layout.fold_model, values=values)

    def log_joint(self, values: Values, num_samples: int) -> torch.Tensor:
        """log p(x, z_k) of K values of every latent, (K, N)."""
        sites = self.model_sites(values, num_samples)
        return per_datum(sites, self.layout, num_samples, self.num_data, self.layout.fold_model)

    def log_weights(self, num_samples: int) -> torch.Tensor:
        """log p(x, z_k) − log q(z_k | x) of fresh draws, (K, N)."""
        values, log_q = self.draw(num_samples)
        return self.log_joint(values, num_samples) - log_q

    def _unfolded(self, site: Site, num_samples: int, folded: bool) -> torch.Tensor:
        value = site["value"]
        return unfold(value, self.layout, site["fn"].event_dim, num_samples) if folded else value


def run(
    program: Callable[..., Any],
    batch: Batch,
    num_samples: int,
    layout: Layout,
    *,
    fold: bool,
    values: Values | None = None,
) -> Sites:
    """The random sites of a program run with K particles, with `values` for the latents that have one.

    Raises:
        InputError: if the program samples a latent outside the plate over the data.
    """
    given = dict(values or {})
    if fold:
        batch = tuple(t.repeat(num_samples, *(1,) * (t.dim() - 1)) for t in batch)
        given = {name: _fold(v, layout, layout.event_dims[name]) for name, v in given.items()}
        trace = poutine.trace(poutine.condition(program, data=given)).get_trace(*batch)
    else:
        with pyro.plate(PARTICLES, num_samples, dim=layout.particle_dim):
            trace = poutine.trace(poutine.condition(program, data=given)).get_trace(*batch)
    return {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}


def per_datum(sites: Sites, layout: Layout, num_samples: int, num_data: int, fold: bool) -> torch.Tensor:
    """Σ over sites and inner plates of log p, shape (K, N)."""
    total: Any = 0.0
    for site in sites.values():
        total = total + summed(log_prob(site), layout, num_samples, num_data, fold)
    return total.expand(num_samples, num_data)


def summed(term: torch.Tensor, layout: Layout, num_samples: int, num_data: int, fold: bool) -> torch.Tensor:
    """A site's term, one number per draw, datum and inner plate, summed over inner plates to (K, N)."""
    if fold:
        term = unfold(term, layout, 0, num_samples)
    term = term.expand(torch.broadcast_shapes(term.shape, (1,) * -layout.particle_dim))
    return summed_but(term, layout.particle_dim, layout.plate.dim).expand(num_samples, num_data)


def summed_but(term: torch.Tensor, *kept: int) -> torch.Tensor:
    """The sum over all dimensions but those kept, counted from the right."""
    inner = [d for d in range(-term.dim(), 0) if d not in kept]
    return term.sum(inner) if inner else term


def _fold(value: torch.Tensor, layout: Layout, event_dim: int) -> torch.Tensor:
    """(K, ..., N, *event) to (..., K·N, *event), with the data at the plate's dimension."""
    data_at = value.dim() - event_dim + layout.plate.dim
    return value.movedim(0, data_at - 1).flatten(data_at - 1, data_at)


def unfold(value: torch.Tensor, layout: Layout, event_dim: int, num_samples: int) -> torch.Tensor:
    """(..., K·N, *event) to (K, ..., N, *event): what `_fold` did, undone."""
    missing = -layout.particle_dim - 1 - (value.dim() - event_dim)
    value = value.reshape((1,) * missing + tuple(value.shape))
    data_at = value.dim() - event_dim + layout.plate.dim
    return value.unflatten(data_at, (num_samples, -1)).movedim(data_at, 0)


def find_layout(pair: ModelAndGuide, batch: Batch) -> Layout:
    """Tries two particles on a few data and keeps the first way that agrees with one particle at a time.

    Raises:
        InputError: if a random site lies outside the plate over the data, or neither way works.
    """
    few = tuple(t[:3] for t in batch)
    layout = traced_layout(*trace_pair(pair, few), len(few[0]))
    if len(layout.event_dims) > 1:
        layout = _first_that_agrees(_guide_agrees, pair, few, layout, "fold_guide")
    return _first_that_agrees(_model_agrees, pair, few, layout, "fold_model")


def traced_layout(guide_trace: poutine.Trace, model_trace: poutine.Trace, num_data: int) -> Layout:
    """What two traces of N data say of plates and events, before particles are tried.

    Raises:
        InputError: if a random site lies outside the plate over the data.
    """
    plate = data_plate(model_trace, num_data)
    stray = outside(model_trace, plate) + outside(guide_trace, plate)
    if plate is None or stray:
        raise InputError(_why_no_plate(model_trace, sorted(set(stray)), num_data))
    latents = sample_sites(guide_trace, observed=False)
    frames = [
        f
        for t in (guide_trace, model_trace)
        for s in dict[str, Any](t.nodes).values()
        if s["type"] == "sample"
        for f in plates_of(s).values()
    ]
    return Layout(
        plate=plate,
        particle_dim=min(frame.dim for frame in frames) - 1,
        event_dims={name: site["fn"].event_dim for name, site in latents.items()},
        one_site=len(latents) == 1,
    )


def _why_no_plate(model_trace: poutine.Trace, stray: list[str], size: int) -> str:
    frames = [f for site in sample_sites(model_trace, observed=True).values() for f in plates_of(site).values()]
    fixed = next((f for f in frames if f.name == "data" and f.size != size), None)
    if fixed is not None:
        return (
            f"The plate 'data' has the fixed size {fixed.size}, but data are scored in parts, here of {size}; write "
            'pyro.plate("data", len(x)).'
        )
    return (
        f"Sites {stray} are not inside a plate over the data, so there is no weight per datum; put them inside "
        '`with pyro.plate("data", len(x)):`, or ask for elbo_terms, which scores global latents as such.'
    )


def _first_that_agrees(
    agrees: Callable[[ModelAndGuide, Batch, Layout], bool], pair: ModelAndGuide, few: Batch, layout: Layout, flag: str
) -> Layout:
    failures: list[Exception | str] = []
    for fold in (False, True):
        changed: dict[str, Any] = {flag: fold}
        candidate = replace(layout, **changed)
        try:
            if agrees(pair, few, candidate):
                return candidate
            failures.append("its scores differ from those of one particle at a time")
        except InputError:
            raise
        except Exception as error:  # a network may raise anything on a shape it doesn't know
            failures.append(error)
    program = flag.removeprefix("fold_")
    raise InputError(
        f"The {program} can't be run with several particles. As a plate at dimension {layout.particle_dim}: {failures[0]}. "
        f"As further data in the batch: {failures[1]}."
    )


def _one_at_a_time(program: Callable[..., Any], batch: Batch, values: Values, layout: Layout) -> torch.Tensor:
    """log p of each particle's values by a run of its own, (K, N)."""
    rows = []
    for k in range(PROBES):
        one = {name: v[k] for name, v in values.items()}
        trace = poutine.trace(poutine.condition(program, data=one)).get_trace(*batch)
        sites = {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}
        rows.append(per_datum(sites, layout, 1, len(batch[0]), fold=False))
    return torch.cat(rows)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Batched matrix products round differently; a wrong layout is wrong by far more than this.
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _guide_agrees(pair: ModelAndGuide, few: Batch, layout: Layout) -> bool:
    values, log_q = Draws(pair, few, layout).draw(PROBES)
    return _close(log_q, _one_at_a_time(pair.guide, few, values, layout))


def _model_agrees(pair: ModelAndGuide, few: Batch, layout: Layout) -> bool:
    draws = Draws(pair, few, layout)
    values, _ = draws.draw(PROBES)
    return _close(draws.log_joint(values, PROBES), _one_at_a_time(pair.model, few, values, layout))


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every tensor that is made, as if none were freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in before:
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def bytes_per_draw(pair: ModelAndGuide, batch: Batch, layout: Layout) -> float:
    """Memory that one draw for one datum can take at most, in bytes, measured on a few data."""
    few = tuple(t[:4] for t in batch)
    draws = Draws(pair, few, layout)
    with _Allocations() as counted:
        draws.log_weights(8)
    return max(1.0, counted.bytes / (8 * len(few[0])))
