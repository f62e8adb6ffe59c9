"""Use of latents against closed forms on factor analysis, and collapse that is named.

There the aggregate posterior of the exact guide is the prior, so I(x; z) is the mean KL, and total correlation and
dimension-wise KL are 0. Seeds are fixed; each test says how often it would fail by chance.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import InputError, Pair, elbo_terms, guides, latent_use, priors
from pyro_vae.inference.dimensions import dimension_kl, marginal_log_probs
from tests.component_table import vae
from tests.conftest import random_states
from tests.linear_gaussian import LinearGaussian


def test_kl_per_dimension_is_the_closed_form(linear_gaussian):
    x = linear_gaussian.data(300)
    use = latent_use(linear_gaussian.exact_pair(), x)
    exact = linear_gaussian.posterior(x)
    spread = linear_gaussian.posterior_cov.diagonal()
    per_datum = 0.5 * (spread + exact.mean**2 - 1 - spread.log())
    torch.testing.assert_close(use.kl["z"], per_datum.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(use.kl_stderr["z"], per_datum.std(0) / math.sqrt(300), rtol=1e-10, atol=1e-10)


def test_rate_and_distortion_are_the_closed_forms_for_a_wrong_guide(linear_gaussian):
    x = linear_gaussian.data(200)
    use = latent_use(linear_gaussian.poor_pair(), x, num_samples=200)
    scale = 1.6 * linear_gaussian.posterior_cov.diagonal().sqrt()
    mean = linear_gaussian.posterior(x).mean + 0.2
    rate = (0.5 * (scale**2 + mean**2 - 1) - scale.log()).sum(-1)
    assert use.rate == pytest.approx(rate.mean().item(), abs=1e-10)  # in closed form, no draws
    bound = linear_gaussian.marginal().log_prob(x) - linear_gaussian.kl_of_poor_guide(x)
    distortion = -(bound + rate).mean().item()
    assert use.distortion == pytest.approx(distortion, abs=0.05)  # 40,000 draws of a spread of about 2
    terms = elbo_terms(linear_gaussian.poor_pair(), x, 100)
    assert use.rate + use.distortion == pytest.approx(-terms.elbo, abs=0.1)


def test_stated_errors_cover(linear_gaussian):
    """The population's KL per dimension lies within 1.96 standard errors in about 95 % of 150 data sets of 200.

    Between 91.1 and 98.9 %, three standard errors of so many repetitions: wrong in 1 of 370 seeds.
    """
    exact = -0.5 * linear_gaussian.posterior_cov.diagonal().log()
    pair, inside = linear_gaussian.exact_pair(), 0
    for seed in range(150):
        use = latent_use(pair, linear_gaussian.data(200, seed=1000 + seed), 2, max_aggregated=2)
        inside += ((use.kl["z"] - exact).abs() <= 1.96 * use.kl_stderr["z"]).sum().item()
    assert 0.911 <= inside / 300 <= 0.989


def test_bounds_enclose_what_the_aggregate_posterior_is_known_to_be(linear_gaussian):
    """Each bound within 4 standard errors of its side, and closer as data are added (fails in 1 of 5,000 seeds)."""
    exact, gaps = -0.5 * torch.logdet(linear_gaussian.posterior_cov).item(), []
    for size in (100, 1500):
        use = latent_use(linear_gaussian.exact_pair(), linear_gaussian.data(size), max_aggregated=size)
        mutual, correlation, dimension = use.mutual_information, use.total_correlation, use.dimension_kl
        assert mutual.lower - 4 * mutual.lower_stderr < exact < mutual.upper + 4 * mutual.upper_stderr
        assert mutual.lower <= mutual.upper + 1e-9
        for bounds in (correlation, dimension):  # both are 0
            assert bounds.lower <= 4 * bounds.lower_stderr
            assert bounds.upper >= 0
        gaps.append(correlation.upper - correlation.lower)
    assert gaps[1] < gaps[0] / 3
    assert abs(mutual.lower - exact) < 4 * mutual.lower_stderr


def test_lower_bound_is_at_most_the_log_of_the_data(linear_gaussian):
    sharp = LinearGaussian(latent_dim=2, data_dim=5)
    sharp.noise = sharp.noise / 1000

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(sharp.posterior(x).mean, 1e-3).to_event(1))

    use = latent_use(Pair(sharp.model, guide), sharp.data(60))
    assert use.mutual_information.lower == pytest.approx(math.log(60), abs=1e-3)
    assert use.mutual_information.upper == pytest.approx(use.rate)


def test_total_correlation_and_dimension_kl_of_a_known_aggregate():
    """q(z | x) = N(x, 0.3² I) for x ~ N(0, C): the aggregate is N(0, C + 0.09 I), whose divergences are closed forms."""
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.5]]).double()
    x = dist.MultivariateNormal(torch.zeros(2).double(), cov).sample((1500,))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.3).to_event(1))

    whole = cov + 0.09 * torch.eye(2).double()
    diagonal = whole.diagonal()
    correlation = 0.5 * (diagonal.log().sum() - torch.logdet(whole)).item()
    dimension = 0.5 * (diagonal - 1 - diagonal.log()).sum().item()
    information = 0.5 * (torch.logdet(whole) - 2 * math.log(0.09)).item()
    use = latent_use(Pair(model, guide), x, max_aggregated=1500)
    for bounds, exact in (
        (use.total_correlation, correlation),
        (use.dimension_kl, dimension),
        (use.mutual_information, information),
    ):
        assert bounds.lower - 4 * bounds.lower_stderr < exact < bounds.upper + 4 * bounds.upper_stderr
    assert use.total_correlation.upper - use.total_correlation.lower < 0.15


def test_collapsed_dimensions_are_named(linear_gaussian):
    def guide(x):
        exact = linear_gaussian.posterior(x)
        on = torch.tensor([1.0, 0.0]).double()
        scale = torch.stack([linear_gaussian.posterior_cov[0, 0].sqrt(), torch.tensor(1.0).double()])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.mean * on, scale).to_event(1))

    use = latent_use(Pair(linear_gaussian.model, guide), linear_gaussian.data(200))
    assert use.collapsed == ("z[1]",)
    assert use.active["z"].tolist() == [True, False]
    assert use.num_active == 1
    assert "FreeBits" in str(use)  # what to try, as half of the dimensions are gone
    assert not latent_use(linear_gaussian.exact_pair(), linear_gaussian.data(200)).advice


def test_activity_without_a_mean_in_closed_form_is_not_inflated_by_draws():
    """A guide that ignores x has activity 0, though each datum's mean over 4 draws varies by 1 / 4."""

    class NoMean(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def program(x, observe):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NoMean(torch.zeros(len(x)), 1.0))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    use = latent_use(Pair(lambda x: program(x, True), lambda x: program(x, False)), torch.randn(2000), num_samples=4)
    assert use.activity["z"] < 5 * 0.25 * math.sqrt(2 / 2000)  # 5 standard errors
    assert use.kl["z"].abs() < 1e-6


@pytest.mark.parametrize(
    "q",
    [
        dist.Normal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])).to_event(1),
        dist.MultivariateNormal(torch.tensor([0.3, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]])),
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])),
            dist.Normal(torch.tensor([[0.0, 1.0], [2.0, -1.0]]), torch.tensor([[1.0, 0.5], [0.7, 1.0]])).to_event(1),
        ),
    ],
)
def test_marginals_integrate_the_joint_density(q):
    """The second dimension integrated out by sums over a fine grid."""
    grid = torch.linspace(-12, 12, 4001)
    at = torch.tensor(0.7)
    points = torch.stack([at.expand_as(grid), grid], -1)
    integral = (q.log_prob(points).exp().sum() * (grid[1] - grid[0])).log()
    marginal = marginal_log_probs(q, torch.tensor([0.7, 0.0]))
    torch.testing.assert_close(marginal[0], integral, rtol=1e-4, atol=1e-4)
    p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    draws = q.expand([20000]).sample() if q.batch_shape else q.sample((20000,))
    kl, _ = dimension_kl(q.expand([20000]), p, draws)
    log_ratio = marginal_log_probs(q.expand([20000]), draws) - marginal_log_probs(p, draws)
    error = 5 * log_ratio.std(0) / math.sqrt(20000)
    assert ((kl.mean(0) - log_ratio.mean(0)).abs() <= error).all()


@pytest.mark.parametrize("guide", [guides.Planar(), guides.InverseAutoregressive(hidden=[8], context=3)])
def test_what_is_not_known_is_left_out_and_said(guide):
    use = latent_use(vae(guide=guide), torch.rand(50, 4).round())
    assert use.kl == {}
    assert "not known" in str(use)
    assert (use.mutual_information is None) == isinstance(guide, guides.Planar)


def test_learned_priors_have_marginals_and_no_state_is_touched():
    pair, x = vae(prior=priors.Mixture(components=3)), torch.rand(50, 4).round()
    before = random_states()
    use = latent_use(pair, x)
    assert before == random_states()
    assert use.kl["z"].shape == (2,)


@pytest.mark.parametrize("arguments", [{"num_samples": 1}, {"max_aggregated": 1}])
def test_bad_input_is_named(linear_gaussian, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        latent_use(linear_gaussian.exact_pair(), linear_gaussian.data(5), **arguments)


def test_the_figure_has_a_bar_for_each_dimension(linear_gaussian):
    (axes,) = latent_use(linear_gaussian.exact_pair(), linear_gaussian.data(50)).plot().axes
    assert len(axes.patches) == 2


def test_kl_per_dimension_of_a_wrong_guide_is_the_closed_form(linear_gaussian):
    x = linear_gaussian.data(200)
    scale = 1.6 * linear_gaussian.posterior_cov.diagonal().sqrt()
    mean = linear_gaussian.posterior(x).mean + 0.2
    use = latent_use(linear_gaussian.poor_pair(), x)
    wanted = (0.5 * (scale**2 + mean**2 - 1) - scale.log()).mean(0)
    torch.testing.assert_close(use.kl["z"], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(use.activity["z"], mean.var(0), rtol=1e-10, atol=1e-10)
