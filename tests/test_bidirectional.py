"""Bounds from both sides: they hold the exact value, and close."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Annealing, Pair, bidirectional
from pyro_vae.errors import InputError
from pyro_vae.inference.bidirectional import simulate
from pyro_vae.pair import kept_random_state
from tests.linear_gaussian import LinearGaussian
from tests.test_annealing import F64, gamma_poisson, mixture, state_space


@pytest.fixture(scope="module")
def closed():
    """100 simulated data of factor analysis, bounded from a wrong guide: as many independent runs."""
    model = LinearGaussian(latent_dim=2, data_dim=5)
    result = bidirectional(
        model.poor_pair(), model.data(100), 24, annealing=Annealing(40, leapfrog_steps=3), compile="graph"
    )
    return result, model.marginal().log_prob(result.x)


def test_bounds_enclose_the_exact_value(closed):
    """At 99 % at most 3 of 100 runs fall outside (false alarms 2 %)."""
    result, exact = closed
    assert ((result.lower <= exact) & (exact <= result.upper)).sum() >= 97
    assert (result.lower < result.forward).all()
    assert (result.upper > result.reverse).all()


def test_bounds_close(closed):
    """Both means lie within 0.02 nats of the exact one, and so does the gap, with half of that as its error."""
    result, exact = closed
    for estimate in (result.forward, result.reverse):
        assert abs((estimate - exact).mean()) < 0.02
    assert abs(result.gap) < 0.02
    assert result.gap_stderr < 0.01


def test_too_few_temperatures_leave_a_gap():
    """Three temperatures from the prior: the bounds are apart, on their own sides of the exact value."""
    model = LinearGaussian(latent_dim=2, data_dim=5)
    result = bidirectional(
        model.poor_pair(), model.data(200), 2, annealing=Annealing(3, "prior", leapfrog_steps=2), compile="eager"
    )
    exact = model.marginal().log_prob(result.x)
    assert (result.forward - exact).mean() < -0.2
    assert (result.reverse - exact).mean() > 0.2
    assert result.gap > 0.4


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_from_the_exact_guide_both_directions_give_the_evidence(linear_gaussian, start):
    """From the exact guide each weight is p(x); from the prior with T = 1 the reverse one is p(z, x) / p(z)."""
    x = linear_gaussian.data(5)
    result = bidirectional(
        linear_gaussian.exact_pair(), x, 2, annealing=Annealing(4 if start == "guide" else 1, start), compile="eager"
    )
    exact = linear_gaussian.marginal().log_prob(result.x)
    if start == "guide":
        torch.testing.assert_close(result.forward, exact, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.reverse, exact, rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(result.reverse_stderr, torch.zeros_like(exact), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [mixture, gamma_poisson])
def test_other_supports_and_discrete_latents(make):
    """The mean over 60 data of each bound lies within 4 standard errors of the exact one, plus the room for its bias."""
    pair, x, _ = make()
    x = x.repeat(5)
    result = bidirectional(pair, x, 16, annealing=Annealing(20, leapfrog_steps=3), compile="eager")
    exact = evidence_of(make, result.x)
    for estimate, error in ((result.forward, result.forward_stderr), (result.reverse, result.reverse_stderr)):
        off = (estimate - exact).mean()
        room = 4 * error.square().sum().sqrt() / len(exact) + error.square().mean()
        assert abs(off) < room


def evidence_of(make, x):
    if make is gamma_poisson:
        return dist.GammaPoisson(torch.tensor(2.5, dtype=F64), torch.tensor(0.7, dtype=F64)).log_prob(x)
    share = torch.tensor([0.3, 0.5, 0.2], dtype=F64)
    loc, scale = torch.tensor([-2.0, 0.0, 3.0], dtype=F64), torch.tensor([0.5, 1.0, 0.3], dtype=F64)
    return (share.log() + dist.Normal(loc, (scale**2 + 0.36).sqrt()).log_prob(x[:, None])).logsumexp(-1)


def test_given_posterior_draws_bound_the_data_themselves():
    """A linear-Gaussian state space, whose posterior is known: exact draws of it by conditioning the joint normal."""
    pair, x, exact = state_space()
    steps = x.shape[1]
    transition = torch.linalg.inv(torch.eye(steps, dtype=F64) - 0.8 * torch.diag(torch.ones(steps - 1, dtype=F64), -1))
    prior = transition @ transition.T
    gain = prior @ torch.linalg.inv(prior + 0.25 * torch.eye(steps, dtype=F64))
    with kept_random_state(seed=3):
        z = dist.MultivariateNormal(x @ gain.T, prior - gain @ prior).sample()
    latents = {f"z_{t}": z[:, t] for t in range(steps)}
    result = bidirectional(pair, x, 16, latents=latents, annealing=Annealing(20, leapfrog_steps=3), compile="eager")
    assert torch.equal(result.x, x)
    assert (result.lower <= exact).all()
    assert (exact <= result.upper).all()
    with pytest.raises(InputError, match="joined_outputs"):
        bidirectional(pair, x, 2, annealing=Annealing(2))


def test_simulated_data_follow_the_model():
    """x of (z, x) ~ p(z, x) has the model's moments, and z is what made it: x − z is the noise (5 standard errors)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 2.0))
            pyro.sample("x", dist.Normal(z + 1, 0.5), obs=x)

    with kept_random_state(seed=0):
        (x,), latents = simulate(Pair(model, model), (torch.zeros(20_000, dtype=F64),))
    assert abs(x.mean() - 1) < 5 * 2.06 / 20_000**0.5
    assert abs((x - latents["z"]).std() - 0.5) < 0.02
    assert abs(latents["z"].std() - 2) < 0.06


def test_result_prints_and_saves_without_the_data(closed, tmp_path):
    result, _ = closed
    assert "gap" in str(result)
    assert "the bounds are those of data that the model simulated" in result._repr_html_()
    result.save(tmp_path / "b.json")
    saved = json.loads((tmp_path / "b.json").read_text())
    assert len(saved["lower"]) == 100
    assert "x" not in saved


def test_bad_arguments_are_refused(linear_gaussian):
    pair, x = linear_gaussian.poor_pair(), linear_gaussian.data(3)
    for wrong in ({"num_chains": 1}, {"confidence": 1.0}, {"confidence": 95}):
        with pytest.raises(InputError):
            bidirectional(pair, x, **wrong)
