"""Annealed importance sampling: exact from the exact guide, unbiased from others, for latents of any shape and support."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Annealing, Pair, guides, likelihoods, log_likelihood, networks, priors
from pyro_vae.errors import InputError
from pyro_vae.inference import annealing
from pyro_vae.inference.annealing import respaced
from pyro_vae.inference.coordinates import Coordinates
from pyro_vae.inference.estimates import log_mean_error
from pyro_vae.inference.importance import Draws, find_layout
from pyro_vae.pair import kept_random_state, trace_pair
from tests.conftest import random_states
from tests.linear_gaussian import LinearGaussian

F64 = torch.float64


def annealed(pair, x, chains, temperatures, start="guide", compile="eager", seed=0, **settings):
    settings = Annealing(temperatures, start, **settings)
    return log_likelihood(pair, x, chains, method="annealed", annealing=settings, compile=compile, seed=seed)


def check_against(exact, result):
    """The mean over the data lies within 4 standard errors of the exact one (false alarms 6e-5), allowing for the
    bias of a logarithm, half its variance."""
    bias = result.mc_stderr.square().mean().item() / 2
    assert abs(result.mean - exact.mean().item() + bias) < 4 * result.mean_mc_stderr
    assert 0.5 < result.acceptance < 0.95


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperatures", [1, 6])
def test_chains_from_the_exact_posterior_give_the_evidence_with_one_chain(linear_gaussian, temperatures):
    x = linear_gaussian.data(7)
    result = annealed(linear_gaussian.exact_pair(), x, 1, temperatures)
    torch.testing.assert_close(result.values, linear_gaussian.marginal().log_prob(x), rtol=0, atol=1e-10)
    assert result.mc_stderr.isnan().all()


def test_one_temperature_is_importance_sampling_from_the_start(linear_gaussian):
    """With T = 1 nothing moves: log w = log p(x, z) − log q(z | x) at draws from q; the guide is drawn from once."""
    x, pair = linear_gaussian.data(5), linear_gaussian.poor_pair()
    plain = log_likelihood(pair, x, 20_000)
    result = annealed(pair, x, 20_000, 1)
    assert ((result.values - plain.values).abs() < 5 * (plain.mc_stderr**2 + result.mc_stderr**2).sqrt()).all()


@pytest.fixture(scope="module")
def repetitions():
    """300 data of factor analysis annealed at once from a wrong guide, with 64 chains: as many independent repetitions."""
    model = LinearGaussian(latent_dim=2, data_dim=5)
    x = model.data(300, seed=5)
    return model.marginal().log_prob(x), annealed(model.poor_pair(), x, 64, 24, leapfrog_steps=3, compile="graph")


def test_stated_errors_cover(repetitions):
    """Nominal 95 % intervals hold the exact value in 93 to 97 % of 300 repetitions."""
    exact, result = repetitions
    covered = ((result.values - exact).abs() < 1.96 * result.mc_stderr).double().mean().item()
    assert 0.93 <= covered <= 0.97
    check_against(exact, result)


def test_annealing_reduces_the_error_of_importance_sampling(linear_gaussian):
    x = linear_gaussian.data(20)
    plain = log_likelihood(linear_gaussian.poor_pair(), x, 16)
    result = annealed(linear_gaussian.poor_pair(), x, 16, 30, leapfrog_steps=3)
    assert result.mc_stderr.mean() < 0.5 * plain.mc_stderr.mean()


def test_from_the_prior_on_factor_analysis(linear_gaussian):
    x = linear_gaussian.data(20)
    check_against(linear_gaussian.marginal().log_prob(x), annealed(linear_gaussian.poor_pair(), x, 64, 20, "prior"))


# --- pairs whose evidence is known ------------------------------------------------------------------------------------


def mixture():
    """c ~ Categorical, z | c normal, x | z normal: p(x) is a mixture of three normals. The guide is wrong."""
    share = torch.tensor([0.3, 0.5, 0.2], dtype=F64)
    loc, scale, noise = torch.tensor([-2.0, 0.0, 3.0], dtype=F64), torch.tensor([0.5, 1.0, 0.3], dtype=F64), 0.6

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(share))
            z = pyro.sample("z", dist.Normal(loc[c], scale[c]))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.4, 0.4, 0.2], dtype=F64)))
            pyro.sample("z", dist.Normal(0.7 * x + 0.1 * loc[c], 0.9))

    x = torch.linspace(-4, 4, 12, dtype=F64)
    parts = dist.Normal(loc, (scale**2 + noise**2).sqrt()).log_prob(x[:, None])
    return Pair(model, guide), x, (share.log() + parts).logsumexp(-1)


def gamma_poisson():
    """z ~ Gamma, x ~ Poisson(z): p(x) is negative binomial. z is positive."""
    shape, rate = torch.tensor(2.5, dtype=F64), torch.tensor(0.7, dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(shape, rate))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal((x + 1).log(), 0.8))

    x = torch.arange(12, dtype=F64)
    return Pair(model, guide), x, dist.GammaPoisson(shape, rate).log_prob(x)


def dirichlet_multinomial():
    """z ~ Dirichlet, x ~ Multinomial(z). z lies on the simplex: three coordinates for four entries."""
    concentration = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(concentration))
            pyro.sample("x", dist.Multinomial(10, probs=z, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(0.6 * x + 1))

    evidence = dist.DirichletMultinomial(concentration, 10)
    with kept_random_state(seed=1):
        x = evidence.sample((12,))
    return Pair(model, guide), x, evidence.log_prob(x)


def state_space(steps=4):
    """z_t = 0.8 z_{t−1} + e, x_t = z_t + d over time, one site a step: p(x) is a normal of T dimensions."""

    def latents(x, mean):
        previous = torch.zeros((), dtype=F64)
        for t in range(steps):
            previous = pyro.sample(f"z_{t}", mean(previous, x[:, t]))
            yield t, previous

    def model(x):
        with pyro.plate("data", len(x)):
            for t, z in latents(x, lambda z, _: dist.Normal(0.8 * z, 1.0)):
                pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            list(latents(x, lambda z, x_t: dist.Normal(0.3 * z + 0.5 * x_t, 0.7)))

    transition = torch.linalg.inv(torch.eye(steps, dtype=F64) - 0.8 * torch.diag(torch.ones(steps - 1, dtype=F64), -1))
    evidence = dist.MultivariateNormal(
        torch.zeros(steps, dtype=F64), transition @ transition.T + 0.25 * torch.eye(steps)
    )
    with kept_random_state(seed=2):
        x = evidence.sample((12,))
    return Pair(model, guide), x, evidence.log_prob(x)


KNOWN = [(mixture, "guide"), (mixture, "prior"), (gamma_poisson, "guide"), (dirichlet_multinomial, "guide"),
         (dirichlet_multinomial, "prior"), (state_space, "guide"), (state_space, "prior")]  # fmt: skip


@pytest.mark.parametrize(("make", "start"), KNOWN, ids=[f"{make.__name__} from the {start}" for make, start in KNOWN])
def test_known_evidence(make, start):
    pair, x, exact = make()
    check_against(exact, annealed(pair, x, 64, 20, start, leapfrog_steps=3))


def test_all_latents_discrete_is_exact_enumeration():
    """Nothing is left to anneal: p(x) = Σ_c p(c) p(x | c); two codes, the second in a plate of its own inside the data."""
    share, loc = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([-1.0, 2.0], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Categorical(share))
            with pyro.plate("pixels", 3, dim=-1):
                d = pyro.sample("d", dist.Categorical(share))
                pyro.sample("x", dist.Normal(loc[c] + loc[d], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("c", dist.Categorical(share))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("d", dist.Categorical(share))

    x = torch.randn(4, 3, dtype=F64)
    joint = dist.Normal(loc[:, None, None, None] + loc[:, None, None], 1.0).log_prob(x)  # c, d, data, pixels
    exact = (share.log()[:, None] + (share.log()[:, None, None] + joint).logsumexp(1).sum(-1)).logsumexp(0)
    for start in ("guide", "prior"):
        result = annealed(Pair(model, guide), x, 2, 5, start)
        torch.testing.assert_close(result.values, exact, rtol=0, atol=1e-10)


# --- however it is run ------------------------------------------------------------------------------------------------


def test_captured_chains_are_the_eager_ones():
    pair, x, _ = state_space(2)
    eager, captured = (annealed(pair, x, 4, 8, compile=how) for how in ("eager", "graph"))
    torch.testing.assert_close(captured.values, eager.values, rtol=1e-6, atol=1e-6)


def test_short_chunks_are_padded_and_left_out(linear_gaussian, monkeypatch):
    """Chunks of 3 for 7 data: each datum has its own estimate, in order."""
    x = linear_gaussian.data(7)
    exact = linear_gaussian.marginal().log_prob(x)
    monkeypatch.setattr(annealing, "bytes_per_draw", lambda *_: 1.0)
    with_chunks = log_likelihood(
        linear_gaussian.exact_pair(), x, 2, method="annealed", annealing=Annealing(3), max_memory=12, compile="eager"
    )
    torch.testing.assert_close(with_chunks.values, exact, rtol=0, atol=1e-10)


class OneBatchDimension(nn.Module):
    """Convolutions that take one batch dimension, so that chains are folded into the data."""

    def __init__(self):
        super().__init__()
        self.up = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 1, 4, 2, 1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.up(z), 1.0).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean((1, 2, 3))[:, None].expand(-1, 2), 1.2).to_event(1))


def test_folded_chains_agree_with_importance_sampling():
    pair, x = OneBatchDimension().double(), torch.randn(6, 1, 4, 4, dtype=F64)
    assert find_layout(pair, (x,)).fold_model
    plain, result = log_likelihood(pair, x, 20_000), annealed(pair, x, 64, 12, leapfrog_steps=3)
    assert abs(plain.mean - result.mean) < 4 * math.hypot(plain.mean_mc_stderr, result.mean_mc_stderr)


def test_components_on_the_simplex_agree_with_importance_sampling():
    vae = VAE((6,), 3, prior=priors.LogisticNormal(), guide=guides.LogisticNormal(), likelihood=likelihoods.Multinomial(),
              encoder=networks.MLP([8]), decoder=networks.MLP([8])).double()  # fmt: skip
    x = torch.randint(0, 4, (6, 6)).double()
    plain, result = log_likelihood(vae, x, 5000), annealed(vae, x, 64, 12, leapfrog_steps=3)
    assert abs(plain.mean - result.mean) < 4 * math.hypot(plain.mean_mc_stderr, result.mean_mc_stderr)


def test_nothing_outside_is_changed_and_a_seed_gives_the_same_numbers(linear_gaussian):
    x, before = linear_gaussian.data(3), random_states()
    first, again = (annealed(linear_gaussian.poor_pair(), x, 4, 5, seed=3) for _ in range(2))
    assert random_states() == before
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, annealed(linear_gaussian.poor_pair(), x, 4, 5, seed=4).values)


def test_result_prints_shows_and_saves(linear_gaussian, tmp_path):
    import json

    result = annealed(linear_gaussian.poor_pair(), linear_gaussian.data(3), 4, 5)
    assert "4 chains" in str(result)
    assert "nats per datum" in str(result)
    assert "<table>" in result._repr_html_()
    assert "acceptance" in result._repr_html_()
    result.save(tmp_path / "a.json")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["method"] == "annealed"
    assert saved["values"] == pytest.approx(result.values.tolist())
    assert saved["khat"] == [None] * 3


# --- the parts --------------------------------------------------------------------------------------------------------


def test_coordinates_go_there_and_back_with_the_jacobian():
    """Two latents of other shapes and supports: values survive the round trip, and log |det dz/du| is that of autograd."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("parts", 2, dim=-1):
                b = pyro.sample("b", dist.Gamma(torch.ones((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(a.sum(-1) + b.sum(-1, keepdim=True), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("a", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("parts", 2, dim=-1):
                pyro.sample("b", dist.Gamma(torch.ones((), dtype=F64), 1.0))

    pair, x = Pair(model, guide), torch.randn(4, 1, dtype=F64)
    layout = find_layout(pair, (x,))
    coordinates = Coordinates(trace_pair(pair, (x[:3],))[1], layout)
    values, _ = Draws(pair, (x,), layout).draw(5)
    u = coordinates.pack(values)
    assert u.shape == (5, 4, 2 + 2)
    back, log_det = coordinates.unpack(u)
    for name, value in values.items():
        torch.testing.assert_close(back[name], value)

    def flat(v):  # a without its last entry, then b
        there, _ = coordinates.unpack(v.reshape(1, 1, 4))
        return torch.cat([there["a"].flatten()[:2], there["b"].flatten()])

    for k, n in ((0, 0), (4, 3)):
        jacobian = torch.autograd.functional.jacobian(flat, u[k, n])
        torch.testing.assert_close(log_det[k, n], torch.linalg.slogdet(jacobian)[1])


def test_temperatures_are_spaced_by_the_spread():
    """Where the spread is 1 / (β + 0.01), equal gains are equal steps of log(1 + 100 β); a tenth goes by the old spacing."""
    betas = [(t / 200) ** 5 for t in range(201)]
    found = torch.tensor(respaced(betas, [1 / (b + 0.01) for b in betas], 40))
    place = 0.9 * (100 * found).log1p() / math.log(101) + 0.1 * found ** (1 / 5)
    torch.testing.assert_close(place, torch.linspace(0, 1, 41), rtol=0, atol=2e-3)


def test_errors_are_the_delta_method_s():
    log_w = torch.tensor([[0.0, 1.0], [0.5, 1.0], [-0.3, 1.0]], dtype=F64)
    w = log_w[:, 0].exp()
    expected = w.std() / math.sqrt(3) / w.mean()
    torch.testing.assert_close(log_mean_error(log_w), torch.stack([expected, torch.zeros((), dtype=F64)]))


# --- refusals ---------------------------------------------------------------------------------------------------------


def pair_of(latent, guide_latent, noise=1.0):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent())
            z = z if z.dim() == x.dim() else z.sum(-1)
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_latent(x))

    return Pair(model, guide)


REFUSED = {
    "an infinite discrete latent": (
        lambda: pair_of(lambda: dist.Poisson(2.0), lambda x: dist.Poisson(torch.ones_like(x))), "'z' is discrete"),
    "a guide of points": (
        lambda: pair_of(lambda: dist.Normal(0.0, 1.0), lambda x: dist.Delta(x)), "'z' one value"),
    "the sphere": (
        lambda: VAE((4,), 3, prior=priors.Spherical(), guide=guides.Spherical(), likelihood=likelihoods.Normal()),
        "knows no bijection"),
    "a guide with no density at given latents": (
        lambda: VAE((4,), 3, guide=guides.Planar(), likelihood=likelihoods.Normal()), "start='prior'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_annealed_is_refused_by_name(case):
    make, message = REFUSED[case]
    x = torch.randn(3, 4) if isinstance(make(), VAE) else torch.randn(3)
    with pytest.raises(InputError, match=message):
        log_likelihood(make(), x, 2, method="annealed", annealing=Annealing(3))


def test_bad_arguments_are_refused(linear_gaussian):
    pair, x = linear_gaussian.poor_pair(), linear_gaussian.data(3)
    for wrong in ({"method": "exact"}, {"annealing": Annealing()}, {"method": "annealed", "annealing": 500}):
        with pytest.raises(InputError):
            log_likelihood(pair, x, 2, **wrong)
    with pytest.raises(InputError, match="temperatures=0"):
        Annealing(temperatures=0)
    with pytest.raises(InputError, match="start='posterior'"):
        Annealing(start="posterior")
