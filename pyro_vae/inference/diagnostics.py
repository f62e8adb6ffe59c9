"""Whether an importance-sampled estimate can be believed: Pareto k-hat and effective sample size per datum."""

from __future__ import annotations

import math

import torch


def tail_length(num_samples: int) -> int:
    """How many of K weights count as the tail: min(K / 5, 3 √K) (Vehtari et al. 2024, section 2.4)."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def pareto_khat(log_tail: torch.Tensor) -> torch.Tensor:
    """Shape k of a generalised Pareto distribution fitted to each datum's largest weights.

    Below 0.5 the weights have a finite variance, above 0.7 the estimate should not be trusted at practical sample
    sizes (Vehtari et al. 2024, "Pareto smoothed importance sampling"). The fit is that of Zhang & Stephens (2009)
    with Vehtari et al.'s weak prior towards 0.5, as in `pyro.ops.stats.fit_generalized_pareto`, for all data at once.

    Args:
        log_tail: the M + 1 largest log-weights of each datum, (M + 1, N), in any order; the smallest is the threshold.

    Returns:
        k-hat, (N,), in float64: 0 where all the tail's weights are equal, NaN if M < 5.
    """
    log_tail = log_tail.double().sort(dim=0).values
    if len(log_tail) < 6:
        return log_tail.new_full(log_tail.shape[1:], math.nan)
    excess, flat = _excess(log_tail)
    k, _ = _fit_generalised_pareto(excess)
    return torch.where(flat, torch.zeros_like(k), k)


def smoothed_tail(log_tail: torch.Tensor) -> torch.Tensor:
    """The M largest log-weights of each datum, replaced by the expected order statistics of the fitted distribution
    and cut off at the largest weight that was drawn (Vehtari et al. 2024, section 2.3).

    Args:
        log_tail: as in `pareto_khat`, M at least 5.

    Returns:
        (M, N) in float64, ascending; the weights themselves where they are all equal.
    """
    log_tail = log_tail.double().sort(dim=0).values
    excess, flat = _excess(log_tail)
    k, sigma = _fit_generalised_pareto(excess)
    size = excess.shape[1]
    upper = 1 - (torch.arange(1, size + 1, dtype=k.dtype, device=k.device) - 0.5)[:, None] / size  # P(above), (M, 1)
    beyond = torch.where(k.abs() < 1e-8, -upper.log(), torch.expm1(-k * upper.log()) / k) * sigma  # quantiles
    threshold = (log_tail[0] - log_tail[-1]).exp()
    smooth = (threshold + beyond).log().clamp(max=0.0) + log_tail[-1]
    return torch.where(flat, log_tail[1:], smooth)


def _excess(log_tail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights beyond the threshold in units of the largest, (N, M) ascending, and for which data they are all equal."""
    weights = (log_tail - log_tail[-1]).exp()
    excess = (weights[1:] - weights[0]).T
    flat = excess[:, -1] <= 1e-12
    ranks = torch.arange(1, excess.shape[1] + 1, dtype=excess.dtype, device=excess.device)
    return torch.where(flat[:, None], ranks, excess), flat


def _fit_generalised_pareto(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """k and σ of each row of x, (N, M) ascending (Zhang & Stephens 2009; the sign of k is that of Vehtari et al.)."""
    size = x.shape[1]
    grid = 30 + int(math.sqrt(size))
    steps = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device)
    quartile = x[:, int(size / 4 - 0.5), None].clamp_min(torch.finfo(x.dtype).tiny)
    b = (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile) + 1 / x[:, -1:]  # (N, grid)
    k = torch.stack([torch.log1p(-column[:, None] * x).mean(-1) for column in b.unbind(-1)], dim=-1)
    log_likelihood = size * ((-b / k).log() - (k + 1))
    b = (log_likelihood.softmax(-1) * b).sum(-1)
    k = torch.log1p(-b[:, None] * x).mean(-1)
    return (k * size + 5) / (size + 10), -k / b


def effective_sample_size(log_sum: torch.Tensor, log_sum_squares: torch.Tensor) -> torch.Tensor:
    """(Σ w)² / Σ w² of each datum, from log Σ w and log Σ w², (N,): between 1 and K (Kong 1992)."""
    return (2 * log_sum - log_sum_squares).exp()
