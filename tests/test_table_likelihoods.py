"""Likelihoods of a table's columns against SciPy and brute force: other units, levels in order, rounded counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as stats
import torch

from pyro_vae import likelihoods
from pyro_vae.distributions.rounded import RoundedLogistic, level_log_probs
from pyro_vae.errors import InputError

sigmoid = stats.logistic.cdf


def built(likelihood, size=1):
    return likelihood.build(event_shape=torch.Size([size])).double()


def test_an_affine_has_the_density_of_its_units():
    """Normal, Student's t and Gamma moved and stretched, and a log-normal, by SciPy."""
    a, x = np.linspace(-1, 1, 7), np.linspace(0.2, 9, 7)
    for likelihood, expected in (
        (likelihoods.Standardized(likelihoods.Normal(0.7), 40.0, 13.0), stats.norm(40 + 13 * a, 13 * 0.7)),
        (likelihoods.Standardized(likelihoods.StudentT(4.0, 0.7), 40.0, 13.0), stats.t(4, 40 + 13 * a, 13 * 0.7)),
        (likelihoods.Standardized(likelihoods.Laplace(0.7), 40.0, 13.0), stats.laplace(40 + 13 * a, 13 * 0.7)),
        (
            likelihoods.Standardized(likelihoods.Gamma(2.5), 0.0, 13.0),
            stats.gamma(2.5, scale=13 * np.logaddexp(0, a) / 2.5),
        ),
        (
            likelihoods.Standardized(likelihoods.Normal(0.7), 1.5, 0.4, "log"),
            stats.lognorm(0.4 * 0.7, scale=np.exp(1.5 + 0.4 * a)),
        ),
    ):
        p = built(likelihood)(torch.from_numpy(a)[:, None])
        np.testing.assert_allclose(p.log_prob(torch.from_numpy(x)[:, None]).numpy(), expected.logpdf(x), rtol=1e-9)
        np.testing.assert_allclose(p.mean[:, 0].numpy(), expected.mean(), rtol=1e-9)
        np.testing.assert_allclose(p.variance[:, 0].numpy(), expected.var(), rtol=1e-9)


def test_scores_change_by_the_jacobian_alone_when_units_change():
    """Centimetres in place of metres: log p falls by log 100 for each column, and nothing else."""
    metres = built(likelihoods.Standardized(likelihoods.Normal(0.5), 1.7, 0.1))
    centimetres = built(likelihoods.Standardized(likelihoods.Normal(0.5), 170.0, 10.0))
    params, x = torch.randn(9, 1).double(), 1.7 + 0.1 * torch.randn(9, 1).double()
    torch.testing.assert_close(centimetres(params).log_prob(100 * x), metres(params).log_prob(x) - math.log(100))
    torch.testing.assert_close(centimetres.as_input(100 * x), metres.as_input(x))


@pytest.mark.parametrize("thresholds", ["shared", "per datum"])
def test_levels_are_differences_of_a_distribution_function(thresholds):
    likelihood = built(likelihoods.Ordinal(4, thresholds))
    with torch.no_grad():
        likelihood.raw_thresholds.add_(torch.randn_like(likelihood.raw_thresholds))
    params = 2 * torch.randn(6, *likelihood.params_shape).double()
    raw = likelihood.raw_thresholds[:, 0].detach().expand(6, 3)
    raw = raw + params[:, 1:] if thresholds == "per datum" else raw
    raw = raw.numpy()
    theta = np.cumsum(np.concatenate([raw[:, :1], np.logaddexp(0, raw[:, 1:]) + 1e-4], 1), 1)
    below = sigmoid(theta - params[:, :1].numpy())
    expected = np.diff(np.concatenate([np.zeros((6, 1)), below, np.ones((6, 1))], 1))
    p = likelihood(params)
    got = torch.stack([p.log_prob(torch.full((6, 1), float(level)).double()).exp() for level in range(4)], -1)
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-9)


def test_all_levels_are_alike_at_the_start():
    p = built(likelihoods.Ordinal(5))(torch.zeros(1, 1).double())
    torch.testing.assert_close(p.base_dist.probs, torch.full((1, 1, 5), 0.2).double(), rtol=1e-3, atol=1e-3)


def test_levels_keep_their_gradient_far_from_the_location():
    """100 units away the probability underflows; its logarithm and its gradient do not."""
    location = torch.tensor([100.0, -100.0], requires_grad=True)
    log_p = level_log_probs(location, torch.tensor([-1.0, 0.0, 1.0]).expand(2, 3))
    assert log_p.isfinite().all()
    torch.testing.assert_close(log_p[0, 0].item(), -101.0, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(log_p.sum(), location)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_the_encoder_reads_levels_as_a_thermometer():
    likelihood = built(likelihoods.Ordinal(4))
    codes = likelihood.as_input(torch.tensor([[0.0], [1.0], [3.0]]).double())
    assert codes.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    free = likelihood.pseudo_input(torch.randn(5, 3).double())
    assert (free.diff(dim=-1) <= 0).all()


def test_rounded_counts_have_the_mass_of_their_bins_and_sum_to_one():
    loc, scale = torch.tensor([-2.0, 0.3, 7.6]).double(), torch.tensor([0.5, 1.5, 0.2]).double()
    p = RoundedLogistic(loc, scale)
    k = torch.arange(200).double()[:, None].expand(200, 3)
    mass = p.log_prob(k).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(3).double())
    high, low = (k.numpy() + 0.5 - loc.numpy()) / scale.numpy(), (k.numpy() - 0.5 - loc.numpy()) / scale.numpy()
    expected = np.where(k.numpy() == 0, sigmoid(high), sigmoid(high) - sigmoid(low))
    np.testing.assert_allclose(mass.numpy(), expected, atol=1e-12)
    assert p.mode.tolist() == mass.argmax(0).double().tolist()


def test_rounded_counts_are_drawn_as_scored():
    """30,000 draws of each, mass against share within 5 standard errors (false alarm below 1e-4)."""
    p = RoundedLogistic(torch.tensor([0.3, 4.4]), torch.tensor([1.5, 0.6]))
    x = p.sample((30_000,))
    for k in range(8):
        share, mass = (x == k).double().mean(0), p.log_prob(torch.full((2,), float(k))).exp().double()
        assert ((share - mass).abs() < 5 * (mass * (1 - mass) / 30_000).sqrt() + 1e-6).all()


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.0, 6.0])
def test_rounded_counts_have_the_mean_of_their_masses(scale):
    loc = torch.tensor([-3.0, 0.0, 0.4, 2.5, 9.7, 40.2]).double()
    p = RoundedLogistic(loc, torch.full_like(loc, scale))
    k = torch.arange(600).double()[:, None].expand(600, 6)
    torch.testing.assert_close(p.mean, (k * p.log_prob(k).exp()).sum(0), rtol=1e-4, atol=2e-4)


def test_a_softplus_normal_integrates_to_one_and_has_the_mean_claimed():
    """By the trapezoidal rule on a fine grid, in units of 3."""
    base = likelihoods.Normal(0.7)
    likelihood = built(likelihoods.Standardized(base, 0.4, 1.5, "softplus", 3.0))
    p = likelihood(torch.tensor([[-1.0], [0.8]]).double())
    x = torch.linspace(1e-9, 60, 400_001).double()
    density = p.expand((len(x), 2)).log_prob(x[:, None, None].expand(-1, 2, 1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones(2).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.trapezoid(density * x[:, None], x, dim=0), p.mean[:, 0], rtol=1e-4, atol=0)
    drawn = p.sample((20_000,))[..., 0]
    assert ((drawn.mean(0) - p.mean[:, 0]).abs() < 5 * drawn.std(0) / 20_000**0.5).all()


def test_rounded_counts_start_near_the_mean_asked():
    likelihood = built(likelihoods.RoundedLogistic(5.0, 2.0), 3)
    mean = torch.tensor([0.8, 4.0, 30.0]).double()
    p = likelihood(likelihood.start(mean))
    k = torch.arange(400).double()
    mass = torch.stack([p.base_dist.log_prob(v.expand(3)).exp() for v in k])
    torch.testing.assert_close((k[:, None] * mass).sum(0), mean, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.Standardized(likelihoods.Bernoulli()), "must be a likelihood of real numbers"),
        (lambda: likelihoods.Standardized(likelihoods.Gamma(), loc=1.0), "must be a likelihood of real numbers"),
        (lambda: likelihoods.Standardized(likelihoods.Columns()), "must be a likelihood of real numbers"),
        (lambda: likelihoods.Standardized(scale=0.0), "scale=0.0 must be a positive number"),
        (lambda: likelihoods.Standardized(loc=math.nan), "loc=nan must be a finite number"),
        (lambda: likelihoods.Standardized(likelihoods.Normal().build(event_shape=torch.Size([1]))), "in no model yet"),
        (lambda: likelihoods.Ordinal(1), "levels=1 must be at least 2"),
        (lambda: likelihoods.Ordinal(3, "per value"), "thresholds='per value' is not known"),
        (lambda: likelihoods.RoundedLogistic(unit=-1.0), "unit=-1.0 must be a positive number"),
        (lambda: likelihoods.Columns([likelihoods.Normal()], schema=[{}, {}]), "schema describes 2 columns"),
    ],
)
def test_arguments_without_meaning_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
