"""Latents outside the plate over the data: paid for once an epoch, and predictive scores given their draws."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import Annealing, Pair, elbo_terms, encode, fit, log_likelihood, objectives, reconstruct
from pyro_vae.errors import InputError
from pyro_vae.inference.estimates import log_mean_error
from pyro_vae.inference.global_latents import draw_globals, given, global_latents
from pyro_vae.pair import kept_random_state

F64 = torch.float64


class SharedMean(nn.Module):
    """w ~ N(0, 10²), x_n ~ N(w, 1): the posterior of w has the standard deviation 1 / √(0.01 + N)."""

    def __init__(self, scaled_by_hand: int = 0, subsampled: int = 0):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.scaled_by_hand, self.subsampled = scaled_by_hand, subsampled

    def share(self, x):
        return poutine.scale(scale=len(x) / self.scaled_by_hand if self.scaled_by_hand else 1.0)

    def model(self, x):
        with self.share(x):
            w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.plate("data", self.subsampled or len(x), subsample=x if self.subsampled else None):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(self, x):
        pyro.module("shared", self)
        with self.share(x):
            pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()))


@pytest.mark.parametrize(
    ("pair", "objective"),
    [
        (SharedMean(), objectives.ELBO(4)),
        (SharedMean(), objectives.MeanFieldELBO(4)),
        (SharedMean(scaled_by_hand=100), objectives.ELBO(4)),
        (SharedMean(subsampled=100), objectives.ELBO(4)),
    ],
    ids=["plain", "closed KL", "by hand", "plate"],
)
def test_the_whole_set_pays_for_a_global_latent_once(pair, objective):
    """Trained in batches of 20 of 100 data, q(w) has the posterior's width, 0.1; if each batch paid all, it would be 0.22.
    Programs that scale by themselves, or by a subsampled plate, are left alone."""
    with kept_random_state(seed=0):
        x = torch.randn(100) + 2
    with torch.no_grad():
        pair.loc.fill_(x.mean())
        pair.log_scale.fill_(math.log(0.14))
    result = fit(
        pair, x, epochs=15, batch_size=20, lr=0.03, schedule="cosine", seed=0, progress=False, objective=objective
    )
    exact = 1 / math.sqrt(0.01 + 100)
    assert abs(pair.log_scale.exp().item() - exact) < 0.2 * exact
    evidence = dist.MultivariateNormal(torch.zeros(100), torch.eye(100) + 100 * torch.ones(100, 100)).log_prob(x) / 100
    assert abs(result.history[-1]["loss"] + evidence) < 0.05
    assert abs(elbo_terms(pair, x, 20).elbo + result.history[-1]["loss"]) < 0.05


def test_captured_steps_take_the_share_of_their_own_batch():
    """A last batch of another size, captured: the same losses as eagerly."""
    with kept_random_state(seed=1):
        x = torch.randn(25)
    losses = []
    for how in ("eager", "graph"):
        pyro.clear_param_store()
        losses.append([row["loss"] for row in fit(SharedMean(), x, epochs=4, batch_size=10, seed=0, compile=how,
                                                  progress=False).history])  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- scores given draws -----------------------------------------------------------------------------------------------


def shared_shift():
    """w ~ N(0, 1) for all, z_n ~ N(w, 1), x_n ~ N(z_n, 0.5²); q(w) = N(0.7, 0.3²), and q(z_n | x_n, w) is exact."""
    variance = 1 / (1 + 4)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        w = pyro.sample("w", dist.Normal(torch.tensor(0.7, dtype=F64), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(variance * (w + 4 * x), variance**0.5))

    return Pair(model, guide)


X = torch.tensor([-1.0, 0.5, 3.0], dtype=F64)


def test_predictive_scores_are_averages_over_the_draws():
    """Given w the guide is exact, so that one sample gives N(x; w, 1.25): the average over the 8 draws to ten digits."""
    pair = shared_shift()
    assert global_latents(pair, (X,)) == ("w",)
    result = log_likelihood(pair, X, 1, num_global=8, seed=5)
    with kept_random_state(seed=5 + 3_000_003):
        w = torch.stack([draw_globals(pair, (X,), ["w"])["w"] for _ in range(8)])
    each = dist.Normal(w[:, None], math.sqrt(1.25)).log_prob(X)
    torch.testing.assert_close(result.values, each.logsumexp(0) - math.log(8), rtol=0, atol=1e-10)
    torch.testing.assert_close(result.mc_stderr, log_mean_error(each))
    assert "predictive: averaged over 8 draws of 'w'" in str(result)


def test_predictive_scores_near_the_closed_form():
    """Over q(w) the predictive is N(0.7, 1.25 + 0.09); 30 draws, 5 standard errors."""
    result = log_likelihood(shared_shift(), X, 1, num_global=30)
    exact = dist.Normal(torch.tensor(0.7, dtype=F64), math.sqrt(1.34)).log_prob(X)
    assert ((result.values - exact).abs() < 5 * result.mc_stderr).all()


def test_annealed_scores_are_predictive_too():
    result = log_likelihood(shared_shift(), X, 2, num_global=2, method="annealed", annealing=Annealing(2), seed=5)
    plain = log_likelihood(shared_shift(), X, 1, num_global=2, seed=5)
    torch.testing.assert_close(result.values, plain.values, rtol=0, atol=1e-8)


def test_encode_and_reconstruct_take_values_of_the_global_latents():
    pair, w = shared_shift(), {"w": torch.tensor(-2.0, dtype=F64)}
    posterior = encode(pair, X, given=w)
    torch.testing.assert_close(posterior.mean, (w["w"] + 4 * X) / 5)
    assert encode(pair, X, seed=0).mean.shape == (3,)
    assert torch.equal(encode(pair, X, seed=0).mean, encode(pair, X, seed=0).mean)
    means = torch.stack([reconstruct(pair, X, given=w, seed=s) for s in range(200)]).mean(0)
    assert ((means - posterior.mean).abs() < 5 * 0.45 / 200**0.5).all()
    with pytest.raises(InputError, match=r"given=\['v'\]"):
        encode(pair, X, given={"v": w["w"]})


def test_given_values_leave_no_trace_of_the_latent():
    pair = given(shared_shift(), {"w": torch.tensor(1.0, dtype=F64)})
    assert "w" not in poutine.trace(pair.model).get_trace(X).nodes
    assert global_latents(pair, (X,)) == ()
