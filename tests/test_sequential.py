"""Sequential pairs: against the Kalman filter, against factor analysis step by step, and padding that must not matter."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import (
    Pair,
    elbo_terms,
    encode,
    fit,
    generate,
    guides,
    likelihoods,
    load,
    log_likelihood,
    log_weights,
    networks,
    reconstruct,
    save,
)
from pyro_vae.errors import InputError
from pyro_vae.models.forecasts import forecast
from pyro_vae.models.sequential import DeepMarkovModel, VariationalRNN
from pyro_vae.models.transitions import Gated, LinearGaussian
from pyro_vae.pair import log_prob, sample_sites

SCRIPT = Path(__file__).parent.parent / "examples" / "jsb_dmm.py"
LENGTHS = torch.tensor([10, 3, 7, 1])
PAIRS = [DeepMarkovModel, VariationalRNN]


def fill(*tensors: torch.Tensor, scale: float = 0.4, seed: int = 0) -> None:
    """Writes normal draws into parameters, of a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def small(cls, **parts):
    """A small pair of the class for sequences of up to four steps of three pixels."""
    parts = {"latent_dim": 2, "hidden": 5, "emission": networks.MLP([6], "tanh"), **parts}
    return cls((4, 3), **parts)


def pixels(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Five sequences of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(5, 4, 3, generator=generator).round(), torch.tensor([4, 2, 1, 3, 4])


def scores(program, values: dict[str, torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
    """Σ over sites of log p at given latents, (N,)."""
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*batch)
    sites = {**sample_sites(trace, observed=False), **sample_sites(trace, observed=True)}
    return sum(log_prob(site) for site in sites.values())


# --- the linear-Gaussian chain, whose answers are known ---------------------------------------------------------------


class Chain:
    """A DeepMarkovModel with linear-Gaussian transition and emission in float64, and the Kalman filter of its weights."""

    def __init__(self, guide: guides.Guide | None = None):
        likelihood, emission = likelihoods.Normal("per value"), networks.MLP([])
        self.pair = DeepMarkovModel((10, 3), 2, LinearGaussian(), likelihood, guide, emission, hidden=16).double()
        linear, (_, out) = self.pair.transition.linear, self.pair.emission.layers
        parameters = (linear.weight, linear.bias, self.pair.transition.raw_scale, out.weight, out.bias, self.pair.z_0)
        fill(*parameters, likelihood.raw_scale, scale=0.6)

    def __getattr__(self, name: str) -> torch.Tensor:
        linear, (_, out), noise = self.pair.transition.linear, self.pair.emission.layers, self.pair.likelihood
        return {
            "a": linear.weight,
            "b": linear.bias,
            "q": torch.diag(self.pair.transition.scale**2),
            "c": out.weight,
            "d": out.bias,
            "r": torch.diag(noise.starting_spread() ** 2),
        }[name].detach()

    def data(self) -> torch.Tensor:
        """Four sequences of ten steps, from the model."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            z, steps = self.pair.z_0.detach().expand(4, 2), []
            for _ in range(10):
                z = z @ self.a.T + self.b + torch.randn(4, 2).double() @ self.q.sqrt()
                steps.append(z @ self.c.T + self.d + torch.randn(4, 3).double() @ self.r.sqrt())
        return torch.stack(steps, 1)

    def filtered(self, x: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
        """log p(x), mean and covariance of z_L given one sequence x (L, 3) (Kalman 1960)."""
        total, mean, cov = 0.0, self.pair.z_0.detach(), torch.zeros(2, 2).double()
        for step in x:
            mean, cov = self.a @ mean + self.b, self.a @ cov @ self.a.T + self.q
            spread = self.c @ cov @ self.c.T + self.r
            total += dist.MultivariateNormal(self.c @ mean + self.d, spread).log_prob(step).item()
            gain = cov @ self.c.T @ torch.linalg.inv(spread)
            mean, cov = mean + gain @ (step - self.c @ mean - self.d), cov - gain @ self.c @ cov
        return total, mean, cov

    def log_p(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """log p of each sequence, (N,)."""
        return torch.tensor([self.filtered(row[:n])[0] for row, n in zip(x, lengths, strict=True)], dtype=torch.float64)

    def posterior(self, wider: float = 1.0, shift: float = 0.0):
        """q(z_t | z_{t−1}, x_{t:L}) by messages from each sequence's end, exact if not widened or shifted: a guide."""
        a, b, c, d, q, r = (getattr(self, name) for name in "abcdqr")
        precise, seen = torch.linalg.inv(q), c.T @ torch.linalg.inv(r)

        def guide(x, lengths):
            curve, slope, at = torch.zeros(len(x), 2, 2).double(), torch.zeros(len(x), 2).double(), {}
            for t in range(x.shape[1], 0, -1):  # −½ zᵀ curve z + slopeᵀ z is log p(x_{t:L} | z_t) up to a constant
                there = (lengths >= t)[:, None]
                curve = curve + (seen @ c) * there[..., None]
                slope = slope + (x[:, t - 1] - d) @ seen.T * there
                cov = torch.linalg.inv(precise + curve)
                at[t] = cov, slope
                curve = a.T @ (precise - precise @ cov @ precise) @ a
                slope = (precise @ cov @ (slope + precise @ b)[..., None] - (precise @ b)[:, None])[..., 0] @ a
            z = self.pair.z_0.detach()
            with pyro.plate("data", len(x), dim=-1):
                for t in range(1, x.shape[1] + 1):
                    cov, slope = at[t]
                    loc = (cov @ (slope + (z @ a.T + b) @ precise)[..., None])[..., 0]
                    with poutine.mask(mask=lengths >= t):
                        z = pyro.sample(f"z_{t}", dist.MultivariateNormal(loc + shift, wider**2 * cov))

        return Pair(self.pair.model, guide)


def test_one_draw_of_the_exact_posterior_gives_the_kalman_filters_likelihood():
    chain = Chain()
    x = chain.data()
    weights = log_weights(chain.posterior(), (x, LENGTHS), num_samples=2)
    torch.testing.assert_close(weights, chain.log_p(x, LENGTHS).expand(2, -1), rtol=1e-9, atol=1e-9)
    ten = lambda x: torch.full((len(x),), 10)  # noqa: E731
    full = log_weights(Pair(chain.pair.model, lambda x: chain.posterior().guide(x, ten(x))), (x,), num_samples=1)
    torch.testing.assert_close(full[0], chain.log_p(x, ten(x)), rtol=1e-9, atol=1e-9)


def test_importance_sampling_meets_the_kalman_filter():
    """A guide too wide and off-centre: 3 standard errors each, false alarms in about 1 % of seeds."""
    chain = Chain()
    x = chain.data()
    score = log_likelihood(chain.posterior(1.2, 0.05), (x, LENGTHS), num_samples=5000)
    error = (score.values - chain.log_p(x, LENGTHS)).abs()
    assert (score.mc_stderr < 0.1).all()
    assert (error < 3 * score.mc_stderr).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [None, guides.InverseAutoregressive(transforms=1, hidden=[16])], ids=["normal", "flow"]
)
def test_the_trained_guide_meets_the_kalman_filter(family):
    """Own guide, all weights learned, the filter run on what was learned: within 3 standard errors (false alarms 1 %)."""
    chain = Chain(family)
    batch = (chain.data().repeat(16, 1, 1), LENGTHS.repeat(16))
    settings = {"lr": 1e-2, "schedule": "cosine", "compile": "eager", "progress": False}
    result = fit(chain.pair, batch, epochs=300, batch_size=64, seed=0, **settings)
    few = tuple(part[:4] for part in batch)
    exact = chain.log_p(*few)
    with torch.no_grad():
        weights = log_weights(chain.pair, few, num_samples=4000)
    elbo, error = weights.mean(0), weights.std(0) / math.sqrt(4000)
    score = log_likelihood(chain.pair, few, num_samples=10000)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert (score.khat < 0.7).all()
    assert (exact - 3.0 < elbo).all()
    assert (elbo < exact + 3 * error).all()
    assert ((score.values - exact).abs() < 3 * score.mc_stderr).all()


def test_the_elbo_stays_below_the_likelihood():
    """By more than any draw of 50 could stray: the guide is not trained."""
    chain = Chain()
    x = chain.data()
    terms = elbo_terms(chain.pair, (x, LENGTHS), num_samples=50)
    assert (terms.values < chain.log_p(x, LENGTHS)).all()
    assert set(terms.sites) == {f"{name}_{t}" for name in "xz" for t in range(1, 11)}
    assert terms.elbo == pytest.approx(terms.reconstruction - terms.kl)


def test_forecasts_are_the_kalman_filters():
    """Means within 4.5 standard errors, covariances within 8 %: false alarms below 1 in 1,000 seeds."""
    chain = Chain()
    x, steps, draws = chain.data(), 3, 6000
    drawn = forecast(chain.posterior(), x, steps, LENGTHS, num_samples=draws, seed=0)
    assert drawn.shape == (draws, 4, steps, 3)
    for n, length in enumerate(LENGTHS):
        _, mean, cov = chain.filtered(x[n, :length])
        for k in range(steps):
            mean, cov = chain.a @ mean + chain.b, chain.a @ cov @ chain.a.T + chain.q
            wanted, spread = chain.c @ mean + chain.d, chain.c @ cov @ chain.c.T + chain.r
            found = drawn[:, n, k]
            assert ((found.mean(0) - wanted).abs() < 4.5 * (spread.diagonal() / draws).sqrt()).all()
            assert (found.T.cov() - spread).abs().max() < 0.08 * spread.diagonal().max()


# --- the recurrent pair, whose state is made to read x alone ----------------------------------------------------------


class Recurrent:
    """A VariationalRNN in float64 with linear Normal emission, whose state does not read z: log p(x) is then a product
    of Gaussians, each step's mean and covariance by the state of the steps before."""

    def __init__(self):
        linear = {name: networks.MLP([]) for name in ("emission", "prior", "features_of_x", "features_of_z", "encoder")}
        self.pair = VariationalRNN((4, 3), 2, hidden=4, likelihood=likelihoods.Normal(1.5), **linear).double()
        fill(*self.pair.parameters(), scale=0.35)
        with torch.no_grad():
            self.pair.cell.gru.weight_ih[:, 4:] = 0  # what reads φ_z(z)
        fill(*self.pair.encoder.parameters(), scale=0.05)  # the guide stays near the prior, where the posterior is too

    def data(self) -> torch.Tensor:
        return torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def state(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """h_t by the equations of the gated recurrent unit (Cho et al. 2014), one sequence."""
        gru = self.pair.cell.gru
        inputs = self.pair.features_of_x(x)
        mine = (gru.weight_ih[:, :4] @ inputs + gru.bias_ih).chunk(3)
        own = (gru.weight_hh @ h + gru.bias_hh).chunk(3)
        reset, update = torch.sigmoid(mine[0] + own[0]), torch.sigmoid(mine[1] + own[1])
        return (1 - update) * torch.tanh(mine[2] + reset * own[2]) + update * h

    def step(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of one step given h: mean and covariance of z, and x = C z + d + noise of scale 1.5."""
        loc, raw = self.pair.prior(h).chunk(2)
        weight, bias = self.pair.emission.layers[1].weight, self.pair.emission.layers[1].bias
        phi = self.pair.features_of_z.layers[1]
        c, d = weight[:, :4] @ phi.weight, weight[:, :4] @ phi.bias + weight[:, 4:] @ h + bias
        return loc, torch.diag((nn.functional.softplus(raw) + guides.MIN_SCALE) ** 2), c, d

    @torch.no_grad()
    def predicted(self, x: torch.Tensor) -> tuple[float, dist.MultivariateNormal]:
        """log p(x) of one sequence, (L, 3), and the distribution of the step after it."""
        h, total = self.pair.cell.start, 0.0
        for step in [*x, None]:
            loc, cov, c, d = self.step(h)
            ahead = dist.MultivariateNormal(c @ loc + d, c @ cov @ c.T + 2.25 * torch.eye(3).double())
            if step is not None:
                total += ahead.log_prob(step).item()
                h = self.state(h, step)
        return total, ahead

    def exact_guide(self, x, lengths):
        states = [[self.pair.cell.start] for _ in x]
        for row, known in zip(x, states, strict=True):
            for step in row:
                known.append(self.state(known[-1], step))
        with pyro.plate("data", len(x), dim=-1):
            for t in range(1, x.shape[1] + 1):
                found = [self.of_one(known[t - 1], row[t - 1]) for row, known in zip(x, states, strict=True)]
                loc, cov = (torch.stack(part) for part in zip(*found, strict=True))
                with poutine.mask(mask=lengths >= t):
                    pyro.sample(f"z_{t}", dist.MultivariateNormal(loc, cov))

    def of_one(self, h: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of p(z_t | x_t, h_{t−1})."""
        loc, cov, c, d = self.step(h)
        found = torch.linalg.inv(torch.linalg.inv(cov) + c.T @ c / 2.25)
        return found @ (torch.linalg.inv(cov) @ loc + c.T @ (x - d) / 2.25), found


def test_the_recurrent_pairs_likelihood_is_exact():
    known, lengths = Recurrent(), torch.tensor([4, 2, 1, 3])
    x = known.data()
    exact = torch.tensor([known.predicted(row[:n])[0] for row, n in zip(x, lengths, strict=True)], dtype=torch.float64)
    with torch.no_grad():
        weights = log_weights(Pair(known.pair.model, known.exact_guide), (x, lengths), num_samples=2)
    torch.testing.assert_close(weights, exact.expand(2, -1), rtol=1e-9, atol=1e-9)
    score = log_likelihood(
        known.pair, (x, lengths), num_samples=20000
    )  # its own guide: 3 standard errors, 1 % of seeds
    assert (score.mc_stderr < 0.1).all()
    assert ((score.values - exact).abs() < 3 * score.mc_stderr).all()


def test_the_recurrent_pairs_forecast_is_exact():
    """Means within 4.5 standard errors: false alarms below 1 in 1,000 seeds."""
    known, lengths = Recurrent(), torch.tensor([4, 2, 1, 3])
    x = known.data()
    drawn = forecast(known.pair, x, 1, lengths, num_samples=20000, seed=0)
    for n, length in enumerate(lengths):
        ahead = known.predicted(x[n, :length])[1]
        assert ((drawn[:, n, 0].mean(0) - ahead.mean).abs() < 4.5 * (ahead.variance / 20000).sqrt()).all()
        assert (drawn[:, n, 0].T.cov() - ahead.covariance_matrix).abs().max() < 0.06 * ahead.variance.max()


def test_drawn_data_are_fed_back():
    """What the next step says follows from the steps that were drawn, not from the blank batch."""
    known = Recurrent()
    trace = poutine.trace(poutine.uncondition(known.pair.model)).get_trace(torch.zeros(2, 4, 3).double())
    for n in range(2):
        h = known.pair.cell.start
        for t in range(1, 5):
            _, _, c, d = known.step(h)
            loc = c @ trace.nodes[f"z_{t}"]["value"][n] + d
            torch.testing.assert_close(trace.nodes[f"x_{t}"]["fn"].mean[n], loc)
            h = known.state(h, trace.nodes[f"x_{t}"]["value"][n])


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PAIRS)
@pytest.mark.parametrize(
    "family", [guides.MeanField, lambda: guides.InverseAutoregressive(1, [8])], ids=["normal", "flow"]
)
def test_padding_does_not_matter(cls, family):
    pair, (x, lengths) = small(cls, guide=family()), pixels()
    there = torch.arange(4) < lengths[:, None]
    other = x.where(there[..., None], torch.tensor(-7.0))  # outside a Bernoulli's support
    pair.check(other, lengths)
    for score in (
        lambda x: log_likelihood(pair, (x, lengths), num_samples=5, compile="eager").values,
        lambda x: elbo_terms(pair, (x, lengths)).values,
        lambda x: forecast(pair, x, 2, lengths, seed=0),
    ):
        assert torch.equal(score(x), score(other))


@pytest.mark.parametrize("cls", PAIRS)
def test_a_batch_is_its_sequences_one_by_one(cls):
    pair, (x, lengths) = small(cls), pixels()
    z = {f"z_{t}": torch.randn(5, 2) for t in range(1, 5)}
    for program in (pair.model, pair.guide):
        together = scores(program, z, x, lengths)
        for n, length in enumerate(lengths):
            own = {f"z_{t}": z[f"z_{t}"][n : n + 1] for t in range(1, length + 1)}
            torch.testing.assert_close(together[n], scores(program, own, x[n : n + 1, :length])[0])


@pytest.mark.parametrize("cls", PAIRS)
def test_without_lengths_all_sequences_are_full(cls):
    pair, (x, _) = small(cls), pixels()
    z = {f"z_{t}": torch.randn(5, 2) for t in range(1, 5)}
    for program in (pair.model, pair.guide):
        assert torch.equal(scores(program, z, x), scores(program, z, x, torch.full((5,), 4)))


def test_the_guides_network_reads_from_each_sequences_own_end():
    pair, (x, lengths) = small(DeepMarkovModel), pixels()
    fill(pair.cell.start)
    states = pair.backwards(x, lengths)
    whole = nn.GRU(3, 5, batch_first=True)
    whole.load_state_dict({f"{name}_l0": value for name, value in pair.cell.gru.state_dict().items()})
    for n, length in enumerate(lengths):
        outputs, _ = whole(x[n : n + 1, :length].flip(1), pair.cell.start.expand(1, 1, 5))
        for t in range(1, length + 1):
            torch.testing.assert_close(states[t][n], outputs[0, length - t])


def test_the_guide_of_a_step_sees_no_step_before_it():
    """q(z_t | z_{t−1}, x_{t:T}) of the deep Markov model; the recurrent pair's sees x_{≤t}."""
    (x, _), z = pixels(), {f"z_{t}": torch.zeros(5, 2) for t in range(1, 5)}
    other = x.clone()
    other[:, 1] = 1 - x[:, 1]
    for cls, changed in ((DeepMarkovModel, [True, True, False, False]), (VariationalRNN, [False, True, True, True])):
        pair = small(cls)
        traces = [poutine.trace(poutine.condition(pair.guide, data=z)).get_trace(data) for data in (x, other)]
        means = [[trace.nodes[f"z_{t}"]["fn"].mean for t in range(1, 5)] for trace in traces]
        assert [not torch.equal(a, b) for a, b in zip(*means, strict=True)] == changed


# --- transitions ------------------------------------------------------------------------------------------------------


def test_gated_transition_by_hand():
    gated = Gated(hidden=4).build(latent_shape=torch.Size([2]))
    fill(*gated.parameters(), scale=0.8)
    z = torch.tensor([0.3, -1.2])
    (v1, c1), (v2, c2) = ((layer.weight, layer.bias) for layer in (gated.gate[0], gated.gate[2]))
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (gated.proposal[0], gated.proposal[2]))
    gate = 1 / (1 + torch.exp(-(v2 @ (v1 @ z + c1).clamp(min=0) + c2)))
    proposal = w2 @ (w1 @ z + b1).clamp(min=0) + b2
    loc = (1 - gate) * (gated.linear.weight @ z + gated.linear.bias) + gate * proposal
    raw = gated.raw_scale.weight @ proposal.clamp(min=0) + gated.raw_scale.bias
    found = gated(z.expand(3, 5, 2))
    assert found.batch_shape == (3, 5)
    torch.testing.assert_close(found.mean[1, 2], loc)
    torch.testing.assert_close(found.variance[1, 2].sqrt(), torch.log1p(raw.exp()) + guides.MIN_SCALE)


# --- everything that takes a pair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PAIRS)
def test_sequences_are_drawn_read_and_encoded(cls):
    pair, (x, lengths) = small(cls), pixels()
    assert generate(pair, 6).shape == (6, 4, 3)
    drawn = generate(pair, 5, condition=lengths, output="mean")
    there = (torch.arange(4) < lengths[:, None])[..., None].expand(5, 4, 3)
    assert (drawn[~there] == 0).all()
    assert (drawn[there] > 0).all()
    assert reconstruct(pair, (x, lengths)).shape == x.shape
    posterior = encode(pair, (x, lengths))
    assert posterior.sites == ("z_1", "z_2", "z_3", "z_4")
    assert posterior.sample((7,))["z_2"].shape == (7, 5, 2)
    assert forecast(pair, x, 6, num_samples=2).shape == (2, 5, 6, 3)


@pytest.mark.parametrize("cls", PAIRS)
def test_forecasts_repeat_under_a_seed_and_leave_the_random_state(cls):
    pair, (x, lengths) = small(cls), pixels()
    before = torch.get_rng_state()
    first, again, other = (forecast(pair, x, 2, lengths, num_samples=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert pair.training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "family"),
    [
        (DeepMarkovModel, guides.MeanField),
        (DeepMarkovModel, lambda: guides.InverseAutoregressive(1, [8])),
        (VariationalRNN, guides.MeanField),
    ],
    ids=["markov", "flow", "recurrent"],
)
def test_captured_training_equals_eager(cls, family):
    losses, (x, lengths) = [], pixels()
    for compile, how in (("graph", "captured"), ("eager", "eager")):
        torch.manual_seed(0)
        pair = small(cls, guide=family())
        batch = (x[:, :2], lengths.clamp(max=2))
        result = fit(pair, batch, epochs=3, batch_size=5, seed=0, compile=compile, progress=False)
        losses.append([row["loss"] for row in result.history])
        assert result.how == how
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in pair.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("cls", PAIRS)
def test_every_parameter_has_a_gradient(cls):
    pair = small(cls)
    pyro.infer.Trace_ELBO().differentiable_loss(pair.model, pair.guide, *pixels()).backward()
    assert [name for name, p in pair.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("cls", PAIRS)
def test_saved_and_loaded(cls, tmp_path):
    parts = {"transition": Gated(hidden=7)} if cls is DeepMarkovModel else {}
    pair, batch = small(cls, guide=guides.FullCovariance(), likelihood=likelihoods.Normal(0.5), **parts), pixels()
    save(pair, tmp_path)
    again = load(tmp_path)
    assert repr(again) == repr(pair)
    scored = [log_likelihood(p, batch, num_samples=3, compile="eager").values for p in (pair, again)]
    assert torch.equal(*scored)


@pytest.mark.slow
def test_the_chorales_script_reads_and_trains(tmp_path):
    """On a made-up file of the form it wants; what it prints is not compared with anything."""
    chorale = [[60, 64], [], [21, 108]]
    (tmp_path / "jsb.json").write_text(
        json.dumps({"train": [chorale, chorale[:2]], "valid": [chorale], "test": [chorale]})
    )
    small = ["--epochs", "1", "--hidden", "4", "--latent-dim", "2", "--samples", "2", "--compile", "eager"]
    command = [sys.executable, str(SCRIPT), "--data", "jsb.json", *small]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "2 × 3, 1 × 3, 1 × 3" in done.stdout, done.stderr
    assert "test −log p(x): " in done.stdout, done.stderr
    (tmp_path / "jsb.json").write_text(json.dumps({"train": []}))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "is not the JSON file" in done.stderr


@pytest.mark.parametrize("cls", PAIRS)
def test_steps_of_any_shape_and_number(cls):
    pair = cls((3, 1, 4, 2), latent_dim=2, hidden=4, likelihood=likelihoods.Normal("per datum"))
    x = torch.randn(2, 5, 1, 4, 2)
    terms = elbo_terms(pair, (x, torch.tensor([5, 2])))
    assert math.isfinite(terms.elbo)
    assert generate(pair, 2).shape == (2, 3, 1, 4, 2)
    assert cls((3, 2), latent_dim=2, hidden=4).start_at(torch.full((3, 2), 0.25))


def test_biases_start_at_the_datas_mean():
    pair = DeepMarkovModel((3, 2), latent_dim=2, emission=networks.MLP([]))
    wanted = torch.tensor([0.2, 0.8])
    for last in ([0.2, 0.8], [math.nan, math.nan]):  # NaN where no sequence reaches a step
        pair.start_at(torch.tensor([[0.1, 0.8], [0.3, 0.8], last]))
        torch.testing.assert_close(pair.emission.layers[1].bias.sigmoid(), wanted)


@pytest.mark.parametrize("cls", PAIRS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, n: (x[:, :, :2], n), r"x has shape \(5, 4, 2\).*\(N, T, 3\)"),
        (lambda x, n: (x, n[:3]), r"lengths has shape \(3,\)"),
        (lambda x, n: (x, n - 1), r"lengths\[2\] = 0 must be a whole number from 1 to T=4"),
        (lambda x, n: (x, n + 0.5), r"lengths\[0\] = 4.5 must be"),
        (lambda x, n: (x, n * 2), r"lengths\[0\] = 8 must be"),
        (lambda x, n: (x + 0.5 * (torch.arange(4) == 2)[:, None], n), r"step 3 of T=4, x\[:, 2\]: x\[0, 0\] = "),
        (lambda x, n: (x.double(), n), r"x is torch.float64"),
        (lambda x, n: (x, n, n), r"holds 3 tensors"),
    ],
)
def test_bad_data_are_refused(cls, change, message):
    with pytest.raises(InputError, match=message):
        small(cls).check(*change(*pixels()))


def test_bad_data_are_refused_before_training():
    x, lengths = pixels()
    with pytest.raises(InputError, match=r"lengths\[0\] = 5 must be"):
        fit(small(DeepMarkovModel), (x, lengths + 1), epochs=1, progress=False)


@pytest.mark.parametrize("cls", PAIRS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (4,)}, r"event_shape=\(4,\) must be \(T, \*step_shape\)"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"guide": guides.Spherical()}, "does not cover all of R"),
        ({"guide": guides.Planar()}, "has no density of its own"),
        ({"guide": guides.SemiAmortized()}, "has no density of its own"),
        ({"likelihood": guides.MeanField()}, r"likelihood=MeanField\(\) must be a "),
    ],
)
def test_bad_arguments_are_refused(cls, arguments, message):
    with pytest.raises(InputError, match=message):
        cls(**{"event_shape": (4, 3), **arguments})
    with pytest.raises(InputError, match="steps=0"):
        forecast(small(cls), pixels()[0], 0)
