"""Objectives that weigh the terms between q(z | x), q(z) and p(z): free bits, capacity, total correlation, MMD."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pyro import poutine
from torch.distributions import Independent

from pyro_vae.errors import InputError, one_of, positive, positive_int
from pyro_vae.objectives.base import Objective, Program, Schedule, not_negative, positional
from pyro_vae.objectives.weights import Terms, family, masked
from pyro_vae.pair import Batch, Site, Sites, log_prob, sample_sites

Kernel = Literal["rbf", "imq"]
Estimator = Literal["weighted", "stratified"]


class FreeBits(Objective):
    """E[log p(x | z)] − Σ_j max(λ, mean_n KL_nj): no reward for a KL below λ (Kingma et al. 2016, eq. 15).

    The mean is over the batch; KLs are in closed form where torch knows them, else estimated at the draw.

    Args:
        nats: λ, per group j and datum.
        per: what a group is: a latent site, or each dimension of it, for which the dimensions must be independent in
            guide and prior.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    is_bound = True
    reparameterised = True

    def __init__(self, nats: float = 0.5, per: Literal["site", "dimension"] = "site"):
        super().__init__()
        self.nats = not_negative("nats", nats)
        self.per = one_of("per", per, ["site", "dimension"])

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        terms = self.terms(model, guide, positional(args, kwargs))
        rate: Any = 0.0
        for name in terms.guide:
            whole = self.per == "site" or name not in terms.model
            kl = terms.kl(name).unsqueeze(-1) if whole else self._by_dimension(terms, name)  # (N, groups)
            mean = (terms.scale * kl.T).sum(-1) / terms.count
            held = mean.clamp(min=self.nats).sum()
            rate = rate + terms.total(terms.power(name) * held.expand(terms.num_data))
        return rate - terms.total(terms.reconstruction)

    def _by_dimension(self, terms: Terms, name: str) -> torch.Tensor:
        site, prior = terms.guide[name], terms.model[name]
        q, p = _factors(self, name, site["fn"]), _factors(self, name, prior["fn"])
        try:
            if not terms.in_order:
                raise NotImplementedError
            kl = torch.distributions.kl_divergence(q, p)
        except NotImplementedError:
            kl = q.log_prob(site["value"]) - p.log_prob(site["value"])
        return by_datum(terms, masked(kl, site["mask"], site["fn"].event_dim), site["fn"].event_dim)


class Capacity(Schedule, Objective):
    """E[log p(x | z)] − γ |mean_n KL_n − C|, C rising from 0 to max_capacity (Burgess et al. 2018, eq. 8).

    The mean is over the batch; KLs are in closed form where torch knows them, else estimated at the draw.

    Args:
        max_capacity: C at the end of the rise, nats per datum.
        gamma: γ.
        fraction: the part of the run in which C rises.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    reparameterised = True

    def __init__(self, max_capacity: float = 25.0, gamma: float = 100.0, fraction: float = 0.8):
        super().__init__()
        self.max_capacity = positive("max_capacity", max_capacity)
        self.gamma = positive("gamma", gamma)
        self.fraction = _part("fraction", fraction)
        self.start_schedule()

    def weight_at(self, done: torch.Tensor) -> torch.Tensor:
        return (done / self.fraction).clamp(max=1.0)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        terms = self.terms(model, guide, positional(args, kwargs))
        kl = sum(terms.total(terms.power(name) * terms.kl(name)) for name in terms.guide) / terms.count
        capacity = self.max_capacity * self.weight_on(kl.device)
        return terms.count * self.gamma * (kl - capacity).abs() - terms.total(terms.reconstruction)


class BetaTC(Objective):
    """E[log p(x | z)] − α I(z; n) − β TC(z) − γ Σ_j KL(q(z_j) ‖ p(z_j)) (Chen et al. 2018, eq. 2 to 4).

    log q(z) and log q(z_j), of the aggregate over all data, are estimated from the batch. At α = β = γ = 1 the three
    add up to log q(z | x) − log p(z) whatever the estimates. One latent site; its dimensions are independent given x.

    Args:
        alpha: weight of the mutual information log q(z | x) − log q(z).
        beta: weight of the total correlation log q(z) − Σ_j log q(z_j).
        gamma: weight of Σ_j log q(z_j) − log p(z).
        estimator: "weighted", biased (eq. S4), or "stratified" (eq. S6).
        num_data: number of data in all; None takes the plate's size, which for a plain plate is the batch's.

    Raises:
        InputError: on several latent sites, dimensions that are not independent given x, a latent that is not
            reparameterised, or a batch of one.
    """

    reparameterised = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        estimator: Estimator = "weighted",
        num_data: int | None = None,
    ):
        super().__init__()
        self.alpha, self.beta, self.gamma = (
            not_negative(name, value) for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma))
        )
        self.estimator = one_of("estimator", estimator, ["weighted", "stratified"])
        self.num_data = None if num_data is None else positive_int("num_data", num_data)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        terms = self.terms(model, guide, positional(args, kwargs))
        if len(terms.guide) != 1:
            raise InputError(f"{self!r} takes one latent site, but the guide samples {sorted(terms.guide)}; join them.")
        ((name, site),) = terms.guide.items()
        if site["mask"] is not None:
            raise InputError(f"{self!r} can't take the latent {name!r} under a mask; use objectives.Beta or FreeBits.")
        total = self.num_data or terms.layout.plate.full_size
        if not 1 < terms.num_data <= total:
            raise InputError(
                f"{self!r} compares the data of a batch, of 2 to num_data={total}, but the batch holds {terms.num_data}."
            )
        each = log_q_of_all(terms, _factors(self, name, site["fn"]), site)
        log_q = torch.diagonal(each.sum(-1))
        joint = log_aggregate(each.sum(-1), total, self.estimator)
        product = log_aggregate(each, total, self.estimator).sum(-1)
        log_p = terms.per_datum(log_prob(terms.model[name]))
        rate = self.alpha * (log_q - joint) + self.beta * (joint - product) + self.gamma * (product - log_p)
        return terms.total(terms.power(name) * rate - terms.reconstruction)


class InfoVAE(Objective):
    """E[log p(x | z)] − (1 − α) KL(q(z | x) ‖ p(z)) − (α + λ − 1) MMD²(q(z), p(z)) (Zhao et al. 2019, eq. 6).

    MMD² is the unbiased estimate (Gretton et al. 2012, eq. 3) between the batch's latents and as many draws of the
    prior, over all latent sites together.

    Args:
        alpha: α; at 1 the KL is gone.
        lambda_: λ.
        kernel: "rbf", exp(−‖a − b‖² / C), or "imq", C / (C + ‖a − b‖²), with C = 2 D for D latent dimensions.

    Raises:
        InputError: if a latent is not reparameterised, lies outside the plate over the data, or the batch holds one.
    """

    reparameterised = True

    def __init__(self, alpha: float = 0.0, lambda_: float = 10.0, kernel: Kernel = "rbf"):
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha <= 1:
            raise InputError(f"alpha={alpha!r} must be a number of at most 1.")
        self.alpha = float(alpha)
        self.lambda_ = positive("lambda_", lambda_)
        if self.alpha + self.lambda_ < 1:
            raise InputError(f"alpha={alpha!r} and lambda_={lambda_!r} must add up to at least 1.")
        self.kernel = one_of("kernel", kernel, ["rbf", "imq"])

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch = positional(args, kwargs)
        terms = self.terms(model, guide, batch)
        if terms.num_data < 2:
            raise InputError(f"{self!r} compares the data of a batch, of at least 2, but the batch holds 1.")
        posterior = {name: site for name, site in terms.guide.items() if name in terms.model}
        prior = draws_of_prior(terms, model, batch)
        a, b = side_by_side(terms, posterior), side_by_side(terms, prior)
        far = mmd(a, b, self.kernel) + score_of_prior(terms, prior, a, b, self.kernel)
        # As a divergence of the batch, it is tempered as the latents are.
        power = max((terms.power(name) for name in posterior), key=lambda p: isinstance(p, torch.Tensor))
        loss = (self.alpha + self.lambda_ - 1) * terms.total(power * far.expand(terms.num_data))
        if self.alpha != 1:
            kl = sum(terms.total(terms.power(name) * terms.kl(name)) for name in terms.guide)
            loss = loss + (1 - self.alpha) * kl
        return loss - terms.total(terms.reconstruction)


class WAE(InfoVAE):
    """E[log p(x | z)] − λ MMD²(q(z), p(z)), the Wasserstein autoencoder (Tolstikhin et al. 2018, eq. 4).

    This is InfoVAE at α = 1.

    Args:
        lambda_: λ.
        kernel: "rbf" or "imq", see InfoVAE.
    """

    def __init__(self, lambda_: float = 10.0, kernel: Kernel = "imq"):
        super().__init__(alpha=1.0, lambda_=lambda_, kernel=kernel)


# --- the aggregate posterior ----------------------------------------------------------------------------------------------


def log_q_of_all(terms: Terms, q: Any, site: Site) -> torch.Tensor:
    """log q(z_nj | x_m) for all pairs of data and each dimension, (N, M, D)."""
    event_dim = site["fn"].event_dim
    at = site["value"].dim() - event_dim + terms.layout.plate.dim
    moved = site["value"].unsqueeze(0).transpose(0, at + 1)  # (N, ..., 1, *event)
    values = q.log_prob(moved)
    return values.movedim(values.dim() - event_dim + terms.layout.plate.dim, 1).unsqueeze(-1).flatten(2)


def log_aggregate(log_q: torch.Tensor, num_data: int, estimator: Estimator) -> torch.Tensor:
    """log q(z_n) of the mixture over all data, estimated from a batch that holds datum n.

    Weighted: log 1/(M num_data) Σ_m q(z_n | x_m) (Chen et al. 2018, eq. S4). Stratified: the datum itself by 1/num_data,
    one other by what is left over, and M − 2 others by 1/(M − 1), which is unbiased before the log (eq. S6).

    Args:
        log_q: log q(z_n | x_m), (N, M, ...) with M = N.
        num_data: how many data there are in all.
        estimator: which.

    Returns:
        shape (N, ...).
    """
    size = log_q.shape[1]
    if estimator == "weighted":
        return log_q.logsumexp(1) - math.log(size * num_data)
    others = size - 1
    row = log_q.new_full((size,), 1 / others)
    row[0], row[1] = 1 / num_data, (num_data - others) / (num_data * others)
    place = torch.arange(size, device=log_q.device)
    weight = row[(place[None, :] - place[:, None]) % size]  # row 0 for the datum itself, row 1 for the next
    return (log_q + weight.log().reshape(weight.shape + (1,) * (log_q.dim() - 2))).logsumexp(1)


# --- maximum mean discrepancy ---------------------------------------------------------------------------------------------


def mmd(a: torch.Tensor, b: torch.Tensor, kernel: Kernel = "rbf") -> torch.Tensor:
    """MMD² between two samples, unbiased: mean k(a, a') + mean k(b, b') − 2 mean k(a, b) (Gretton et al. 2012, eq. 3).

    Args:
        a: shape (N, D).
        b: shape (M, D).
        kernel: "rbf", exp(−‖a − b‖² / C), or "imq", C / (C + ‖a − b‖²), with C = 2 D.

    Returns:
        a number that is 0 in expectation if both come from one distribution, and may be below.
    """

    def among(points: torch.Tensor) -> torch.Tensor:
        n = len(points)
        return (kernel_values(points, points, kernel).sum() - n) / (n * (n - 1))  # a point's kernel with itself is 1

    return among(a) + among(b) - 2 * kernel_values(a, b, kernel).mean()


def kernel_values(left: torch.Tensor, right: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """k(left_n, right_m), (N, M), of points (N, D) and (M, D)."""
    squared = (left[:, None] - right[None]).square().sum(-1) / (2 * left.shape[-1])
    return torch.exp(-squared) if kernel == "rbf" else 1 / (1 + squared)


def score_of_prior(
    terms: Terms, sites: Sites, a: torch.Tensor, b: torch.Tensor, kernel: Kernel
) -> torch.Tensor | float:
    """Zero, with the gradient that MMD² has by way of the prior's draws that are not reparameterised, as a mixture's.

    ∇ E[MMD²] = E[Σ_m c_m ∇log p(b_m)] with c_m all terms of the estimate in which b_m stands.
    """
    scores = [terms.per_datum(log_prob(site)) for site in sites.values() if not site["fn"].has_rsample]
    if not scores or not torch.is_grad_enabled():
        return 0.0
    n = len(b)
    share = (kernel_values(b, b, kernel).sum(1) - 1) / (n - 1) - kernel_values(a, b, kernel).mean(0)
    surrogate = (2 / n * share.detach() * sum(scores)).sum()
    return surrogate - surrogate.detach()


def draws_of_prior(terms: Terms, model: Program, batch: Batch) -> Sites:
    """The latents' sites with values from p(z); a model of several is run once more."""
    if len(terms.model) == 1:
        ((name, site),) = terms.model.items()
        fn = site["fn"]
        return {name: {**site, "value": fn.rsample() if fn.has_rsample else fn.sample()}}
    return sample_sites(poutine.trace(model).get_trace(*batch), observed=False)


def side_by_side(terms: Terms, sites: Sites) -> torch.Tensor:
    """All latents of each datum in a row, (N, D)."""
    return torch.cat([by_datum(terms, site["value"], site["fn"].event_dim) for site in sites.values()], -1)


def by_datum(terms: Terms, value: torch.Tensor, event_dim: int) -> torch.Tensor:
    """A tensor (..., N, ..., *event) with all but the data's dimension in a row, (N, D)."""
    moved = value.movedim(value.dim() - event_dim + terms.layout.plate.dim, 0)
    return moved.reshape(len(moved), -1).expand(terms.num_data, -1)


def _factors(objective: Objective, name: str, fn: Any) -> Any:
    """The distribution of a site's single dimensions."""
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if base.event_shape:
        raise InputError(
            f"{objective!r} takes dimensions apart, but those of the site {name!r} depend on each other under "
            f"{family(fn)}; use guides.MeanField() and priors.StandardNormal(), or objectives.Beta or FreeBits(per='site')."
        )
    return base


def _part(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise InputError(f"{name}={value!r} must be a number above 0 and at most 1.")
    return float(value)
