"""Likelihoods against SciPy and brute force: densities, draws, supports, extremes, starts, and tables with holes."""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import VAE, generate, likelihoods, reconstruct
from pyro_vae.distributions.discretized import level_log_prob
from pyro_vae.errors import InputError
from pyro_vae.inference.importance import log_weights
from pyro_vae.inference.sampling import _output
from pyro_vae.likelihoods import Likelihood
from pyro_vae.runs.saving import build
from pyro_vae.runs.specs import spec
from tests.component_table import LIKELIHOODS, fresh, vae, variants

softplus = lambda raw: np.logaddexp(0, raw)  # noqa: E731
sigmoid = scipy.special.expit
stats = scipy.stats

MORE = [
    likelihoods.Laplace("per datum"),
    likelihoods.StudentT(10.0, "per value"),
    likelihoods.LogNormal(0.4),
    likelihoods.Gamma("per datum"),
    likelihoods.Beta("per datum"),
    likelihoods.VonMises("per datum"),
    likelihoods.NegativeBinomial("per datum"),
    likelihoods.ZeroInflatedNegativeBinomial(3.0),
    likelihoods.DiscretizedLogistic("per datum", levels=5),
    likelihoods.DiscretizedLogisticMixture(1, levels=2),
]
ALL = variants(LIKELIHOODS) + MORE


def made(likelihood: Likelihood, *event_shape: int) -> Likelihood:
    """A built twin in float64, its own parameters moved off their start."""
    built = fresh(likelihood).build(event_shape=torch.Size(event_shape)).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return built


def inflated(log_p, x, gate_logits):
    """log of π [x = 0] + (1 − π) p(x)."""
    gate = sigmoid(gate_logits)
    return np.log(gate * (x == 0) + (1 - gate) * np.exp(log_p))


# --- densities ------------------------------------------------------------------------------------------------------

# By class: arguments, data, and log p(x | raw params) in SciPy's words, one row of `raw` per number the decoder says.
SCIPY = [
    (likelihoods.Laplace(0.7), "real", lambda x, a: stats.laplace.logpdf(x, a, 0.7)),
    (likelihoods.Laplace("per datum"), "real", lambda x, a, b: stats.laplace.logpdf(x, a, softplus(b) + 1e-3)),
    (likelihoods.StudentT(3.0, 0.7), "real", lambda x, a: stats.t.logpdf(x, 3.0, a, 0.7)),
    (likelihoods.LogNormal(0.7), "positive", lambda x, a: stats.lognorm.logpdf(x, 0.7, scale=np.exp(a))),
    (likelihoods.Gamma(2.5), "positive", lambda x, a: stats.gamma.logpdf(x, 2.5, scale=softplus(a) / 2.5)),
    (
        likelihoods.Gamma("per datum"),
        "positive",
        lambda x, a, b: stats.gamma.logpdf(x, softplus(b) + 0.01, scale=softplus(a) / (softplus(b) + 0.01)),
    ),
    (likelihoods.Beta(2.5), "unit", lambda x, a: stats.beta.logpdf(x, 2.5 * sigmoid(a), 2.5 * sigmoid(-a))),
    (likelihoods.VonMises(1.5), "angle", lambda x, a, b: stats.vonmises.logpdf(x, 1.5, np.arctan2(b, a))),
    (likelihoods.Poisson(), "count", lambda x, a: stats.poisson.logpmf(x, softplus(a))),
    (
        likelihoods.ZeroInflatedPoisson(),
        "count",
        lambda x, a, b: inflated(stats.poisson.logpmf(x, softplus(a)), x, b),
    ),
    (
        likelihoods.NegativeBinomial(1.7),
        "count",
        lambda x, a: stats.nbinom.logpmf(x, 1.7, 1.7 / (1.7 + softplus(a))),
    ),
    (
        likelihoods.NegativeBinomial("per datum"),
        "count",
        lambda x, a, b: stats.nbinom.logpmf(
            x, softplus(b) + 1e-3, (softplus(b) + 1e-3) / (softplus(b) + 1e-3 + softplus(a))
        ),
    ),
    (
        likelihoods.ZeroInflatedNegativeBinomial(1.7),
        "count",
        lambda x, a, b: inflated(stats.nbinom.logpmf(x, 1.7, 1.7 / (1.7 + softplus(a))), x, b),
    ),
    (
        likelihoods.DiscretizedLogistic(0.3, levels=4),
        "level",
        lambda x, a: np.log(by_cdf(x, a, 0.3, 4)),
    ),
]
DRAWS = {
    "real": lambda *s: 3 * torch.randn(*s),
    "positive": lambda *s: torch.randn(*s).exp(),
    "unit": lambda *s: torch.rand(*s),
    "angle": lambda *s: math.pi * (2 * torch.rand(*s) - 1),
    "count": lambda *s: torch.randint(6, s),
    "level": lambda *s: torch.randint(4, s),
}


def by_cdf(x, loc, scale, levels):
    """The logistic mass of each level's bin as a difference of distribution functions, which is exact where it is large."""
    s, half = 2 * np.asarray(x) / (levels - 1) - 1, 1 / (levels - 1)
    top = np.where(x == levels - 1, 1.0, stats.logistic.cdf(s + half, loc, scale))
    return top - np.where(x == 0, 0.0, stats.logistic.cdf(s - half, loc, scale))


@pytest.mark.parametrize(
    ("likelihood", "kind", "by_scipy"), SCIPY, ids=lambda v: repr(v) if hasattr(v, "build") else ""
)
def test_log_prob_is_scipys(likelihood, kind, by_scipy):
    built = fresh(likelihood).build(event_shape=torch.Size([3, 2])).double()
    params = 2 * torch.randn(7, *built.params_shape).double()
    x = DRAWS[kind](7, 3, 2).double()
    expected = by_scipy(x.numpy(), *(part.numpy() for part in params.chunk(built.params_per_value, dim=-2)))
    torch.testing.assert_close(built(params).log_prob(x), torch.as_tensor(expected).sum((-1, -2)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("theta", [0.01, 15.9, 16.1, 1e3, 1e6, 1e9])
def test_negative_binomial_goes_over_to_poisson_without_losing_digits(theta):
    """float64 to 1e-9 of SciPy's (above θ = 1e6, of the Poisson), float32 to 5e-6 of x log x, the largest term."""
    x = torch.arange(0.0, 2000, 7)[:, None]
    reference = stats.poisson(300.0) if theta > 1e6 else stats.nbinom(theta, theta / (theta + 300.0))
    expected = torch.tensor(reference.logpmf(x.double().numpy()))[:, 0]
    built = likelihoods.NegativeBinomial(theta).build(event_shape=torch.Size([1]))
    error = (built(torch.full_like(x, 300.0)).log_prob(x) - expected).abs()
    assert (error < 5e-6 * (100 + torch.special.xlogy(x, x)[:, 0])).all(), error.max()
    score = built.double()(torch.full_like(x, 300.0).double()).log_prob(x.double())
    torch.testing.assert_close(score, expected, rtol=1e-5 if theta > 1e6 else 1e-8, atol=2e-3 if theta > 1e6 else 1e-8)


def test_multinomial_takes_its_total_from_each_datum():
    built = made(likelihoods.Multinomial(9), 2, 3)
    params, x = torch.randn(5, 2, 3).double(), torch.randint(7, (5, 2, 3)).double()
    x[0] = 0
    probs = params.flatten(1).softmax(-1).numpy()
    flat = x.flatten(1).numpy()
    expected = [stats.multinomial.logpmf(flat[i], flat[i].sum(), probs[i]) for i in range(5)]
    torch.testing.assert_close(built(params).log_prob(x), torch.tensor(np.array(expected)))
    assert (built(params).sample((4,)).sum((-1, -2)) == 9).all()
    seen = built.as_input(x)
    torch.testing.assert_close(seen.sum((-1, -2)), torch.tensor([0.0, 1, 1, 1, 1]).double())


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_level_masses_are_those_of_the_logistic_and_sum_to_one(levels):
    """Masses above 1e-6 equal differences of distribution functions; all sum to one, also where loc is far outside."""
    x = torch.arange(levels).double()[:, None]
    loc = torch.tensor([-0.3, 0.0, 0.4, 1.0, -1.7, 12.0]).double()
    for scale in (1e-3, 0.03, 1.0, 40.0):
        mass = level_log_prob(x, loc, torch.full_like(loc, scale), levels).exp()
        torch.testing.assert_close(mass.sum(0), torch.ones(6).double(), rtol=1e-10, atol=1e-10)
        expected = torch.as_tensor(by_cdf(x.numpy(), loc.numpy(), scale, levels))
        kept = expected > 1e-6
        torch.testing.assert_close(mass[kept], expected[kept], rtol=1e-8, atol=1e-12)


def three_channels(components: int = 2, levels: int = 4, pixels: tuple[int, int] = (1, 1)):
    built = made(likelihoods.DiscretizedLogisticMixture(components, levels), 3, *pixels)
    return built, torch.randn(*built.params_shape).double()


def test_mixture_with_channels_is_its_formula():
    """A loop over pixels, components and channels in NumPy, read off the order in which the decoder says its numbers."""
    built, _ = three_channels(2, 4, (2, 3))
    params = torch.randn(5, *built.params_shape).double()
    x = torch.randint(4, (5, 3, 2, 3)).double()
    table = params.reshape(5, 10, 2, 2, 3).numpy()  # weight, 3 loc, 3 scale, 3 coefficients, each of 2 components
    expected = np.zeros(5)
    for n, row, column in itertools.product(range(5), range(2), range(3)):
        numbers, pixel = table[n, :, :, row, column], x[n, :, row, column].numpy()
        s, total = 2 * pixel / 3 - 1, 0.0
        for k, weight in enumerate(scipy.special.softmax(numbers[0])):
            c = np.tanh(numbers[7:, k])
            loc = numbers[1:4, k] + [0, c[0] * s[0], c[1] * s[0] + c[2] * s[1]]
            total += weight * np.prod(by_cdf(pixel, loc, softplus(numbers[4:7, k]) + 1e-3, 4))
        expected[n] += np.log(total)
    torch.testing.assert_close(built(params).log_prob(x), torch.tensor(expected))


def test_mixture_sums_to_one_and_draws_what_it_says():
    """Σ p = 1 over all 4³ pixels; frequencies of 40,000 draws within 5 standard errors of p (false alarm 4e-5)."""
    built, params = three_channels()
    pixels = torch.cartesian_prod(*[torch.arange(4.0)] * 3).double().reshape(64, 3, 1, 1)
    p = built(params)
    probs = p.log_prob(pixels).exp()
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-12)
    drawn = p.sample((40_000,)).reshape(-1, 3) @ torch.tensor([16.0, 4, 1]).double()
    frequency = torch.bincount(drawn.long(), minlength=64) / 40_000
    assert ((frequency - probs).abs() < 5 * (probs * (1 - probs) / 40_000).sqrt() + 1e-4).all()
    with pytest.raises(NotImplementedError):
        p.mean  # noqa: B018


def test_mixture_of_other_shapes_is_one_mixture_per_entry():
    built = made(likelihoods.DiscretizedLogisticMixture(3, levels=5), 2, 4)
    params = torch.randn(6, *built.params_shape).double()
    x = torch.randint(5, (6, 2, 4)).double()
    weight, loc, scale = params.reshape(6, 3, 3, 2, 4).unbind(1)
    masses = by_cdf(x[:, None].numpy(), loc.numpy(), softplus(scale.numpy()) + 1e-3, 5)
    expected = np.log((weight.softmax(1).numpy() * masses).sum(1)).sum((-1, -2))
    torch.testing.assert_close(built(params).log_prob(x), torch.tensor(expected))
    assert likelihoods.DiscretizedLogisticMixture(3).build(event_shape=torch.Size([3])).params_shape == (27,)


@pytest.mark.parametrize("event_shape", [(4,), (3, 2, 2)])
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_an_expanded_likelihood_scores_alike(likelihood, event_shape):
    built = made(likelihood, *event_shape)
    p = built(torch.randn(5, *built.params_shape).double())
    wide = p.expand((3, 5))
    assert (wide.batch_shape, wide.event_shape) == ((3, 5), event_shape)
    assert type(getattr(wide, "base_dist", wide)) is type(getattr(p, "base_dist", p))
    x = wide.sample().double()
    assert x.shape == (3, 5, *event_shape)
    with contextlib.suppress(NotImplementedError):
        wide.mean, p.mean  # noqa: B018  (a look at a moment must not change the score)
    assert torch.equal(wide.log_prob(x), p.log_prob(x))
    assert wide.expand((2, 3, 5)).batch_shape == (2, 3, 5)
    torch.testing.assert_close(wide.log_prob(x[0]), p.log_prob(x[0]).expand(3, 5))


# --- draws, means, modes ----------------------------------------------------------------------------------------------


def moments_are_claimed(likelihood: Likelihood) -> bool:
    without = (likelihoods.Categorical, likelihoods.VonMises, likelihoods.Ordinal, likelihoods.RoundedLogistic)
    return not isinstance(likelihood, without) and not (
        isinstance(likelihood, likelihoods.StudentT) and likelihood.df <= 4
    )


@pytest.mark.parametrize("likelihood", [one for one in ALL if moments_are_claimed(one)], ids=repr)
def test_draws_have_the_mean_and_variance_claimed(likelihood):
    """30,000 draws, mean and variance within 5 standard errors, by the draws' own moments (false alarm 1e-6)."""
    built = made(likelihood, 2)
    with torch.no_grad():
        p = built(0.3 * torch.randn(*built.params_shape).double())
        x = p.sample((30_000,)).double()
    error = x.std(0) / 30_000**0.5
    assert ((x.mean(0) - p.mean).abs() < 5 * error + 1e-9).all(), (x.mean(0), p.mean)
    squares = (x - x.mean(0)) ** 2
    assert ((squares.mean(0) - p.variance).abs() < 5 * squares.std(0) / 30_000**0.5 + 1e-9).all(), p.variance


def test_angles_are_drawn_about_their_direction():
    """Mean direction and 1 − mean length against torch's claims (Bessel ratios), 5 standard errors."""
    built = made(likelihoods.VonMises(1.5), 1)
    p = built(torch.tensor([-0.6, 0.8]).double())
    x = p.sample((30_000,))
    assert p.mean.item() == pytest.approx(math.atan2(0.8, -0.6))
    turned = x - p.mean
    assert abs(turned.sin().mean()) < 5 * turned.sin().std() / 30_000**0.5
    assert abs(1 - turned.cos().mean() - p.variance) < 5 * turned.cos().std() / 30_000**0.5


@pytest.mark.parametrize("event_shape", [(4,), (3, 2, 2)])
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_pictures_are_finite_and_in_range(likelihood, event_shape):
    built = made(likelihood, *event_shape)
    for spread in (1.0, 30.0):
        p = built(spread * torch.randn(5, *built.params_shape).double())
        picture = _output({"fn": p, "value": None}, "mean")
        assert picture.shape == (5, *event_shape)
        assert picture.isfinite().all()
        low, high = getattr(built.support, "lower_bound", -math.inf), getattr(built.support, "upper_bound", math.inf)
        assert ((low - 1e-9 <= picture) & (picture <= high + 1e-9)).all()


@pytest.mark.parametrize(
    "likelihood",
    [
        likelihoods.Poisson(),
        likelihoods.NegativeBinomial("per datum"),
        likelihoods.ZeroInflatedPoisson(),
        likelihoods.ZeroInflatedNegativeBinomial(3.0),
        likelihoods.DiscretizedLogistic("per datum", levels=30),
    ],
    ids=repr,
)
def test_modes_are_where_the_mass_is_largest(likelihood):
    """By trying every value up to 29; a tie counts for either."""
    built = made(likelihood, 1)
    p = built(4 * torch.randn(50, *built.params_shape).double())
    mass = torch.stack([p.log_prob(torch.full((50, 1), float(k)).double()) for k in range(30)])
    torch.testing.assert_close(p.log_prob(p.mode), mass.max(0).values)


def test_a_mixture_of_one_component_has_the_mode_of_its_channels():
    built, params = three_channels(components=1, levels=6)
    params[4:7] = -5.0  # so narrow that the mode channel after channel is the mode
    pixels = torch.cartesian_prod(*[torch.arange(6.0)] * 3).double().reshape(-1, 3, 1, 1)
    p = built(params)
    assert torch.equal(p.mode, pixels[p.log_prob(pixels).argmax()])


# --- data -----------------------------------------------------------------------------------------------------------

BAD = [
    (likelihoods.Multinomial(), -1.0),
    (likelihoods.Multinomial(), 0.5),
    (likelihoods.LogNormal(), 0.0),
    (likelihoods.Gamma(), 0.0),
    (likelihoods.Gamma(), math.inf),
    (likelihoods.Beta(), 0.0),
    (likelihoods.Beta(), 1.0),
    (likelihoods.VonMises(), 3.2),
    (likelihoods.VonMises(), 90.0),
    (likelihoods.Poisson(), -1.0),
    (likelihoods.Poisson(), 1.5),
    (likelihoods.NegativeBinomial(), 2.5),
    (likelihoods.ZeroInflatedPoisson(), math.inf),
    (likelihoods.ZeroInflatedNegativeBinomial(), -2.0),
    (likelihoods.DiscretizedLogistic(), 256.0),
    (likelihoods.DiscretizedLogistic(), 0.5),
    (likelihoods.DiscretizedLogisticMixture(levels=8), 8.0),
    (likelihoods.Laplace(), math.inf),
    (likelihoods.Normal(), math.nan),
    (likelihoods.StudentT(), math.nan),
]


@pytest.mark.parametrize(("likelihood", "value"), BAD, ids=repr)
def test_data_outside_the_support_are_named(likelihood, value):
    built = fresh(likelihood).build(event_shape=torch.Size([2, 3]))
    with torch.no_grad():
        x = built(torch.randn(4, *built.params_shape)).sample()
    built.check(x)
    x[2, 1, 0] = value
    with pytest.raises(InputError, match=rf"x\[2, 1, 0\] = {value:g} lies outside .*{type(built).__name__}"):
        built.check(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihoods.Multinomial(0), "total_count=0"),
        (lambda: likelihoods.StudentT(0.0), "df=0.0"),
        (lambda: likelihoods.Laplace("per-datum"), "scale='per-datum'.*Did you mean 'per datum'"),
        (lambda: likelihoods.Gamma(-1.0), "concentration=-1.0"),
        (lambda: likelihoods.Beta(min_concentration=0.0), "min_concentration=0.0"),
        (lambda: likelihoods.NegativeBinomial("each"), "inverse_dispersion='each'"),
        (lambda: likelihoods.DiscretizedLogistic(levels=1), "levels=1 must be at least 2"),
        (lambda: likelihoods.DiscretizedLogisticMixture(0), "components=0"),
        (lambda: likelihoods.Columns([likelihoods.Columns()]), r"columns\[0\]=Columns\(\) must be"),
        (lambda: likelihoods.Columns([likelihoods.Multinomial()]), r"columns\[0\]=Multinomial\(\) must be"),
        (lambda: likelihoods.Columns(["Normal"]), r"columns\[0\]='Normal' must be"),
        (lambda: vae((3,), likelihood=likelihoods.Columns([likelihoods.Normal()])), r"are 1, but event_shape=\(3,\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --- extremes and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 30.0, 300.0, 1e5])
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_extreme_params_give_finite_scores_and_gradients(likelihood, size):
    """All signs of `size` against all kinds of data, in float32: what an unlucky first step can ask."""
    built = fresh(likelihood).build(event_shape=torch.Size([2]))
    with torch.no_grad():
        x = built(torch.randn(64, *built.params_shape)).sample().float()
    params = (size * (2 * torch.randint(2, (64, *built.params_shape)) - 1)).float().requires_grad_()
    score = built(params).log_prob(x)
    assert score.isfinite().all()
    score.sum().backward()
    for gradient in [params.grad, *(p.grad for p in built.parameters())]:
        assert gradient.isfinite().all()


WRONG = [
    (likelihoods.Bernoulli(), [60.0], 0.0),
    (likelihoods.Binomial(4), [60.0], 0.0),
    (likelihoods.Categorical(3), [60.0, 0.0, 0.0], 1.0),
    (likelihoods.Laplace(), [60.0], 0.0),
    (likelihoods.Gamma("per datum"), [60.0, 60.0], 1e-3),
    (likelihoods.Beta("per datum"), [3.0, 60.0], 0.1),
    (likelihoods.VonMises("per datum"), [1.0, 0.0, 30.0], math.pi),
    (likelihoods.Poisson(), [60.0], 0.0),
    (likelihoods.Poisson(), [-60.0], 1.0),
    (likelihoods.NegativeBinomial(5.0), [-60.0], 1.0),
    (likelihoods.ZeroInflatedPoisson(), [3.0, 60.0], 1.0),
    (likelihoods.ZeroInflatedPoisson(), [60.0, -60.0], 0.0),
    (likelihoods.ZeroInflatedNegativeBinomial(5.0), [3.0, 60.0], 1.0),
    (likelihoods.DiscretizedLogistic("per datum"), [0.5, -9.0], 64.0),
    (likelihoods.DiscretizedLogistic(), [60.0], 0.0),
    (likelihoods.DiscretizedLogisticMixture(1), [0.0, 0.5, -9.0], 64.0),
    (likelihoods.Columns([likelihoods.Bernoulli()]), [60.0], 0.0),
]


@pytest.mark.parametrize(("likelihood", "params", "x"), WRONG, ids=repr)
def test_a_confident_wrong_value_costs_more_than_20_nats(likelihood, params, x):
    built = fresh(likelihood).build(event_shape=torch.Size([1]))
    assert -1e6 < built(torch.tensor(params)).log_prob(torch.tensor([x])).item() < -20


@pytest.mark.parametrize("event_shape", [(4,), (3, 2, 2)])
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_gradients_reach_every_number(likelihood, event_shape):
    built = made(likelihood, *event_shape)
    params = torch.randn(40, *built.params_shape).double().requires_grad_()
    with torch.no_grad():
        x = built(params).sample().double()
    built(params).log_prob(x).sum().backward()
    for gradient in [params.grad.abs().sum(0), *(p.grad for p in built.parameters())]:
        alone = isinstance(built, likelihoods.DiscretizedLogisticMixture) and built.components == 1
        moved = gradient != 0
        assert moved[built.params_shape[0] // built.params_per_value :].all() if alone else moved.all()


@pytest.mark.parametrize("event_shape", [(4,), (3, 2, 2)])
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_scores_are_captured_as_a_graph(likelihood, event_shape):
    """What make_fx wrote down at one params gives the eager score at others."""
    built = made(likelihood, *event_shape)
    params = torch.randn(2, 5, *built.params_shape).double()
    with torch.no_grad(), pyro.validation_enabled(False):
        x = built(params).sample().double()
        graph = make_fx(lambda params, x: built(params).log_prob(x))(torch.zeros_like(params), x[:1].expand_as(x))
        torch.testing.assert_close(graph(params, x), built(params).log_prob(x))


def takes_integers(likelihood: Likelihood) -> bool:
    """Torch's Bernoulli wants numbers of the params' type."""
    return not isinstance(likelihood, (likelihoods.Columns, likelihoods.Bernoulli)) and likelihood.support.is_discrete


@pytest.mark.parametrize("likelihood", [one for one in ALL if takes_integers(one)], ids=repr)
def test_whole_numbers_score_alike_as_integers(likelihood):
    built = made(likelihood, 4)
    params = torch.randn(5, *built.params_shape).double()
    x = built(params).sample().double()
    built.check(x.long())
    torch.testing.assert_close(built(params).log_prob(x.long()), built(params).log_prob(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(built.as_input(x.long()).double(), built.as_input(x).double(), rtol=1e-6, atol=1e-6)


# --- where output biases start ------------------------------------------------------------------------------------------

STARTS = {
    likelihoods.LogNormal: 0.7,
    likelihoods.Binomial: 1.3,
    likelihoods.Multinomial: 25.0,
    likelihoods.DiscretizedLogistic: 1.3,
    likelihoods.DiscretizedLogisticMixture: 0.8,
    likelihoods.VonMises: -2.0,
}


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_at_its_start_a_likelihood_has_the_mean_asked(likelihood):
    built = made(likelihood, 2, 2)
    if isinstance(built, (likelihoods.Categorical, likelihoods.Ordinal)):
        assert built.start(torch.ones(2, 2)) is None
        return
    if isinstance(built, likelihoods.RoundedLogistic):
        return  # whose mean has no closed form: tests/test_table_likelihoods.py
    middle = STARTS.get(type(built), 0.6)
    mean = middle + torch.tensor([[0.0, 0.05], [-0.1, 0.05]]).double()
    params = built.start(mean)
    assert params.shape == built.params_shape
    torch.testing.assert_close(built(params).mean, mean, rtol=1e-6, atol=1e-6)


def test_colours_start_at_their_mean():
    """The channels' mixture has no mean to read, so 40,000 draws stand in, within 5 standard errors."""
    built, _ = three_channels(2, 8)
    mean = torch.tensor([1.5, 3.0, 5.5]).double().reshape(3, 1, 1)
    x = built(built.start(mean)).sample((40_000,))
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / 200).all()


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_means_at_the_end_of_the_support_start_finite(likelihood):
    built = fresh(likelihood).build(event_shape=torch.Size([3]))
    params = built.start(torch.zeros(3))
    assert params is None or params.isfinite().all()


# --- tables -----------------------------------------------------------------------------------------------------------

KINDS = [
    likelihoods.Normal("per datum"),
    likelihoods.Categorical(3),
    likelihoods.Poisson(),
    likelihoods.Gamma(),
    likelihoods.Beta(),
    likelihoods.VonMises(),
    likelihoods.ContinuousBernoulli(),
    likelihoods.DiscretizedLogisticMixture(2, levels=6),
    likelihoods.ZeroInflatedNegativeBinomial("per value"),
]
WIDTHS = [2, 3, 1, 1, 1, 2, 1, 6, 2]


def table(*rest: int) -> tuple[Likelihood, torch.Tensor, torch.Tensor]:
    """Columns of all kinds, params, and data drawn from them."""
    built = made(likelihoods.Columns(KINDS), len(KINDS), *rest)
    params = torch.randn(6, *built.params_shape).double()
    with torch.no_grad():
        return built, params, built(params).sample()


@pytest.mark.parametrize("rest", [(), (2, 2)])
def test_a_row_is_the_sum_of_its_columns(rest):
    built, params, x = table(*rest)
    assert built.params_shape == (sum(WIDTHS), *rest)
    built.check(x)
    total = torch.zeros(6).double()
    for j, (part, piece) in enumerate(zip(built.parts, params.split(WIDTHS, dim=1), strict=True)):
        for place in itertools.product(*map(range, rest)):
            total += part(piece[(slice(None), slice(None), *place)]).log_prob(x[(slice(None), slice(j, j + 1), *place)])
    torch.testing.assert_close(built(params).log_prob(x), total)


def test_missing_entries_are_left_out_and_leave_no_mark():
    """log p without an entry is that of the table without the column; its params get no gradient, the others theirs."""
    built, params, x = table()
    torch.testing.assert_close(built(params).log_prob(torch.full_like(x, math.nan)), torch.zeros(6).double())
    for j in range(len(KINDS)):
        holed = x.clone()
        holed[:, j] = math.nan
        built.check(holed)
        assert built(params).support.check(holed).all()
        piece = params.split(WIDTHS, dim=1)[j]
        without = built(params).log_prob(x) - built.parts[j](piece).log_prob(x[:, j : j + 1])
        moving = params.clone().requires_grad_()
        score = built(moving).log_prob(holed)
        torch.testing.assert_close(score, without)
        score.sum().backward()
        gradients = moving.grad.split(WIDTHS, dim=1)
        assert moving.grad.isfinite().all()
        assert all((gradient == 0).all() == (i == j) for i, gradient in enumerate(gradients))


def test_the_encoder_sees_zero_and_a_mark_where_a_value_is_missing():
    columns = [likelihoods.Normal(), likelihoods.Categorical(3), likelihoods.Gamma()]
    built = likelihoods.Columns(columns).build(event_shape=torch.Size([3]))
    x = torch.tensor([[2.0, 1.0, 1.0], [math.nan, 2.0, math.nan], [0.0, math.nan, math.e]])
    expected = torch.tensor([[2.0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 1, 0]])
    torch.testing.assert_close(built.as_input(x), expected)
    assert built.input_shape == (8,)


def test_a_table_refuses_by_the_columns_own_support():
    built, _, x = table()
    for j, value in ((1, 3.0), (2, 0.5), (3, 0.0), (0, math.inf)):
        bad = x.clone()
        bad[4, j] = value
        with pytest.raises(InputError, match=rf"x\[4, {j}\] = {value:g} lies outside .*{type(KINDS[j]).__name__}"):
            built.check(bad)
    with pytest.raises(InputError, match="Columns leaves missing values out"):
        likelihoods.Normal().build(event_shape=torch.Size([2])).check(torch.tensor([[1.0, math.nan]]))


def test_a_table_trains_scores_and_is_rebuilt():
    torch.manual_seed(1)
    pair = VAE(event_shape=(len(KINDS),), latent_dim=2, likelihood=likelihoods.Columns(KINDS))
    with torch.no_grad():
        x = pair.likelihood(torch.randn(40, *pair.likelihood.params_shape)).sample()
    x[torch.rand(x.shape) < 0.3] = math.nan
    pair.check(x)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(math.isfinite(svi.step(x)) for _ in range(3))
    pyro.set_rng_seed(2)
    scores = log_weights(pair, (x,), 20)
    assert scores.isfinite().all()
    for table_again in (generate(pair, 4), reconstruct(pair, x), reconstruct(pair, x, output="sample")):
        assert table_again.isfinite().all()
    twin = build(spec(pair))
    assert repr(twin) == repr(pair)
    twin.load_state_dict(pair.state_dict())
    pyro.set_rng_seed(2)
    assert torch.equal(log_weights(twin, (x,), 20), scores)


def test_one_recipe_builds_two_tables():
    recipe = likelihoods.Columns([likelihoods.Normal(), likelihoods.Poisson()])
    first, second = (fresh(recipe).build(event_shape=torch.Size([2])) for _ in range(2))
    assert not recipe.columns[0].built
    assert first.parts[0].raw_scale is not second.parts[0].raw_scale
