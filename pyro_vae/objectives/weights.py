"""What objectives compute per datum: densities tempered by scales, K weighted draws, and the terms of one draw."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent

from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Layout, Values, summed
from pyro_vae.pair import (
    Site,
    Sites,
    log_prob,
)


def family(fn: Any) -> str:
    """A distribution's name, without what wraps it."""
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return type(fn).__name__


Scale = float | torch.Tensor


def scale_of(site: Site, layout: Layout, num_samples: int, num_data: int, fold: bool) -> Scale:
    """The factor that plates and `poutine.scale` put on a site: a number, or one per datum, (N,)."""
    scale = site["scale"]
    if not isinstance(scale, torch.Tensor) or not scale.dim():
        return scale
    if scale.numel() == 1:
        return scale.reshape(())
    each = summed(scale, layout, num_samples, num_data, fold)[0]
    if scale.numel() not in (num_data, num_data * num_samples):
        raise InputError(
            f"The site {site['name']!r} has a scale of shape {tuple(scale.shape)}, which varies within a datum; "
            "a bound per datum has one factor a datum."
        )
    return each


def relative(scale: Scale, base: Scale) -> Scale:
    """scale / base, 1 where both are 0."""
    if scale is base:
        return 1.0
    if not isinstance(base, torch.Tensor):
        return scale / base
    off = base == 0
    return torch.where(off, torch.ones_like(base), scale / torch.where(off, torch.ones_like(base), base))


def scored(
    sites: Sites, layout: Layout, num_samples: int, num_data: int, fold: bool, base: Scale = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over sites of log p, (K, N): each site tempered by what its scale is beside `base`, and as it is.

    The scale that all sites share is left to be multiplied outside; a factor on the latents alone, as β is, belongs to
    their terms. Where nothing is tempered, both are one tensor.
    """
    tempered: Any = 0.0
    plain: Any = 0.0
    same = True
    for site in sites.values():
        term = summed(log_prob(site), layout, num_samples, num_data, fold)
        power = relative(scale_of(site, layout, num_samples, num_data, fold), base)
        plain = plain + term
        if isinstance(power, torch.Tensor) or power != 1:
            term, same = power * term, False
        tempered = tempered + term
    return (plain, plain) if same else (tempered, plain)


Leaves = Literal["none", "model", "both"]


@dataclass
class Weights:
    """K draws for N data.

    Attributes:
        drawn: the latents as drawn, with the graph into the guide, (K, ..., N, *event).
        at: the same numbers, at which the densities are taken; leaves of their own if so asked.
        log_p, log_q: log p(x, z) and log q(z | x) in nats, (K, N), latents tempered by the factors on them alone.
        score: log q(z | x) itself, (K, N); `log_q` where nothing is tempered.
        scale: what plates and `poutine.scale` multiply each datum's bound by.
    """

    drawn: Values
    at: Values
    log_p: torch.Tensor
    log_q: torch.Tensor
    score: torch.Tensor
    scale: Scale

    @property
    def log_w(self) -> torch.Tensor:
        """log p − log q, (K, N)."""
        return self.log_p - self.log_q

    def total(self, per_datum: torch.Tensor) -> torch.Tensor:
        """Σ_n scale_n · value_n, over all else too."""
        return (self.scale * per_datum).sum()

    def path(self, weighted: torch.Tensor) -> torch.Tensor:
        """A surrogate whose gradient is that of `weighted` by way of the draws alone.

        Args:
            weighted: Σ over draws of weights · log-densities taken at the leaves, (N,) or (K, N).
        """
        leaves = [name for name, value in self.at.items() if value is not self.drawn[name]]
        if not leaves or not weighted.requires_grad:
            return torch.zeros_like(weighted).sum()
        wanted = [self.at[name] for name in leaves]
        slopes = torch.autograd.grad(self.total(weighted), wanted, retain_graph=True, allow_unused=True)
        moved = zip(leaves, slopes, strict=True)
        total: Any = sum((s.detach() * self.drawn[n]).sum() for n, s in moved if s is not None)
        return total


@dataclass
class Terms:
    """One draw for N data, by term.

    Attributes:
        guide, model: the latents' sites in the guide and in the model.
        reconstruction: log p(x | z), (N,).
        scale: what plates and `poutine.scale` multiply each datum by.
    """

    guide: Sites
    model: Sites
    reconstruction: torch.Tensor
    scale: Scale
    layout: Layout

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.reconstruction)

    @property
    def count(self) -> torch.Tensor:
        """Σ_n scale_n: how many data the batch stands for."""
        return (self.scale * torch.ones_like(self.reconstruction)).sum()

    def total(self, per_datum: torch.Tensor) -> torch.Tensor:
        """Σ_n scale_n · value_n."""
        return (self.scale * per_datum).sum()

    def power(self, name: str) -> Scale:
        """What a latent's scale is beside that of the data."""
        return relative(scale_of(self.guide[name], self.layout, 1, self.num_data, False), self.scale)

    def per_datum(self, term: torch.Tensor) -> torch.Tensor:
        """A site's term summed over inner plates, (N,)."""
        return summed(term, self.layout, 1, self.num_data, False)[0]

    @property
    def in_order(self) -> bool:
        """Whether model and guide draw their latents in one order, so that a KL can be taken site by site."""
        return [name for name in self.guide if name in self.model] == list(self.model)

    def kl(self, name: str) -> torch.Tensor:
        """KL(q ‖ p) of one site in nats, (N,): closed form where torch knows it, else log q − log p at the draw."""
        site, prior = self.guide[name], self.model.get(name)
        if prior is None:  # an auxiliary variable of the guide
            return self.per_datum(log_prob(site))
        if self.in_order:
            with contextlib.suppress(NotImplementedError):
                return self.per_datum(masked(torch.distributions.kl_divergence(site["fn"], prior["fn"]), site["mask"]))
        return self.per_datum(log_prob(site)) - self.per_datum(log_prob(prior))


def masked(term: torch.Tensor, mask: Any, event_dim: int = 0) -> torch.Tensor:
    """`term` (*batch, *event) where a mask over the batch holds, zero elsewhere."""
    if mask is None or mask is True:
        return term
    if mask is False:
        return torch.zeros_like(term)
    mask = mask.reshape(mask.shape + (1,) * event_dim)
    return torch.where(mask, term, torch.zeros_like(term))
