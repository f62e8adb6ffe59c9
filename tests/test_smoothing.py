"""Pareto-smoothed weights: the same as an independent computation, and nearer to the truth where the tail is heavy."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto

from pyro_vae import Pair, log_likelihood
from pyro_vae.inference.diagnostics import pareto_khat, smoothed_tail, tail_length
from pyro_vae.inference.estimates import smoothed_sum

F64 = torch.float64


def test_smoothed_weights_are_the_quantiles_of_the_fitted_distribution():
    """Pyro's fit and SciPy's quantiles, one datum at a time."""
    stats = pytest.importorskip("scipy.stats")
    log_w = 2 * torch.randn(400, 3, dtype=F64)
    tail = log_w.topk(tail_length(400) + 1, dim=0).values
    smooth = smoothed_tail(tail)
    for n in range(3):
        weights = tail[:, n].exp().sort().values
        k, sigma = fit_generalized_pareto(weights[1:] - weights[0])
        size = len(weights) - 1
        levels = (torch.arange(1, size + 1, dtype=F64) - 0.5) / size
        expected = weights[0] + torch.from_numpy(stats.genpareto.ppf(levels.numpy(), float(k), scale=float(sigma)))
        torch.testing.assert_close(smooth[:, n].exp(), expected.clamp(max=weights[-1].item()), rtol=1e-8, atol=1e-8)


def test_the_smoothed_sum_replaces_the_tail_and_nothing_else():
    log_w = 2 * torch.randn(300, 4, dtype=F64)
    tail = log_w.topk(tail_length(300) + 1, dim=0).values
    khat = pareto_khat(tail)
    body = log_w.sort(dim=0).values[: -(len(tail) - 1)]
    expected = torch.cat([body, smoothed_tail(tail)]).logsumexp(0)
    assert (khat > 0.5).all()
    torch.testing.assert_close(smoothed_sum(log_w.logsumexp(0), tail, khat), expected)
    unasked = torch.tensor([0.9, 0.1, 0.9, math.nan])
    kept = smoothed_sum(log_w.logsumexp(0), tail, unasked)
    torch.testing.assert_close(kept[[1, 3]], log_w.logsumexp(0)[[1, 3]], rtol=0, atol=0)
    torch.testing.assert_close(kept[[0, 2]], expected[[0, 2]])


def narrow(scale: float) -> Pair:
    """z ~ N(0, 1), x | z ~ N(z, 1), and a guide whose scale is a share of the posterior's: k = 1 − scale²."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale * math.sqrt(0.5)))

    return Pair(model, guide)


def test_smoothing_reduces_the_error_where_the_variance_is_infinite():
    """1000 repetitions of 200 samples at k = 0.64: the root mean square error of p(x) / exact falls by a tenth or more."""
    x = torch.zeros(1000, dtype=F64)
    result = log_likelihood(narrow(0.6), x, 200)
    exact = dist.Normal(torch.zeros((), dtype=F64), math.sqrt(2)).log_prob(x)
    assert result.smoothed is not None
    asked = result.khat > 0.5
    assert 0.3 < asked.double().mean() < 1
    assert torch.equal(result.smoothed[~asked], result.values[~asked])
    plain, smooth = (((v - exact).exp() - 1)[asked].square().mean().sqrt() for v in (result.values, result.smoothed))
    assert smooth < 0.9 * plain
    assert "Pareto-smoothed" in result._repr_html_()


def test_nothing_is_smoothed_where_the_weights_are_light_tailed():
    result = log_likelihood(narrow(1.1), torch.zeros(20, dtype=F64), 500)
    assert result.smoothed is None
    assert result.smoothed_mean == result.mean
