"""Scores against closed forms: log p(x), the ELBO's gap, and what evaluation must leave alone.

False-alarm rates: comparisons "within 3 standard errors" fail by chance in 0.3 % of seeds; seeds are fixed.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Pair, elbo_terms, generate, likelihoods, log_likelihood, networks
from pyro_vae.engine.replay import Replay
from pyro_vae.errors import InputError
from tests.component_table import vae
from tests.conftest import random_states


def test_one_sample_is_exact_at_the_exact_posterior(linear_gaussian):
    x = linear_gaussian.data(50)
    score = log_likelihood(linear_gaussian.exact_pair(), x, num_samples=1)
    exact = linear_gaussian.marginal().log_prob(x)
    torch.testing.assert_close(score.values, exact, rtol=0, atol=1e-10)
    assert score.mean == pytest.approx(exact.mean().item(), abs=1e-10)
    assert score.stderr == pytest.approx(exact.std().item() / math.sqrt(50), rel=1e-9)


def test_poor_guide_is_within_three_standard_errors(linear_gaussian):
    x = linear_gaussian.data(40)
    exact = linear_gaussian.marginal().log_prob(x)
    score = log_likelihood(linear_gaussian.poor_pair(), x, num_samples=5000)
    assert abs(score.mean - exact.mean().item()) < 3 * score.mean_mc_stderr
    z = (score.values - exact) / score.mc_stderr
    assert 0.52 < z.square().mean() < 1.67  # the claimed Monte Carlo errors have their size (χ²₄₀, false alarm 1 %)


def test_the_estimate_is_unbiased_in_p_not_in_log_p(linear_gaussian):
    x = linear_gaussian.data(1)
    exact = linear_gaussian.marginal().log_prob(x).item()
    values = torch.cat([log_likelihood(linear_gaussian.poor_pair(), x, 4, seed=s).values for s in range(400)])
    ratio = (values - exact).exp()
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / 20
    assert values.mean() < exact - 3 * values.std() / 20  # Jensen: log p is underestimated at K = 4


@pytest.mark.parametrize("num_samples", [1, 7, 64, 1000])
@pytest.mark.parametrize("max_memory", [1, 20_000, 2**28])
def test_exactly_k_samples_for_any_k_and_chunk(linear_gaussian, num_samples, max_memory):
    drawn = 0
    x = linear_gaussian.data(5)

    class Counted(dist.MultivariateNormal):
        def rsample(self, sample_shape=torch.Size()):  # noqa: B008 - torch's own signature
            nonlocal drawn
            value = super().rsample(sample_shape)
            drawn += value[..., 0].numel()
            return value

        def expand(self, batch_shape, _instance=None):
            mean = self.loc.expand(*batch_shape, 2)
            return Counted(mean, self.covariance_matrix.expand(*batch_shape, 2, 2))

    def guide(x):
        exact = linear_gaussian.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Counted(exact.mean, exact.covariance_matrix))

    pair = Pair(linear_gaussian.model, guide)
    log_likelihood(pair, x, 1, max_memory=max_memory, compile="eager")
    overhead, drawn = drawn - 5, 0  # the look at the layout, the guide's own trace
    score = log_likelihood(pair, x, num_samples, max_memory=max_memory, compile="eager")
    extra = drawn - overhead - 5 * num_samples
    assert 0 <= abs(extra) <= 10
    assert score.num_samples == num_samples
    assert score.values.shape == score.khat.shape == score.ess.shape == (5,)


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_memory", [60_000, 2**28])
def test_captured_weights_are_those_of_an_eager_run(compile, max_memory):
    """Also for guides of several sites, rows and chunks that do not divide; several chunks draw other numbers."""
    torch.manual_seed(0)
    pair, x = vae(), torch.rand(9, 4).round()
    eager = log_likelihood(pair, x, 50, compile="eager", max_memory=max_memory)
    captured = log_likelihood(pair, x, 50, compile=compile, max_memory=max_memory)
    if max_memory == 2**28:
        torch.testing.assert_close(captured.values, eager.values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(captured.ess, eager.ess, rtol=1e-3, atol=1e-3)
    else:  # 9 pairs of estimates within 5 of their standard errors: wrong alarms in 1 run of 200,000
        spread = (captured.mc_stderr.square() + eager.mc_stderr.square()).sqrt()
        assert ((captured.values - eager.values).abs() < 5 * spread).all()


def test_long_scoring_is_captured_unasked(linear_gaussian, monkeypatch):
    seen = []
    monkeypatch.setattr("pyro_vae.engine.replay.Replay._capture", _noting(Replay._capture, seen))
    x = linear_gaussian.data(3).double()
    score = log_likelihood(linear_gaussian.exact_pair(), x, 600, max_memory=3_000)
    torch.testing.assert_close(score.values, linear_gaussian.marginal().log_prob(x), rtol=0, atol=1e-10)
    assert seen


def _noting(function, calls):
    def noting(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return noting


def test_chunks_do_not_change_the_weights_count(linear_gaussian):
    """K not divisible by the chunk, N not divisible by the rows: equal weights make ESS = K exactly."""
    x = linear_gaussian.data(11)
    for max_memory in (1, 3_000, 10_000, 2**28):
        score = log_likelihood(linear_gaussian.exact_pair(), x, 37, max_memory=max_memory)
        torch.testing.assert_close(score.ess, torch.full((11,), 37.0).double(), rtol=0, atol=1e-8)
        torch.testing.assert_close(score.values, linear_gaussian.marginal().log_prob(x), rtol=0, atol=1e-10)


class CountingEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.rows = nn.Linear(6, 4), 0

    def forward(self, x):
        self.rows += len(x)
        return self.linear(x)


def test_the_encoder_runs_once_a_datum():
    encoder = CountingEncoder()
    vae = VAE(event_shape=(6,), latent_dim=2, encoder=encoder, decoder=networks.MLP([3]))
    x = torch.rand(100, 6).round()
    encoder.rows = 0
    log_likelihood(vae, x, num_samples=500, max_memory=200_000)
    looks = encoder.rows - 100
    encoder.rows = 0
    log_likelihood(vae, x, num_samples=50, max_memory=200_000)
    assert encoder.rows - 100 == looks <= 300  # the look at layout and memory does not grow with K or N


def test_evaluation_leaves_no_mark(linear_gaussian):
    vae = VAE(
        event_shape=(6,), latent_dim=2, encoder=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    )
    optimizer = torch.optim.Adam(vae.parameters())
    x = torch.rand(9, 6).round()
    pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    optimizer.step()
    vae.encoder.eval()
    modes = [module.training for module in vae.modules()]
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    moments = [v["exp_avg"].clone() for v in optimizer.state.values()]
    randomness = random_states()
    log_likelihood(vae, x, 10)
    elbo_terms(vae, x)
    generate(vae, 3, seed=1)
    assert random_states() == randomness
    assert [module.training for module in vae.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())
    assert all(torch.equal(v["exp_avg"], m) for v, m in zip(optimizer.state.values(), moments, strict=True))


def test_elbo_plus_gap_is_the_evidence(linear_gaussian):
    x = linear_gaussian.data(30)
    terms = elbo_terms(linear_gaussian.poor_pair(), x, num_samples=2000)
    gap = linear_gaussian.kl_of_poor_guide(x)
    exact = linear_gaussian.marginal().log_prob(x)
    assert terms.elbo + gap.mean().item() == pytest.approx(exact.mean().item(), abs=0.02)
    assert (terms.values + gap - exact).abs().max() < 0.25
    assert terms.elbo == pytest.approx(terms.values.mean().item(), abs=1e-9)


def test_terms_add_up_per_site(linear_gaussian):
    terms = elbo_terms(linear_gaussian.exact_pair(), linear_gaussian.data(30), num_samples=3)
    assert set(terms.sites) == {"z", "x"}
    assert terms.kl == terms.sites["z"]
    assert terms.reconstruction == terms.sites["x"]
    assert terms.elbo == pytest.approx(terms.reconstruction - terms.kl, abs=1e-12)
    exact = linear_gaussian.marginal().log_prob(linear_gaussian.data(30)).mean().item()
    assert terms.elbo == pytest.approx(exact, abs=1e-10)


def test_every_datum_counts_once_whatever_the_batch(linear_gaussian):
    x = linear_gaussian.data(23)
    exact = linear_gaussian.marginal().log_prob(x)
    for batch_size in (1, 5, 23, 100):
        terms = elbo_terms(linear_gaussian.exact_pair(), x, batch_size=batch_size)
        torch.testing.assert_close(terms.values, exact, rtol=0, atol=1e-10)
        assert terms.elbo == pytest.approx(exact.mean().item(), abs=1e-10)


def with_global_latent(subsample: int | None):
    """A global mean with a datum's noise: its KL counts once for the set."""

    def plate(x):
        return pyro.plate("data", subsample, subsample=x) if subsample else pyro.plate("data", len(x))

    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Delta(torch.full((), 0.5).double()))

    return Pair(model, guide)


@pytest.mark.parametrize("batch_size", [4, 10, 1000])
def test_global_latents_are_scored_once(batch_size):
    x = torch.randn(10).double()
    kl = -dist.Normal(torch.zeros(()).double(), 1.0).log_prob(torch.tensor(0.5).double()).item()
    reconstruction = dist.Normal(torch.tensor(0.5).double(), 1.0).log_prob(x).mean().item()
    terms = elbo_terms(with_global_latent(None), x, batch_size=batch_size)
    assert terms.kl == pytest.approx(kl / 10, abs=1e-12)
    assert terms.elbo == pytest.approx(reconstruction - kl / 10, abs=1e-12)
    assert terms.values is None
    subsampled = elbo_terms(with_global_latent(500), x, batch_size=batch_size)
    assert subsampled.kl == pytest.approx(kl / 500, abs=1e-12)
    assert subsampled.reconstruction == pytest.approx(reconstruction, abs=1e-12)
    predictive = log_likelihood(
        with_global_latent(None), x, 5, num_global=2
    )  # the guide has one mean, and nothing else is latent
    torch.testing.assert_close(predictive.values, dist.Normal(torch.tensor(0.5).double(), 1.0).log_prob(x))


def test_confident_wrong_pixels_are_not_clamped():
    """Logits throughout: a pixel that is surely wrong costs its full price, below −20 nats."""
    vae = VAE(event_shape=(2,), latent_dim=1, decoder=networks.MLP([]))
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.zero_()
        vae.decoder.layers[-1].bias.copy_(torch.tensor([40.0, -40.0]))
        for parameter in vae.encoder.parameters():
            parameter.zero_()
    score = log_likelihood(vae, torch.tensor([[0.0, 1.0]]), 2000)
    assert score.mean == pytest.approx(-80.0, abs=0.5)


def test_relaxed_bernoulli_scores_are_labelled():
    vae = VAE(event_shape=(4,), latent_dim=2, likelihood=likelihoods.Bernoulli(relaxed=True))
    grey, binary = torch.rand(5, 4), torch.rand(5, 4).round()
    assert "no log-likelihood" in log_likelihood(vae, grey, 3).notes[0]
    assert "no log-likelihood" in str(log_likelihood(vae, grey, 3))
    assert elbo_terms(vae, grey).notes
    assert log_likelihood(vae, binary, 3).notes == ()


def test_binarised_scores_repeat_under_their_seed():
    vae, grey = VAE(event_shape=(4,), latent_dim=2), torch.rand(50, 4)
    first = log_likelihood(vae, grey, 20, binarize="dynamic", seed=3)
    again = log_likelihood(vae, grey, 20, binarize="dynamic", seed=3)
    other = log_likelihood(vae, grey, 20, binarize="dynamic", seed=4)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


def test_khat_warns_of_a_guide_that_is_too_narrow(linear_gaussian):
    def narrow(x):
        with pyro.plate("data", len(x)):
            exact = linear_gaussian.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.mean, 0.05 * exact.covariance_matrix))

    x = linear_gaussian.data(20)
    bad = log_likelihood(Pair(linear_gaussian.model, narrow), x, 2000)
    good = log_likelihood(linear_gaussian.poor_pair(), x, 2000)
    assert (bad.khat > 0.7).double().mean() > 0.8
    assert (good.khat < 0.7).all()
    assert (bad.ess < good.ess).all()


def test_a_dataset_a_loader_and_an_array_score_like_a_tensor(linear_gaussian):
    x = linear_gaussian.data(9)
    pair = linear_gaussian.exact_pair()
    expected = log_likelihood(pair, x, 2).values
    dataset = torch.utils.data.TensorDataset(x)
    for other in (dataset, torch.utils.data.DataLoader(dataset, batch_size=4)):
        torch.testing.assert_close(log_likelihood(pair, other, 2).values, expected, rtol=0, atol=1e-10)
    array = log_likelihood(pair, np.asarray(x), 2).values  # arrays come in torch's default precision
    torch.testing.assert_close(array, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), r"x\[1, 0\]|datum 1"),
        (torch.zeros(3, 5), "event_shape"),
        (torch.zeros(0, 2), "no data"),
        (torch.full((2, 2), 2.0), "support"),
        ("no-such-data", "no-such-data"),
    ],
)
def test_bad_data_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        log_likelihood(VAE(event_shape=(2,), latent_dim=1), x, 3)


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True])
def test_bad_sample_counts_are_refused(linear_gaussian, num_samples):
    with pytest.raises(InputError, match="num_samples"):
        log_likelihood(linear_gaussian.exact_pair(), linear_gaussian.data(3), num_samples)


def test_a_second_score_uses_what_the_first_captured_and_copies_do_not(monkeypatch):
    seen = []
    monkeypatch.setattr("pyro_vae.engine.replay.Replay._capture", _noting(Replay._capture, seen))
    torch.manual_seed(0)
    pair, x = vae(), torch.rand(6, 4).round()
    first, *_, again = (log_likelihood(pair, x, 20, compile="graph") for _ in range(6))  # observed twice, captured once
    assert len(seen) == 1
    torch.testing.assert_close(first.values, again.values, rtol=1e-6, atol=0)
    twin = copy.deepcopy(pair)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    *_, other = (log_likelihood(twin, x, 20, compile="graph") for _ in range(3))
    assert len(seen) == 2
    assert not torch.equal(first.values, other.values)
    assert torch.equal(log_likelihood(pair, x, 20, compile="graph").values, first.values)
    with torch.no_grad():
        next(pair.parameters()).add_(1.0)
    torch.testing.assert_close(log_likelihood(pair, x, 20, compile="graph").values, other.values)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_data():
    """Small results kept between large tensors break up the heap, which once took 2 MiB per datum."""
    code = """if True:
        import re, torch
        from pathlib import Path
        from pyro_vae import VAE, log_likelihood
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
        torch.set_num_threads(1)
        vae, x = VAE(event_shape=(784,), latent_dim=5).eval(), torch.zeros(200, 784)
        log_likelihood(vae, x[:40], num_samples=5000)
        before = peak()
        log_likelihood(vae, x, num_samples=5000)
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
