"""The aggregate posterior q(z) = E_x q(z | x), of which only data are known: bounds of its density on average.

For draws z_i ~ q(z | x_i) of N independent data, the mean of log 1/N Σ_j q(z_i | x_j), the datum's own term included, is at
least E log q(z) in expectation, and that of log 1/(N − 1) Σ_{j ≠ i} q(z_i | x_j) is at most that (Poole et al. 2019, section
2, on InfoNCE and leave-one-out bounds with a known conditional density). Both approach it as N grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pyro_vae.inference.dimensions import marginal_log_probs
from pyro_vae.inference.importance import Draws, Layout, Values, per_datum
from pyro_vae.pair import Batch, ModelAndGuide


@dataclass(frozen=True)
class Aggregate:
    """Log densities at draws z_i ~ q(z | x_i), one for each of N data, in nats.

    Attributes:
        own: (N,) log q(z_i | x_i).
        among: (N,) log of the mean over all data, the own included.
        others: (N,) log of the mean over all data but the own.
        own_parts, among_parts, others_parts: the same for each latent dimension's marginal, (N, Q); None if not known.
        prior_parts: log p of each dimension's marginal at the draws, (N, Q); None if not known.
    """

    own: torch.Tensor
    among: torch.Tensor
    others: torch.Tensor
    own_parts: torch.Tensor | None = None
    among_parts: torch.Tensor | None = None
    others_parts: torch.Tensor | None = None
    prior_parts: torch.Tensor | None = None


def aggregate(pair: ModelAndGuide, batch: Batch, layout: Layout, max_memory: int) -> Aggregate:
    """Densities of one draw per datum under the posteriors of all data: N² of them, by parts.

    Raises:
        NotImplementedError: if the guide's density at given latents is not known.
    """
    num = len(batch[0])
    draws = Draws(pair, batch, layout)
    values, sites = draws.sample(1)
    own = per_datum(draws.guide_sites(values, sites, 1), layout, 1, num, draws.fold_guide)[0].double()
    size = sum(value[0].numel() for value in values.values())
    at_once = max(1, min(num, int(max_memory / (8 * 4 * max(size, 1)))))
    joint, parts = [], []
    for start in range(0, num, at_once):
        few = _spread(values, layout, start, min(start + at_once, num), num)
        count = min(at_once, num - start)
        _, expanded = draws.sample(count)
        given = draws.guide_sites(few, expanded, count)
        log_q = per_datum(given, layout, count, num, draws.fold_guide).double()  # (count, N): draw, datum
        joint.append(_pooled(log_q, start))
        if layout.one_site:
            (site,) = given.values()
            marginal = marginal_log_probs(site["fn"], site["value"])
            if marginal is not None and marginal.dim() >= 2:
                parts.append(_pooled(marginal.double().reshape(count, num, -1), start))
    _, among, others = (torch.cat(column) for column in zip(*joint, strict=True))
    if not parts:
        return Aggregate(own, among, others)
    prior = _prior_parts(draws, values, layout, num)
    own_parts, among_parts, others_parts = (torch.cat(column) for column in zip(*parts, strict=True))
    return Aggregate(own, among, others, own_parts, among_parts, others_parts, prior)


def _prior_parts(draws: Draws, values: Values, layout: Layout, num: int) -> torch.Tensor | None:
    (name,) = layout.event_dims
    site = draws.model_sites(values, 1)[name]
    log_p = marginal_log_probs(site["fn"], site["value"])
    return None if log_p is None else log_p.double().expand(site["value"].shape).reshape(num, -1)


def _spread(values: Values, layout: Layout, start: int, stop: int, num: int) -> Values:
    """Draws start ... stop of (1, ..., N, *event) as particles, the same for every datum: (n, ..., N, *event)."""
    out = {}
    for name, value in values.items():
        at = value.dim() - layout.event_dims[name] + layout.plate.dim
        particles = value[0].movedim(at - 1, 0)[start:stop]
        out[name] = particles.unsqueeze(at).expand(*particles.shape[:at], num, *particles.shape[at:]).contiguous()
    return out


def _pooled(log_q: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The own log density, and the logs of the means with and without it, from (n, N, ...) to (n, ...) each."""
    num = log_q.shape[1]
    rows = torch.arange(len(log_q), device=log_q.device)
    own = log_q[rows, start + rows]
    among = log_q.logsumexp(1) - math.log(num)
    rest = log_q.clone()
    rest[rows, start + rows] = -math.inf
    return own, among, rest.logsumexp(1) - math.log(num - 1)
