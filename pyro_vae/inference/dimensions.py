"""Densities of single latent dimensions: the terms that a distribution's log density adds up from, or its marginals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributions as torch_dist
from torch.distributions import kl_divergence


def marginal_log_probs(fn: Any, value: torch.Tensor) -> torch.Tensor | None:
    """log of each dimension's marginal density at `value`, (*batch, *event); None where it is not known.

    Args:
        fn: a distribution; known are products of one-dimensional ones, multivariate normals, and mixtures of those.
        value: (*batch, *event).
    """
    if hasattr(fn, "base_dist") and type(fn).__name__ == "MaskedDistribution":
        return marginal_log_probs(fn.base_dist, value)
    if isinstance(fn, torch_dist.Independent):
        inner = fn.base_dist
        return inner.log_prob(value) if not inner.event_shape else None
    if isinstance(fn, torch_dist.MixtureSameFamily):
        event = len(fn.event_shape)
        inner = marginal_log_probs(fn.component_distribution, value.unsqueeze(-event - 1))
        if inner is None:
            return None
        weights = fn.mixture_distribution.logits.log_softmax(-1)
        return (inner + weights.reshape(*weights.shape, *(1,) * event)).logsumexp(-event - 1)
    normal = marginal_normal(fn)
    if normal is not None:
        return normal.log_prob(value)
    return fn.log_prob(value) if not fn.event_shape else None


def marginal_normal(fn: Any) -> Any:
    """The dimensions' marginals where they are normal, batch shape (*batch, *event); None where not."""
    if isinstance(fn, torch_dist.Independent):
        return fn.base_dist if isinstance(fn.base_dist, torch_dist.Normal) else None
    if isinstance(fn, (torch_dist.MultivariateNormal, torch_dist.LowRankMultivariateNormal)):
        return torch_dist.Normal(fn.mean, fn.variance.sqrt(), validate_args=False)
    return fn if isinstance(fn, torch_dist.Normal) else None


def dimension_kl(q: Any, p: Any, value: torch.Tensor) -> tuple[torch.Tensor, bool] | None:
    """KL(q_d ‖ p_d) of each dimension's marginals in nats, (*batch, *event), and whether in closed form.

    Without a closed form it is log q_d − log p_d at the draw `value`, whose mean over draws is the KL. None if either
    marginal is not known.
    """
    q_normal, p_normal = marginal_normal(q), marginal_normal(p)
    if q_normal is not None and p_normal is not None:
        return kl_divergence(q_normal, p_normal).expand(value.shape), True
    log_q, log_p = marginal_log_probs(q, value), marginal_log_probs(p, value)
    if log_q is None or log_p is None:
        return None
    return (log_q - log_p).expand(value.shape), False


def factorises(fn: Any) -> bool:
    """Whether dimensions are independent, so that their marginals say all."""
    if hasattr(fn, "base_dist") and type(fn).__name__ == "MaskedDistribution":
        return factorises(fn.base_dist)
    if isinstance(fn, torch_dist.Independent):
        return not fn.base_dist.event_shape
    return not fn.event_shape or math.prod(fn.event_shape) == 1
