"""New parts for trained models: what is shared, what is refused, and a prior fitted afterwards."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import fit, fit_prior, generate, guides, likelihoods, log_likelihood, networks, priors
from pyro_vae.errors import InputError
from pyro_vae.runs.saving import build
from pyro_vae.runs.specs import spec
from tests.component_table import vae


def test_replace_shares_what_stays():
    old = vae(prior=priors.Vamp(3))
    new = old.replace(likelihood=likelihoods.ContinuousBernoulli())
    assert new.encoder is old.encoder
    assert new.decoder is old.decoder
    assert new.name != old.name
    assert new.prior.free_inputs is old.prior.free_inputs
    assert repr(old.likelihood) == "Bernoulli()"
    assert repr(build(spec(new))) == repr(new)
    x = torch.rand(6, 4)
    fit(new, x, epochs=1, progress=False)
    with torch.no_grad():  # the shared prior looks through the new VAE's guide, the old one's through the old
        assert new.prior.posterior.__self__ is new
        assert old.prior.posterior.__self__ is old


def test_replaced_guides_and_likelihoods_must_fit_the_networks():
    old = vae()
    with pytest.raises(InputError, match=r"encoder has out_shape=\(4,\).*want \(5,\).*encoder=\.\.\."):
        old.replace(guide=guides.FullCovariance())
    new = old.replace(guide=guides.FullCovariance(), encoder=networks.MLP([3]))
    assert new.decoder is old.decoder
    assert log_likelihood(new, torch.rand(5, 4).round(), 5).values.isfinite().all()
    with pytest.raises(InputError, match=r"decoder has out_shape"):
        old.replace(likelihood=likelihoods.Normal("per datum"))
    with pytest.raises(InputError, match="part='priors' is not known. Did you mean 'prior'"):
        old.replace(priors=priors.Mixture())
    with pytest.raises(InputError, match="simplex"):
        old.replace(prior=priors.LogisticNormal())
    with pytest.raises(InputError, match="already built"):
        old.replace(prior=old.prior)
    per_datum = old.replace(guide=guides.PerDatum(steps=2))
    assert per_datum.encoder is old.encoder
    assert per_datum.replace(guide=guides.MeanField()).encoder is not None


def test_a_prior_fitted_afterwards_finds_where_the_codes_lie():
    """Two far clusters of codes, in a VAE whose guide and decoder stay: the mixture's likelihood of the codes is the best
    that a mixture has, and the score on held-out data rises by many standard errors."""
    torch.manual_seed(0)
    pair = vae((2,), 2, likelihood=likelihoods.Normal(0.1), encoder=networks.MLP([]), decoder=networks.MLP([]))
    with torch.no_grad():
        pair.decoder.layers[-1].weight.copy_(torch.eye(2))
        pair.decoder.layers[-1].bias.zero_()
        pair.encoder.layers[-1].weight.copy_(torch.cat([torch.eye(2), torch.zeros(2, 2)]))
        pair.encoder.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, -2.3, -2.3]))  # scale about 0.1
    centres = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])[torch.randint(2, (2000,))]
    x = centres + 0.2 * torch.randn(2000, 2)
    kept = copy.deepcopy(pair.state_dict())
    found = fit_prior(pair, x[:1500], priors.Mixture(2, spread=2.0), test=x[1500:], num_samples=100, epochs=60, lr=0.05)
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), pair.state_dict().values(), strict=True))
    assert all(parameter.requires_grad for parameter in pair.parameters())
    assert found.vae.decoder is pair.decoder
    assert found.gain > 5
    assert found.gain > 10 * found.stderr
    assert found.gain == pytest.approx(found.after - found.before, abs=1e-6)
    at = found.vae.prior.loc.detach()
    torch.testing.assert_close(at[at[:, 0].argsort()], torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), atol=0.1, rtol=0)
    # −E_q[log p(z)] of the mixture with the codes' own centres and spread, to two standard errors of its noise.
    best = dist.Normal(0.0, (0.2**2 + 0.1**2) ** 0.5).entropy() * 2 + torch.tensor(2.0).log()
    assert found.history[-1]["loss"] == pytest.approx(best.item(), abs=0.15)
    assert (generate(found.vae, 200).abs() - 3).abs().median() < 0.5
    assert "a gain of" in str(found)


def test_what_has_nothing_to_learn_is_refused():
    with pytest.raises(InputError, match="nothing to learn"):
        fit_prior(vae(), torch.rand(5, 4).round(), priors.StandardNormal())
    with pytest.raises(InputError, match=r"vae=3 must be a pyro_vae\.VAE"):
        fit_prior(3, torch.rand(5, 4), priors.Mixture())
