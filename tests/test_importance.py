"""Importance weights: exact where the guide is, per datum, and the same however they are laid out."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import nn

from pyro_vae import Pair, log_weights
from pyro_vae.errors import InputError
from pyro_vae.inference.importance import Draws, Layout, _fold, find_layout, unfold
from pyro_vae.pair import DataPlate


def test_each_weight_is_the_evidence_at_the_exact_posterior(linear_gaussian):
    x = linear_gaussian.data(7)
    exact = linear_gaussian.marginal().log_prob(x)
    weights = log_weights(linear_gaussian.exact_pair(), (x,), 3)
    assert weights.shape == (3, 7)
    torch.testing.assert_close(weights, exact.expand(3, 7), rtol=0, atol=1e-10)


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_plate_and_scale_factors_never_enter(linear_gaussian, factor):
    x = linear_gaussian.data(6)

    def subsampled(program):
        def run(x):
            with pyro.plate("data", 640, subsample=x):
                mean = (x - linear_gaussian.bias) @ linear_gaussian.gain.T
                z = pyro.sample("z", dist.MultivariateNormal(mean, linear_gaussian.posterior_cov))
                if program == "model":
                    loc = z @ linear_gaussian.weight.T + linear_gaussian.bias
                    pyro.sample("x", dist.Normal(loc, linear_gaussian.noise).to_event(1), obs=x)

        def model(x):
            with pyro.plate("data", 640, subsample=x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                loc = z @ linear_gaussian.weight.T + linear_gaussian.bias
                pyro.sample("x", dist.Normal(loc, linear_gaussian.noise).to_event(1), obs=x)

        return poutine.scale(model if program == "model" else run, scale=factor)

    weights = log_weights(Pair(subsampled("model"), subsampled("guide")), (x,), 2)
    exact = linear_gaussian.marginal().log_prob(x)
    torch.testing.assert_close(weights, exact.expand(2, 6), rtol=0, atol=1e-10)


class OneBatchDimension(nn.Module):
    """A pair whose plain convolutions accept (B, C, H, W) and nothing else."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))
        self.up = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, 2, 1))
        self.rows_encoded = 0

    def model(self, x):
        pyro.module("up", self.up)
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.up(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("down", self.down)
        self.rows_encoded += len(x)
        with pyro.plate("data", len(x)):
            loc, raw = self.down(x).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, raw.exp()).to_event(1))


def test_one_batch_dimension_is_found_and_folded():
    pair, x = OneBatchDimension().double(), torch.rand(5, 1, 8, 8).round().double()
    layout = find_layout(pair, (x,))
    assert layout.fold_model
    draws = Draws(pair, (x,), layout)
    values, log_q = draws.draw(4)
    joint = draws.log_joint(values, 4)
    for k in range(4):
        trace = poutine.trace(poutine.condition(pair.model, {"code": values["code"][k]})).get_trace(x)
        trace.compute_log_prob()
        by_hand = trace.nodes["code"]["log_prob"] + trace.nodes["pixels"]["log_prob"]
        torch.testing.assert_close(joint[k], by_hand)
    assert log_q.shape == (4, 5)


def two_levels(stacked: bool) -> Pair:
    """z2 of rank 2 given z1 of rank 1, both unknown; with `stacked` False the programs take one batch dimension."""
    up, down = nn.Linear(2, 6).double(), nn.Linear(4, 2).double()

    def lift(z):
        if not stacked and z.dim() != 2:
            raise TypeError("one batch dimension, please")
        return up(z).reshape(*z.shape[:-1], 2, 3)

    def model(x):
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(lift(z1), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(z2.sum(-1).repeat_interleave(2, -1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Normal(down(x), 0.7).to_event(1))
            pyro.sample("z2", dist.Normal(lift(z1) + x.mean(-1)[..., None, None], 0.9).to_event(2))

    return Pair(model, guide)


@pytest.mark.parametrize("stacked", [True, False])
def test_several_latents_of_different_rank(stacked):
    pair, x = two_levels(stacked), torch.randn(4, 4).double()
    layout = find_layout(pair, (x,))
    assert layout.fold_guide == layout.fold_model == (not stacked)
    draws = Draws(pair, (x,), layout)
    values, log_q = draws.draw(3)
    assert {n: tuple(v.shape) for n, v in values.items()} == {"z1": (3, 4, 2), "z2": (3, 4, 2, 3)}
    for program, total in ((pair.model, draws.log_joint(values, 3)), (pair.guide, log_q)):
        for k in range(3):
            one = {name: v[k] for name, v in values.items()}
            trace = poutine.trace(poutine.condition(program, one)).get_trace(x)
            trace.compute_log_prob()
            by_hand = sum(
                s["log_prob"]
                for s in trace.nodes.values()
                if s["type"] == "sample" and "log_prob" in s and s["name"] != "rows"
            )
            torch.testing.assert_close(total[k], by_hand)


def test_inner_plates_are_summed_and_the_data_plate_kept():
    """Data at dim −2, pixels at dim −1; exact answer by the normal's convolution."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("pixels", 1, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    x = torch.randn(5, 1).double()
    exact = dist.Normal(torch.zeros(()).double(), math.sqrt(2.0)).log_prob(x[:, 0])
    weights = log_weights(Pair(model, guide), (x,), 4)
    torch.testing.assert_close(weights, exact.expand(4, 5), rtol=0, atol=1e-10)


def test_masked_entries_do_not_count(linear_gaussian):
    x, keep = linear_gaussian.data(6), torch.tensor([True, False, True, True, False, True])

    def masked(program):
        def run(x, keep):
            with poutine.mask(mask=keep):
                program(x)

        return run

    pair = Pair(masked(linear_gaussian.model), masked(linear_gaussian.exact_guide))
    exact = torch.where(keep, linear_gaussian.marginal().log_prob(x), 0.0)
    torch.testing.assert_close(log_weights(pair, (x, keep), 2), exact.expand(2, 6), rtol=0, atol=1e-10)


def test_auxiliary_variables_of_the_guide_count_in_q_alone():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 1.0))

    x = torch.randn(3).double()
    draws = Draws(Pair(model, guide), (x,), find_layout(Pair(model, guide), (x,)))
    values, log_q = draws.draw(2)
    expected = dist.Normal(0.0, 1.0).log_prob(values["a"]) + dist.Normal(values["a"], 1.0).log_prob(values["z"])
    torch.testing.assert_close(log_q, expected)


def test_weights_are_differentiable_through_the_draws(linear_gaussian):
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def guide(x):
        exact = linear_gaussian.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(exact.mean + shift, exact.covariance_matrix))

    weights = log_weights(Pair(linear_gaussian.model, guide), (linear_gaussian.data(5),), 2)
    weights.sum().backward()
    assert shift.grad.isfinite()
    assert shift.grad != 0


def test_a_latent_outside_the_data_plate_is_refused_by_name():
    def model(x):
        weight = pyro.sample("global_weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * weight, 1.0), obs=x)

    def guide(x):
        pyro.sample("global_weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(InputError, match="global_weight.*elbo_terms"):
        log_weights(Pair(model, guide), (torch.zeros(3),), 2)


def test_guide_and_model_that_do_not_match_are_refused(linear_gaussian):
    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(InputError, match="model samples 'z', but the guide does not"):
        log_weights(Pair(linear_gaussian.model, other), (linear_gaussian.data(3),), 2)


def test_a_program_that_takes_no_particles_says_why():
    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z.reshape(3), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(InputError, match="model can't be run with several particles"):
        log_weights(Pair(model, guide), (torch.zeros(3),), 2)


@settings(deadline=None, max_examples=60)
@given(
    particles=st.integers(1, 4),
    size=st.integers(1, 4),
    inner=st.lists(st.integers(1, 3), max_size=2),
    event=st.lists(st.integers(1, 3), max_size=2),
)
def test_unfolding_undoes_folding_at_any_shape(particles, size, inner, event):
    """Data at dimension −1 − len(inner): (K, N, *inner, *event) goes to (K·N, *inner, *event) and back."""
    layout = Layout(DataPlate("data", -1 - len(inner), size), -2 - len(inner), {}, True)
    value = torch.rand(particles, size, *inner, *event)
    folded = _fold(value, layout, len(event))
    assert folded.shape == (particles * size, *inner, *event)
    assert torch.equal(folded[size * (particles - 1)], value[-1, 0])
    assert torch.equal(unfold(folded, layout, len(event), particles), value)
