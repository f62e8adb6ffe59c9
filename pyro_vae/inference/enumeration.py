"""Log densities per datum of a program at given latents, with its discrete latents summed over by Pyro's enumeration."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor

from pyro_vae.errors import InputError
from pyro_vae.inference.importance import PARTICLES, Layout, Values, per_datum, run, summed_but
from pyro_vae.pair import Batch, Sites, log_prob, plates_of, sample_sites


def log_densities(
    program: Callable[..., Any],
    batch: Batch,
    num_samples: int,
    layout: Layout,
    *,
    fold: bool,
    values: Values,
    discrete: Collection[str] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the latents alone and of all random sites, each (K, N), at K values of the continuous latents.

    Args:
        program: the model, or the guide, which observes nothing.
        batch: N data.
        num_samples: K.
        layout: of the pair.
        fold: whether the program gets the particles as further data.
        values: of every continuous latent.
        discrete: names of the latents that are summed over (Obermeyer et al. 2019), those in inner plates too.

    Raises:
        InputError: if discrete latents are to be summed over in a program that takes one batch dimension alone.
    """
    size = (num_samples, len(batch[0]))
    if not discrete:
        sites = run(program, batch, num_samples, layout, fold=fold, values=values)
        latents = {name: site for name, site in sites.items() if name in values}
        rest = {name: site for name, site in sites.items() if name not in values}
        log_latents = per_datum(latents, layout, *size, fold)
        return log_latents, log_latents + per_datum(rest, layout, *size, fold) if rest else log_latents
    if fold:
        raise InputError(
            f"Discrete latents ({', '.join(map(repr, discrete))}) are summed over along further batch dimensions, but the "
            " pair's networks accept one batch dimension alone; let them take any."
        )
    sites, plates, dims = _enumerated(program, batch, num_samples, layout, values)
    latents = {name: site for name, site in sites.items() if name in values or name in discrete}
    return _contracted(latents, plates, dims, layout, size), _contracted(sites, plates, dims, layout, size)


def _enumerated(
    program: Callable[..., Any], batch: Batch, num_samples: int, layout: Layout, values: Values
) -> tuple[Sites, dict[str, str], dict[str, int]]:
    """The random sites of a run with every enumerable latent that has no value laid along a dimension of its own;
    and Pyro's symbols of the plates, and the dimensions of its symbols."""
    conditioned = poutine.condition(config_enumerate(program), data=values)
    with pyro.plate(PARTICLES, num_samples, dim=layout.particle_dim):
        counted = poutine.enum(conditioned, first_available_dim=layout.particle_dim - 1)
        trace = poutine.trace(counted).get_trace(*batch)
    sites = {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}
    for site in sites.values():
        site["log_prob"] = site["unscaled_log_prob"] = log_prob(site)
    trace.pack_tensors()
    return sites, trace.plate_to_symbol, trace.symbol_to_dim


def _contracted(
    sites: Sites, plates: dict[str, str], dims: dict[str, int], layout: Layout, size: tuple[int, int]
) -> torch.Tensor:
    """Σ over discrete latents of Π over sites, (K, N): variables are eliminated one by one."""
    terms = {name: site["packed"]["log_prob"] for name, site in sites.items()}
    present = {symbol for term in terms.values() for symbol in term._pyro_dims}  # others have size 1, and are left out
    tree: OrderedDict[frozenset[str], list[torch.Tensor]] = OrderedDict()
    for name, term in terms.items():
        around = {plates[plate] for plate in plates_of(sites[name])}
        tree.setdefault(frozenset(around & present), []).append(term)
    summed = {site["infer"]["_enumerate_symbol"] for site in sites.values() if "_enumerate_symbol" in site["infer"]}
    kept = {plates[name] for name in (PARTICLES, layout.plate.name)} & present
    total = packed.unpack(contract_to_tensor(tree, summed & present, target_ordinal=frozenset(kept)), dims)
    total = total.expand(torch.broadcast_shapes(total.shape, (1,) * -layout.particle_dim))
    return summed_but(total, layout.particle_dim, layout.plate.dim).expand(size)
