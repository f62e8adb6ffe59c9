"""Approximation and amortization gaps: closed forms on factor analysis, and never worse than the encoder."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Annealing, Pair, gaps, guides, likelihoods, log_likelihood, networks
from pyro_vae.errors import InputError
from pyro_vae.inference.best_member import Optimizer, Search
from pyro_vae.inference.family import Shifted, members
from pyro_vae.inference.importance import find_layout
from pyro_vae.pair import evaluating
from tests.linear_gaussian import LinearGaussian
from tests.test_annealing import mixture

F64 = torch.float64
FACTORS = LinearGaussian(latent_dim=3, data_dim=4, seed=3)
X = FACTORS.data(8)
EXACT = FACTORS.marginal().log_prob(X)
PRECISION = torch.linalg.inv(FACTORS.posterior_cov)
#: KL(q* ‖ p) of the best mean-field q*, whose precisions are the diagonal of the posterior's (Bishop 2006, eq. 10.12).
MEAN_FIELD_GAP = 0.5 * (PRECISION.diagonal().log().sum() - torch.logdet(PRECISION))


def mean_field(loc_off: float, scale: float) -> Pair:
    """Mean field, off the best member by an offset and a factor."""

    def guide(x):
        best = PRECISION.diagonal().rsqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(FACTORS.posterior(x).mean + loc_off, scale * best).to_event(1))

    return Pair(FACTORS.model, guide)


def full_covariance(x):
    tril = 1.4 * torch.linalg.cholesky(FACTORS.posterior_cov)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(FACTORS.posterior(x).mean + 0.2, scale_tril=tril))


def search(pair, x=X, **settings):
    return gaps(pair, x, **({"log_p": EXACT, "compile": "graph", "steps": 50, "num_samples": 200} | settings))


def test_mean_field_leaves_the_closed_form():
    """Approximation gap: ½ (Σ log Λ_dd − log |Λ|). Amortization gap: what the wrong guide's KL holds above it."""
    result = search(mean_field(0.2, 1.5))
    assert MEAN_FIELD_GAP > 0.3
    error = result.approximation_stderr.square().sum().sqrt().item() / len(X)
    assert abs(result.approximation.mean() - MEAN_FIELD_GAP) < 4 * error + 2e-3  # which the search may leave
    q = torch.distributions.MultivariateNormal(
        FACTORS.posterior(X).mean + 0.2, scale_tril=torch.diag(1.5 * PRECISION.diagonal().rsqrt())
    )
    kl = torch.distributions.kl_divergence(q, FACTORS.posterior(X))
    error = result.inference_stderr.square().sum().sqrt().item() / len(X)
    assert abs((result.inference - kl).mean()) < 4 * error
    torch.testing.assert_close(result.inference, result.approximation + result.amortization)
    assert result.converged.all()


def test_full_covariance_leaves_nothing():
    result = search(Pair(FACTORS.model, full_covariance), steps=120)
    assert result.approximation.abs().max() < 0.03  # a search ends where a further cycle gains 0.01
    assert result.approximation.mean().abs() < 0.01
    assert result.amortization.min() > 0.1


def test_the_exact_posterior_leaves_nothing_to_either():
    result = search(FACTORS.exact_pair())
    for gap in (result.approximation, result.amortization, result.inference):
        assert gap.abs().max() < 2e-3


class Linear(nn.Module):
    """A linear encoder set to the best mean-field member for every x."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(4, 3, dtype=F64)
        with torch.no_grad():
            self.loc.weight.copy_(FACTORS.gain)
            self.loc.bias.copy_(-FACTORS.gain @ FACTORS.bias)
        self.log_scale = nn.Parameter(-PRECISION.diagonal().log() / 2)

    def guide(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))


def test_the_exact_linear_encoder_leaves_no_amortization_gap():
    encoder = Linear()
    before = [p.detach().clone() for p in encoder.parameters()]
    result = search(Pair(FACTORS.model, encoder.guide))
    assert result.amortization.max() < 2e-3
    assert (result.amortization >= 0).all()
    assert all(torch.equal(p, b) for p, b in zip(encoder.parameters(), before, strict=True))


def test_the_search_never_ends_worse_than_it_starts():
    """A rate that is far too high throws every datum off; the encoder's member is kept."""
    result = search(mean_field(0.0, 1.0), lr=50.0, steps=5)
    assert (result.amortization >= 0).all()
    assert (result.best >= result.elbo).all()


def test_log_p_is_the_tighter_of_two_estimates():
    """From a guide that is far off, annealing gives more than 50 samples do."""
    pair, x = mean_field(0.6, 0.5), X[:5]
    result = gaps(pair, x, num_samples=50, steps=2, annealing=Annealing(30, leapfrog_steps=3), compile="eager")
    plain = log_likelihood(pair, x, 50)
    assert result.method == "annealed"
    assert result.log_likelihood.mean() > plain.mean
    assert abs((result.log_likelihood - EXACT[:5]).mean()) < abs(plain.mean - EXACT[:5].mean())


def test_only_what_is_learned_is_freed():
    """A guide with a fixed scale is a family of locations; without anything learned all parameters are free."""
    net = nn.Linear(4, 2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

    pair = Pair(guide, guide)
    free, notes = members(pair, (torch.randn(3, 4),))
    assert [one.key for one in free] == [("z", "base_dist", "loc")]
    assert free[0].shape == (3, 2)
    assert notes == ()
    free, _ = members(mean_field(0.0, 1.0), (X,))
    assert [one.key[-1] for one in free] == ["loc", "scale"]


@pytest.mark.parametrize("family", ["FullCovariance", "LowRank", "Mixture", "InverseAutoregressive"])
def test_families_of_the_library_improve(family):
    """Each is opened, shifted and put back: no shift changes nothing, and the search improves on an untrained encoder."""
    vae = VAE((4,), 2, guide=getattr(guides, family)(), likelihood=likelihoods.Normal(scale=0.5),
              decoder=networks.MLP([])).double()  # fmt: skip
    x = X[:6]
    free, notes = members(vae, (x,))
    assert bool(notes) == (family == "InverseAutoregressive")
    with torch.no_grad():
        q = pyro.poutine.trace(vae.guide).get_trace(x).nodes["z"]["fn"]
        with Shifted({one.key: torch.zeros(one.shape, dtype=F64) for one in free}):
            same = pyro.poutine.trace(vae.guide).get_trace(x).nodes["z"]["fn"]
        z = torch.randn(6, 2, dtype=F64)
        torch.testing.assert_close(same.log_prob(z), q.log_prob(z), rtol=1e-5, atol=1e-6)
    settings = Optimizer(steps=20, most_cycles=1)
    with evaluating(vae):
        search = Search(vae, (x,), find_layout(vae, (x,)), settings, "eager", 10_000)
        gain = search.bounds(search.run(), 100, seed=1).mean(0) - search.bounds(search.start(), 100, seed=1).mean(0)
    assert gain.mean() > 0.1


def test_result_prints_and_saves(tmp_path):
    result = search(mean_field(0.0, 1.0), steps=2)
    assert "approximation gap" in str(result)
    assert "search converged" in result._repr_html_()
    result.save(tmp_path / "g.json")
    assert len(json.loads((tmp_path / "g.json").read_text())["amortization"]) == len(X)


def test_bad_input_is_refused():
    pair, x, _ = mixture()
    with pytest.raises(InputError, match="'c'"):
        gaps(pair, x)
    with pytest.raises(InputError, match="log_p has shape"):
        search(mean_field(0.0, 1.0), log_p=EXACT[:3], steps=1)
    with pytest.raises(InputError, match="steps=0"):
        search(mean_field(0.0, 1.0), steps=0)
