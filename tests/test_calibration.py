"""Calibration: exact guides pass, wrong ones are found, ranks and bands against independent computations.

Factor analysis gives the exact guide. Seeds are fixed; each test says how often it would fail by chance.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom

from pyro_vae import VAE, InputError, Pair, calibrate, guides, networks
from pyro_vae.inference.calibration import _holm
from pyro_vae.inference.quantities import DENSITY, JOINT, PRODUCTS, TARP
from pyro_vae.inference.ranks import ecdf_bands, ecdf_counts, ranks_of, uniformity
from tests.conftest import random_states

# --- ranks and their tests ---------------------------------------------------------------------------------------------


def test_ranks_count_smaller_draws_and_break_ties_evenly():
    values = torch.tensor([[2.0, 1.0], [1.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    ranks = torch.stack([ranks_of(values) for _ in range(4000)])
    assert (ranks[:, 0] == 2).all()
    share = torch.bincount(ranks[:, 1], minlength=4) / 4000
    assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4000)  # fails once in 400,000 seeds


@pytest.mark.parametrize(("num_sets", "num_draws"), [(500, 99), (60, 20)])
def test_pvalues_of_uniform_ranks_are_uniform(num_sets, num_draws):
    """Each test's share of p-values below 1, 5 and 20 % over 1,000 columns, within 5 standard errors or below."""
    ranks = torch.randint(0, num_draws + 1, (num_sets, 1000))
    tests = uniformity(ranks, num_draws)
    for p in (tests.chi2, tests.ks, tests.ecdf, tests.pvalues):
        for level in (0.01, 0.05, 0.2):
            error = math.sqrt(level * (1 - level) / 1000)
            assert (p <= level).double().mean() < level + 5 * error
    assert (tests.ks <= 0.05).double().mean() > 0.05 - 5 * math.sqrt(0.05 * 0.95 / 1000)  # it is exact


def test_bands_hold_whole_curves_as_often_as_they_say():
    ranks = torch.randint(0, 51, (200, 4000))
    curves = ecdf_counts(ranks, 50).double() / 200
    low, high = ecdf_bands(200, 50, coverage=0.9)
    inside = ((curves >= low[:, None] - 1e-12) & (curves <= high[:, None] + 1e-12)).all(0).double().mean()
    assert 0.9 - 5 * math.sqrt(0.09 / 4000) < inside < 0.94  # counts are whole: a little more than 0.9


def test_bands_of_one_point_are_the_binomials():
    low, high = ecdf_bands(40, 1, coverage=0.95)  # ranks 0 or 1: one point at 1/2
    chance_inside = binom.cdf(high.item() * 40, 40, 0.5) - binom.cdf(low.item() * 40 - 1, 40, 0.5)
    assert 0.95 <= chance_inside < 0.97


def test_too_few_sets_leave_the_chi_squared_test_out():
    tests = uniformity(torch.arange(9)[:, None] % 5, 4)
    assert tests.chi2.isnan().all()
    assert (tests.pvalues > 0.5).all()


def test_pvalues_are_corrected_for_their_number():
    corrected = _holm(torch.tensor([0.03, 0.01, 0.5, 0.04]).double())
    torch.testing.assert_close(corrected, torch.tensor([0.09, 0.04, 0.5, 0.09]).double())  # Holm 1979, by hand


# --- guides ------------------------------------------------------------------------------------------------------------


class Analysis:
    """Factor analysis in float32 whose two latents have a posterior correlation of about −0.75."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 2, generator=generator) * 0.3 + torch.tensor([1.0, 1.0])
        self.noise = torch.tensor(0.8)
        precision = torch.eye(2) + self.weight.T @ self.weight / self.noise**2
        self.cov = torch.linalg.inv(precision)
        self.gain = self.cov @ self.weight.T / self.noise**2

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)

    def guide(self, kind: str):
        scale_tril, sd = torch.linalg.cholesky(self.cov), self.cov.diagonal().sqrt()

        def run(x):
            mean = x @ self.gain.T
            fn = dist.MultivariateNormal(mean, scale_tril=scale_tril)
            if kind == "scale x 0.8":
                fn = dist.MultivariateNormal(mean, scale_tril=0.8 * scale_tril)
            elif kind == "shifted mean":
                fn = dist.MultivariateNormal(mean + 0.3 * sd, scale_tril=scale_tril)
            elif kind == "missing correlation":
                fn = dist.Normal(mean, sd).to_event(1)  # the right marginals
            elif kind == "collapsed latent":  # the second follows its prior, the first is right given that
                fn = dist.Normal(mean * torch.tensor([1.0, 0.0]), torch.stack([sd[0], torch.tensor(1.0)])).to_event(1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", fn)

        return run

    def pair(self, kind: str = "exact") -> Pair:
        return Pair(self.model, self.guide(kind))


LIKE = torch.zeros(1, 4)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis()


@pytest.mark.slow
def test_an_exact_guide_fails_at_most_as_often_as_the_level_says(analysis):
    """At level 5 %: over 100 seeds 11 alarms or more have a chance of at most 1.2 %."""
    pair = analysis.pair()
    alarms = sum(not calibrate(pair, 200, 19, like=LIKE, seed=seed).calibrated for seed in range(100))
    assert alarms <= 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scale x 0.8", "shifted mean", "missing correlation", "collapsed latent"])
def test_wrong_guides_are_found(analysis, kind):
    """By 500 data sets, in each of 12 runs: at a power of 99.9 % this fails by chance in 1.2 % of seeds."""
    pair = analysis.pair(kind)
    assert not any(calibrate(pair, 500, like=LIKE, seed=seed).calibrated for seed in range(12))


def test_missing_correlation_is_invisible_to_single_latents_and_said(analysis):
    result = calibrate(analysis.pair("missing correlation"), like=LIKE)
    assert result.pvalues["z"].min() > 0.05
    assert result.group_pvalues[PRODUCTS] < 1e-3
    assert any(line.startswith(PRODUCTS) and "dependence" in line for line in result.rejected)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("scale x 0.8", "too narrow"), ("shifted mean", "too large"), ("collapsed latent", "less likely")],
)
def test_the_report_says_what_is_wrong(analysis, kind, words):
    result = calibrate(analysis.pair(kind), like=LIKE)
    assert any(words in line for line in result.rejected)
    assert "model's posterior" in str(result)
    assert "the model itself" in str(result)


def test_shapes_coverage_and_json(analysis, tmp_path):
    result = calibrate(analysis.pair(), 400, 39, like=LIKE, functions={"first": lambda z, x: z[..., 0] + x[:, 0]})
    assert result.ranks["z"].shape == (400, 2)
    assert result.pvalues["z"].shape == (2,)
    assert set(result.function_ranks) == {JOINT, DENSITY, PRODUCTS, TARP, "first"}
    assert (result.function_ranks["first"] == result.ranks["z"][:, 0]).all()  # x is the same for truth and draws
    assert 0 <= result.ranks["z"].min() <= result.ranks["z"].max() <= 39
    for level, share in result.coverage.items():
        nominal = float(level.rstrip("%")) / 100
        assert abs(share - nominal) < 5 * math.sqrt(nominal * (1 - nominal) / 400)  # fails once in 400,000 seeds
    result.save(tmp_path / "c.json")
    assert '"calibrated": true' in (tmp_path / "c.json").read_text()
    assert "<table>" in result._repr_html_()


def test_coverage_of_a_narrow_guide_is_the_closed_form(analysis):
    """The truth is normal around a guide of 0.8 times its scale: the 90 % region holds F(0.64 · q) of χ²₂."""
    result = calibrate(analysis.pair("scale x 0.8"), 2000, 99, like=LIKE)
    q90 = -2 * math.log(0.1)
    wanted = 1 - math.exp(-0.64 * q90 / 2)
    assert abs(result.coverage["90%"] - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 2000) + 0.005


def test_one_seed_gives_one_result_and_no_state_is_touched(analysis):
    before = random_states()
    first = calibrate(analysis.pair(), 50, 19, like=LIKE, seed=3, max_memory=10_000)
    second = calibrate(analysis.pair(), 50, 19, like=LIKE, seed=3, max_memory=10_000)
    assert before == random_states()
    assert (first.ranks["z"] == second.ranks["z"]).all()
    assert first.pvalue == second.pvalue


def test_discrete_latents_have_exact_ranks():
    """The guide is a mixture's exact posterior, with ties everywhere: at most 3 alarms in 20 seeds (else: 1.6 %)."""
    weight, means = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([-1.0, 0.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weight))
            pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)

    def guide(x, tilt=0.0):
        log_p = weight.log() + dist.Normal(means, 1.0).log_prob(x[:, None])
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=log_p + tilt * torch.tensor([0.0, 0.0, 1.0])))

    like = torch.zeros(1)
    alarms = [not calibrate(Pair(model, guide), 200, 19, like=like, seed=s).calibrated for s in range(20)]
    assert sum(alarms) <= 3
    assert not calibrate(Pair(model, lambda x: guide(x, 1.5)), 500, 19, like=like).calibrated


def test_conditions_masks_plates_and_densities_that_are_not_known():
    vae = VAE((4,), latent_dim=2, condition=networks.Labels(3), encoder=networks.MLP([5]), decoder=networks.MLP([5]))
    like = (torch.zeros(3, 4), torch.arange(3))
    assert calibrate(vae, 60, 19, like=like).num_datasets == 60
    planar = VAE((4,), latent_dim=2, guide=guides.Planar(), encoder=networks.MLP([5]), decoder=networks.MLP([5]))
    result = calibrate(planar, 60, 19)
    assert DENSITY not in result.function_ranks
    assert result.coverage == {}
    assert "no inverse" in str(result)


def parts_model(x):
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("parts", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-3) + w[..., None], 1.0).to_event(1), obs=x)


def parts_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("parts", 3, dim=-2):
            pyro.sample("z", dist.Normal(x / 4, 0.8).to_event(1))
        pyro.sample("w", dist.Normal(0.0, 1.0))


def test_latents_keep_their_shapes_under_inner_plates():
    result = calibrate(Pair(parts_model, parts_guide), 50, 19, like=torch.zeros(1, 2))
    assert result.ranks["z"].shape == (50, 3, 2)
    assert result.ranks["w"].shape == (50,)
    assert result.pvalues["w"].shape == ()


def test_models_that_can_not_be_simulated_are_refused(analysis):
    def reads_x(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z[:, 0], 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(x[:, 0], 1.0), obs=x[:, 1])

    with pytest.raises(InputError, match="'b' depends on the x that the model is handed"):
        calibrate(Pair(reads_x, analysis.guide("exact")), like=LIKE)

    def changes_x(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z[:, 0], 1.0), obs=x[:, 0] + 1)
            pyro.sample("b", dist.Normal(z[:, 1], 1.0), obs=x[:, 1])

    with pytest.raises(InputError, match="not taken from the batch unchanged"):
        calibrate(Pair(changes_x, analysis.guide("exact")), like=LIKE)

    def weighs(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("f", -z.square().sum(-1))

    with pytest.raises(InputError, match=r"pyro\.factor"):
        calibrate(Pair(weighs, analysis.guide("exact")), like=LIKE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_datasets": 5}, "at least 10"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"level": 1.5}, "level=1.5"),
        ({"functions": {"f": lambda z, x: z}}, r"functions\['f'\]"),
    ],
)
def test_bad_input_is_named(analysis, arguments, words):
    with pytest.raises(InputError, match=words):
        calibrate(analysis.pair(), like=LIKE, **arguments)


def test_the_figure_shows_every_group(analysis):
    figure = calibrate(analysis.pair(), 50, 19, like=LIKE).plot()
    left, right = figure.axes
    labels = {text.get_text() for axes in (left, right) for text in axes.get_legend().get_texts()}
    assert {"2 latents", JOINT, DENSITY, TARP} <= labels
