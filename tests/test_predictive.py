"""Predictive checks: exact level under the model, and data that the model does not fit."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import InputError, Pair, posterior_predictive
from pyro_vae.inference.predictive import _two_sided
from tests.component_table import vae
from tests.conftest import random_states


def test_prior_pvalues_are_valid_for_data_of_the_model(linear_gaussian):
    """40 data sets of the model, 19 replicates each: at level 10 %, more than 10 rejections have a chance of 0.2 %."""
    pair = linear_gaussian.exact_pair()
    checks = [
        posterior_predictive(pair, linear_gaussian.data(20, seed=s), num_replicates=19, latents="prior", seed=s)
        for s in range(40)
    ]
    assert sum(check.pvalue <= 0.1 for check in checks) <= 10
    assert sum(check.pvalues["mean"] <= 0.1 for check in checks) <= 10
    assert sum(check.pvalues["mean"] <= 0.5 for check in checks) >= 2  # and they do vary


@pytest.mark.parametrize("latents", ["prior", "posterior"])
def test_data_of_another_scale_are_found(linear_gaussian, latents):
    x = 1.5 * linear_gaussian.data(200)
    check = posterior_predictive(linear_gaussian.exact_pair(), x, latents=latents, num_replicates=99)
    assert "standard deviation" in check.rejected
    assert "standard deviation" in str(check)
    assert check.pvalue <= 0.02


def test_pvalues_count_the_data_among_the_replicates():
    by_hand = {3.0: 0.5, 1.0: 1.0, 2.0: 1.0, 0.0: 0.5}  # of 4: the largest and the smallest have 2 · 1/4
    for value, p in by_hand.items():
        rest = [other for other in by_hand if other != value]
        assert _two_sided(torch.tensor([value, *rest]))[0] == p
    assert _two_sided(torch.tensor([1.0, 1.0, 0.0]))[0] == 1.0  # ties count on both sides


def test_replicates_have_the_models_distribution(linear_gaussian):
    """Mean and second moment of one coordinate over 100 replicates of 100 data, within 5 standard errors."""
    statistics = {"x0": lambda x: x[:, 0].mean(), "x0²": lambda x: ((x[:, 0] - linear_gaussian.bias[0]) ** 2).mean()}
    pair, x = linear_gaussian.exact_pair(), linear_gaussian.data(100)
    check = posterior_predictive(pair, x, statistics, latents="prior", num_replicates=100)
    variance = linear_gaussian.marginal().covariance_matrix[0, 0].item()
    for name, exact in (("x0", linear_gaussian.bias[0].item()), ("x0²", variance)):
        values = check.replicated[name]
        assert abs(values.mean().item() - exact) < 5 * values.std().item() / math.sqrt(100)


def test_posterior_replicates_lie_around_the_data(linear_gaussian):
    """E[x' | x] = W E[z | x] + b for the exact guide, compared at one datum over 400 replicates."""
    x = linear_gaussian.data(3)
    wanted = linear_gaussian.posterior(x).mean @ linear_gaussian.weight.T + linear_gaussian.bias
    check = posterior_predictive(linear_gaussian.exact_pair(), x, {"first": lambda x: x[0, 0]}, num_replicates=400)
    values = check.replicated["first"]
    assert abs(values.mean() - wanted[0, 0]) < 5 * values.std() / 20


def test_what_is_missing_in_data_is_missing_in_replicates():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            there = ~x.isnan()
            with pyro.poutine.mask(mask=there):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model.missing_allowed = True
    seen = []

    def count(x):
        seen.append(int(x.isnan().sum()))
        return x.nanmean()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num() / 2, 0.7))

    pair = Pair(model, guide)
    pair.likelihood = type("Likelihood", (), {"missing_allowed": True})()
    x = torch.randn(30)
    x[:7] = math.nan
    with pyro.validation_enabled(False):
        posterior_predictive(pair, x, {"mean": count}, num_replicates=5)
    assert seen == [7] * 6


def test_several_sites_are_put_back_where_they_were_observed():
    """x[:, 0] ~ N(z, 1) and x[:, 1] ~ N(100 + z, 1) from the batch's columns."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(100 + z, 1.0), obs=x[:, 1])
            pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.7))

    statistics = {"a": lambda x: x[:, 0].mean(), "b": lambda x: x[:, 1].mean()}
    check = posterior_predictive(Pair(model, guide), torch.randn(50, 2), statistics, num_replicates=9)
    assert (check.replicated["a"].abs() < 3).all()
    assert ((check.replicated["b"] - 100).abs() < 3).all()


def test_binary_data_and_state(tmp_path):
    torch.manual_seed(0)
    pair, x = vae(), torch.rand(40, 4).round()
    before = random_states()
    check = posterior_predictive(pair, x, num_replicates=19)
    assert before == random_states()
    assert "standard deviation" not in check.observed  # of bits the mean says it already
    check.save(tmp_path / "p.json")
    assert len(check.plot().axes) >= len(check.observed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latents": "guide"}, "latents='guide'"),
        ({"num_replicates": 0}, "num_replicates=0"),
        ({"statistics": {}}, "statistics is empty"),
        ({"statistics": {"t": lambda x: x.mean(0)}}, r"statistics\['t'\] returned shape"),
        ({"statistics": {"t": lambda x: x.log().mean()}}, "not a number"),
    ],
)
def test_bad_input_is_named(linear_gaussian, arguments, words):
    with pytest.raises(InputError, match=words):
        posterior_predictive(linear_gaussian.exact_pair(), linear_gaussian.data(5) - 50, **arguments)
