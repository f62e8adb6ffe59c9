"""The ELBO and its terms, per datum and per site."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from pyro_vae.data import Binarization
from pyro_vae.errors import positive_int
from pyro_vae.inference.checked import notes_on, scored_data
from pyro_vae.inference.importance import summed_but
from pyro_vae.inference.results import Result, Rows, nats
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    as_pair,
    data_plate,
    evaluating,
    kept_random_state,
    log_prob,
    outside,
    sample_sites,
    trace_pair,
)

COLLAPSED = 0.1  # nats


@dataclass(frozen=True)
class ElboTerms(Result):
    """The ELBO's terms in nats per datum, means over data and draws.

    Attributes:
        elbo: E_q[log p(x, z) − log q(z | x)] = reconstruction − kl (higher is better).
        reconstruction: E_q[log p(x | z)].
        kl: E_q[log q(z | x) − log p(z)], summed over latents.
        sites: kl of each latent and log p of each observed site, by name.
        values: (N,) the ELBO of each datum; None where a latent lies outside the plate over the data.
        stderr: standard error of `elbo` over the data; NaN for one datum or global latents.
        notes: what the reader must know.
        num_dims: numbers in one datum.
        latents: names of the latent sites.
    """

    title: ClassVar[str] = "ELBO and its terms"
    derived: ClassVar[tuple[str, ...]] = ("bits_per_dim", "collapsed")

    elbo: float
    reconstruction: float
    kl: float
    sites: dict[str, float] = field(default_factory=dict)
    values: torch.Tensor | None = None
    stderr: float = math.nan
    notes: tuple[str, ...] = ()
    num_dims: int = 1
    latents: tuple[str, ...] = ()

    @property
    def bits_per_dim(self) -> float:
        """−elbo / (num_dims · log 2): for 8-bit data a bound on the bits of a lossless code for each number."""
        return -self.elbo / (self.num_dims * math.log(2))

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Latents that say next to nothing of x: with a KL below 0.1 nats, where there are several."""
        latents = self.latents if len(self.latents) > 1 else ()
        return tuple(name for name in latents if self.sites[name] < COLLAPSED)

    def rows(self) -> Rows:
        """The ELBO, and each site's share."""
        rows = [
            ("ELBO", f"{nats(self.elbo, self.stderr)} nats per datum"),
            ("reconstruction", f"{nats(self.reconstruction)} nats"),
            ("KL", f"{nats(self.kl)} nats"),
        ]
        return rows + [(f"  {name}", nats(value)) for name, value in self.sites.items()]

    def __str__(self) -> str:
        sites = ", ".join(f"{name} {value:.3f}" for name, value in self.sites.items())
        return f"ELBO {self.elbo:.3f} = reconstruction {self.reconstruction:.3f} − KL {self.kl:.3f} ({sites})"


def elbo_terms(
    pair: PairLike,
    x: Any,
    num_samples: int = 1,
    *,
    binarize: Binarization | None = None,
    seed: int = 0,
    batch_size: int = 2048,
) -> ElboTerms:
    """The evidence lower bound and its terms (Doersch 2016, eq. 5; Kingma & Welling 2014, eq. 3).

    Global latents, outside the plate over the data, count once for the whole set. The pair, its optimizer and torch's
    random state are left as they were.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes.
        num_samples: draws from the guide per datum.
        binarize: as in `log_likelihood`.
        seed: of the draws.
        batch_size: how many data at once.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    positive_int("batch_size", batch_size)
    examples = scored_data(pair, x, binarize, seed)
    totals: dict[str, float] = {}
    values: list[torch.Tensor] = []
    is_latent: dict[str, bool] = {}
    all_per_datum = True
    with evaluating(pair), kept_random_state(examples.device, seed):
        for _, batch in examples.batches(batch_size):
            share = len(batch[0]) / len(examples)
            rows: Any = 0.0
            for _ in range(num_samples):
                for name, term, latent, per_datum in _terms(pair, batch, len(examples)):
                    mean = term.double().sum().item() / (len(batch[0]) if per_datum else 1)
                    totals[name] = totals.get(name, 0.0) + mean * share / num_samples
                    is_latent[name] = latent
                    all_per_datum &= per_datum
                    if per_datum:
                        rows = rows + (-term if latent else term).double() / num_samples
            values.append(rows if isinstance(rows, torch.Tensor) else batch[0].new_zeros(len(batch[0])))
        notes = notes_on(pair, batch)
    kl = sum(value for name, value in totals.items() if is_latent[name])
    reconstruction = sum(value for name, value in totals.items() if not is_latent[name])
    joined = torch.cat(values) if all_per_datum else None
    stderr = math.nan
    if joined is not None and len(joined) > 1:
        stderr = (joined.std() / math.sqrt(len(joined))).item()
    latents = tuple(name for name in totals if is_latent[name])
    dims = batch[0][0].numel()
    return ElboTerms(reconstruction - kl, reconstruction, kl, totals, joined, stderr, notes, dims, latents)


def _terms(pair: ModelAndGuide, batch: Batch, num_data: int) -> Iterator[tuple[str, torch.Tensor, bool, bool]]:
    """(site, its term, is it latent, is it per datum): terms are (n,) per datum, or one share of a global total."""
    guide_trace, model_trace = trace_pair(pair, batch)
    plate = data_plate(model_trace, len(batch[0]))
    stray = {*outside(guide_trace, plate), *outside(model_trace, plate)}
    # A plain plate is over this batch alone, so the whole set is what was handed in; a subsampled one names its size.
    population = num_data if plate is None or plate.full_size == len(batch[0]) else plate.full_size
    latents = sample_sites(guide_trace, observed=False)
    for name, site in sample_sites(model_trace, observed=True).items():
        yield name, _summed(log_prob(site), plate, len(batch[0]), name in stray, population), False, name not in stray
    for name, site in latents.items():
        kl = log_prob(site)
        if name in model_trace.nodes:
            prior: Any = model_trace.nodes[name]
            kl = kl - log_prob(prior)
        yield name, _summed(kl, plate, len(batch[0]), name in stray, population), True, name not in stray


def _summed(term: torch.Tensor, plate: Any, num_rows: int, stray: bool, population: int) -> torch.Tensor:
    if stray:
        return term.sum() / population
    term = term.expand(torch.broadcast_shapes(term.shape, (num_rows, *(1,) * (-plate.dim - 1))))
    return summed_but(term, plate.dim)
