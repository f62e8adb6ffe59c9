"""Bounds of log p(x) made of importance weights, and the gradients that were found for them.

Losses are summed over the batch, in nats: loss = −Σ_n scale · bound_n, where the factors that a subsampled plate and
`poutine.scale` put on all sites stay outside the log-sum-exp.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine

from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.importance import Layout, per_datum
from pyro_vae.objectives.base import Objective, Program, not_negative, positional
from pyro_vae.objectives.weights import Leaves, Weights
from pyro_vae.pair import Batch, sample_sites


def log_mean_exp(log_w: torch.Tensor) -> torch.Tensor:
    """log 1/K Σ_k w_k over the first dimension."""
    return log_w.logsumexp(0) - math.log(len(log_w))


class _Weighted(Objective):
    """A bound made of each datum's log-weights, (K, N)."""

    is_bound = True
    leaves: Leaves = "none"
    num_samples: int

    @property
    def draws(self) -> int:
        """K, draws per datum."""
        return self.num_samples

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        """The bound per datum in nats, (N,)."""
        return log_mean_exp(log_w)

    def surrogate(self, weights: Weights) -> torch.Tensor | None:
        """What has the objective's gradient, summed over data; None if that is the bound itself."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch = positional(args, kwargs)
        weights = self.weights(model, guide, batch, self.draws, self.leaves)
        value = weights.total(self.bound(weights.log_w))
        surrogate = self.surrogate(weights) if torch.is_grad_enabled() else None
        if surrogate is None:
            return -value
        return -(value.detach() + (surrogate - surrogate.detach()))


class IWAE(_Weighted):
    """log 1/K Σ_k w_k with w_k = p(x, z_k) / q(z_k | x), z_k ~ q (Burda et al. 2016, eq. 8).

    Args:
        num_samples: K; 1 is the ELBO.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    reparameterised = True

    def __init__(self, num_samples: int = 5):
        super().__init__()
        self.num_samples = positive_int("num_samples", num_samples)


class Renyi(_Weighted):
    """1/(1 − α) · log 1/K Σ_k w_k^(1−α) (Li & Turner 2016, eq. 9), a bound of log p(x) for α ≥ 0.

    Args:
        alpha: α; 0 is IWAE, 1 the ELBO.
        num_samples: K.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    reparameterised = True

    def __init__(self, alpha: float = 0.5, num_samples: int = 5):
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise InputError(f"alpha={alpha!r} must be a finite number.")
        self.alpha = float(alpha)
        self.num_samples = positive_int("num_samples", num_samples)
        self.is_bound = self.alpha >= 0

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        if self.alpha == 1:
            return log_w.mean(0)
        return log_mean_exp((1 - self.alpha) * log_w) / (1 - self.alpha)


class DReG(IWAE):
    """IWAE's bound with the doubly reparameterised gradient for the guide (Tucker et al. 2019, eq. 8).

    ∇_φ = Σ_k w̃_k² ∂log w_k/∂z_k · ∂z_k/∂φ, w̃ the normalised weights: no score term, whose noise grows with K. The
    model's gradient is IWAE's.

    Args:
        num_samples: K.

    Raises:
        InputError: if a latent is not reparameterised or lies outside the plate over the data, or the guide can't
            say log q at given values.
    """

    leaves = "both"

    def surrogate(self, weights: Weights) -> torch.Tensor:
        share = weights.log_w.detach().softmax(0)
        total = weights.total(share * weights.log_p) + weights.path(share**2 * weights.log_w)
        if weights.score is not weights.log_q:  # tempered: the score of what log w leaves out of log q
            total = total + weights.total(share * (weights.score - weights.log_q))
        return total


class StickingTheLanding(_Weighted):
    """The ELBO with the guide's gradient by way of the draws alone (Roeder et al. 2017, eq. 8).

    ∇_φ = 1/K Σ_k ∂log w_k/∂z_k · ∂z_k/∂φ, without noise where the guide is exact.

    Args:
        num_samples: K, draws that are averaged.

    Raises:
        InputError: if a latent is not reparameterised or lies outside the plate over the data, or the guide can't
            say log q at given values.
    """

    leaves = "both"
    reparameterised = True

    def __init__(self, num_samples: int = 1):
        super().__init__()
        self.num_samples = positive_int("num_samples", num_samples)

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return log_w.mean(0)

    def surrogate(self, weights: Weights) -> torch.Tensor:
        return weights.total(weights.log_p.mean(0)) + weights.path(weights.log_w.mean(0))


class MIWAE(_Weighted):
    """1/M Σ_m log 1/K Σ_k w_mk: M bounds of K draws each (Rainforth et al. 2018, section 4).

    Args:
        M: how many bounds are averaged; more make the guide's gradient less noisy.
        K: draws in each; more make the bound tighter.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    reparameterised = True

    def __init__(self, M: int = 4, K: int = 4):  # noqa: N803
        super().__init__()
        self.M, self.K = positive_int("M", M), positive_int("K", K)

    @property
    def draws(self) -> int:
        return self.M * self.K

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return log_mean_exp(log_w.unflatten(0, (self.K, self.M))).mean(0)


class PIWAE(MIWAE):
    """The model by IWAE(M·K), the guide by MIWAE(M, K) (Rainforth et al. 2018, section 4).

    The value is the model's, log 1/(MK) Σ_mk w_mk.

    Args:
        M: how many bounds are averaged for the guide.
        K: draws in each of them.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    leaves = "model"

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return log_mean_exp(log_w)

    def surrogate(self, weights: Weights) -> torch.Tensor:
        log_w = weights.log_w.detach()
        share = log_w.softmax(0)
        part = log_w.unflatten(0, (self.K, self.M)).softmax(0).flatten(0, 1) / self.M
        model = weights.total(share * weights.log_p)
        return model + weights.path(part * weights.log_p) - weights.total(part * weights.log_q)


class CIWAE(IWAE):
    """β ELBO + (1 − β) IWAE(K), at the same draws (Rainforth et al. 2018, section 4).

    Args:
        beta: β from 0 to 1.
        num_samples: K.

    Raises:
        InputError: if a latent is not reparameterised, or lies outside the plate over the data.
    """

    def __init__(self, beta: float = 0.5, num_samples: int = 5):
        super().__init__(num_samples)
        self.beta = not_negative("beta", beta)
        if self.beta > 1:
            raise InputError(f"beta={beta!r} must be a number from 0 to 1.")

    def bound(self, log_w: torch.Tensor) -> torch.Tensor:
        return self.beta * log_w.mean(0) + (1 - self.beta) * log_mean_exp(log_w)


class VIMCO(_Weighted):
    """IWAE's bound for latents of any kind, discrete ones too (Mnih & Rezende 2016, eq. 10).

    ∇_φ = Σ_k (L − L_−k) ∇log q(z_k | x) − Σ_k w̃_k ∇log q(z_k | x), where L_−k has w_k replaced by the geometric mean
    of the others.

    Args:
        num_samples: K, at least 2.

    Raises:
        InputError: if a site lies outside the plate over the data, or the guide can't say log q at given values.
    """

    leaves = "both"

    def __init__(self, num_samples: int = 5):
        super().__init__()
        self.num_samples = positive_int("num_samples", num_samples)
        if num_samples < 2:
            raise InputError("num_samples=1 leaves VIMCO no other draws to compare with; use at least 2.")

    def surrogate(self, weights: Weights) -> torch.Tensor:
        log_w = weights.log_w.detach()
        others = (log_w.sum(0) - log_w) / (self.num_samples - 1)
        without = torch.where(_diagonal(log_w), others[:, None], log_w[None])  # (k left out, K, N)
        signal = log_mean_exp(log_w) - log_mean_exp(without.movedim(1, 0))
        return weights.total(signal * weights.score) + weights.total(self.bound(weights.log_w))


def _diagonal(log_w: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(log_w), dtype=torch.bool, device=log_w.device)[:, :, None]


class ReweightedWakeSleep(_Weighted):
    """The model by IWAE's gradient, the guide by Σ_k w̃_k ∇log q(z_k | x) (Bornschein & Bengio 2015, eq. 6 and 9).

    Weights are normalised per datum. In the sleep phase the guide learns from x and z that the model dreams. Latents
    of any kind will do. The value is IWAE's bound; the guide minimises another thing.

    Args:
        num_samples: K.
        sleep: from 0, only the wake phase, to 1, only the sleep phase, for the guide.

    Raises:
        InputError: if a site lies outside the plate over the data, the guide can't say log q at given values, or, for
            sleep above 0, the model's observations don't make up a batch.
    """

    leaves = "both"

    def __init__(self, num_samples: int = 5, sleep: float = 0.0):
        super().__init__()
        self.num_samples = positive_int("num_samples", num_samples)
        self.sleep = not_negative("sleep", sleep)
        if self.sleep > 1:
            raise InputError(f"sleep={sleep!r} must be a number from 0 to 1.")

    def surrogate(self, weights: Weights) -> torch.Tensor:
        share = weights.log_w.detach().softmax(0)
        return weights.total(share * (weights.log_p + (1 - self.sleep) * weights.score))

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        if not self.sleep or not torch.is_grad_enabled():
            return loss
        dreamt = self.sleep * self._log_q_of_dreams(model, guide, args)
        return loss - (dreamt - dreamt.detach())

    def _log_q_of_dreams(self, model: Program, guide: Program, batch: Batch) -> torch.Tensor:
        """Σ_n log q(z_n | x_n) for x_n, z_n from the model."""
        layout: Layout = self.layout(model, guide, batch)
        with torch.no_grad(), poutine.block():
            dream = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*batch), observed=False)
        seen = {name: site for name, site in dream.items() if site["infer"].get("was_observed")}
        sizes = [site["value"].numel() for site in seen.values()]
        if sizes != [batch[0].numel()]:
            raise InputError(
                f"{self!r} must feed what the model dreams to the guide, but the observed sites {list(seen)} are not the "
                "batch's first tensor; use sleep=0."
            )
        x = next(iter(seen.values()))["value"].reshape(batch[0].shape).to(batch[0].dtype)
        values = {name: site["value"] for name, site in dream.items() if name not in seen}
        trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(x, *batch[1:])
        sites = {name: site for name, site in sample_sites(trace, observed=True).items() if name in values}
        scale = next(iter(seen.values()))["scale"]
        return (scale * per_datum(sites, layout, 1, len(batch[0]), fold=False)[0]).sum()
