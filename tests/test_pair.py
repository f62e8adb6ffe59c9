"""Hand-written pairs go through fit, log_likelihood, elbo_terms, generate, reconstruct and encode as they are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import Pair, elbo_terms, encode, fit, generate, log_likelihood, reconstruct
from pyro_vae.errors import InputError
from pyro_vae.inference.sampling import Posterior
from pyro_vae.pair import as_pair, modules
from tests.conftest import random_states
from tests.test_importance import OneBatchDimension, two_levels

PIXELS = 12


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, PIXELS)
        self.softplus = nn.Softplus()
        self.sigmoid = nn.Sigmoid()

    def forward(self, z):
        hidden = self.softplus(self.fc1(z))
        return self.sigmoid(self.fc21(hidden))


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(PIXELS, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x):
        x = x.reshape(-1, PIXELS)
        hidden = self.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class TutorialVAE(nn.Module):
    """As Pyro's tutorial has it, but for the number of pixels; greys pass by `validate_args=False`."""

    def __init__(self, z_dim=3, hidden_dim=8):
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim)
        self.decoder = Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def bare_functions():
    """The same as two functions with globals of their own, registered by pyro.module."""
    vae = TutorialVAE()
    encoder, decoder = vae.encoder, vae.decoder

    def model(x):
        pyro.module("bare_decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(torch.zeros(x.shape[0], 3), torch.ones(x.shape[0], 3)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(decoder(z), validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))

    def guide(x):
        pyro.module("bare_encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))

    return Pair(model, guide)


@pytest.mark.parametrize("make", [TutorialVAE, bare_functions, lambda: Pair(TutorialVAE().model, TutorialVAE().guide)])
@pytest.mark.parametrize("relaxed", [True, False])
def test_the_tutorial_goes_through_all_six(make, relaxed):
    x = torch.rand(40, 3, 4)
    x = x if relaxed else x.round()
    pair = make()
    result = fit(pair, x, epochs=20, batch_size=16, lr=1e-2, progress=False, seed=0)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    score = log_likelihood(pair, x, 30)
    assert score.values.shape == (40,)
    assert bool(score.notes) == relaxed
    terms = elbo_terms(pair, x)
    assert set(terms.sites) == {"latent", "obs"}
    assert terms.elbo < score.mean + 0.5
    assert generate(pair, 5).shape == (5, 3, 4)
    assert set(generate(pair, 5).unique().tolist()) <= {0.0, 1.0}
    again = reconstruct(pair, x)
    assert again.shape == x.shape
    assert ((again > 0) & (again < 1)).all()
    posterior = encode(pair, x)
    assert (posterior.batch_shape, posterior.event_shape) == ((40,), (3,))
    assert posterior.sample((7,)).shape == (7, 40, 3)


def test_greys_with_validation_meet_the_ways_out():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    grey = torch.full((4,), 0.3)
    for act in (
        lambda: log_likelihood(Pair(model, guide), grey, 3),
        lambda: fit(Pair(model, guide), grey, progress=False),
    ):
        with pytest.raises(InputError, match="binarize=.*ContinuousBernoulli.*validate_args=False"):
            act()


def test_greys_pass_where_the_user_switched_validation_off_as_the_tutorial_does():
    class Strict(TutorialVAE):
        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    pair, x = Strict(), torch.rand(20, PIXELS)
    with pytest.raises(InputError, match="support"):
        fit(pair, x, epochs=1, progress=False)
    before = torch.distributions.Distribution._validate_args
    dist.enable_validation(False)
    try:
        assert len(fit(pair, x, epochs=2, progress=False).history) == 2
        assert "no log-likelihood" in log_likelihood(pair, x, 9).notes[0]
    finally:
        dist.enable_validation(before)


def test_networks_with_one_batch_dimension_go_through_all_six():
    pair, x = OneBatchDimension(), torch.rand(20, 1, 8, 8).round()
    fit(pair, x, epochs=2, batch_size=8, progress=False)
    assert log_likelihood(pair, x, 11).values.shape == (20,)
    assert elbo_terms(pair, x).values.shape == (20,)
    assert generate(pair, 3).shape == reconstruct(pair, x[:3]).shape == (3, 1, 8, 8)
    assert encode(pair, x).sample((2,)).shape == (2, 20, 3)


@pytest.mark.parametrize("stacked", [True, False])
def test_several_latents_are_encoded_per_site(stacked):
    pair, x = two_levels(stacked), torch.randn(9, 4).double()
    posterior = encode(pair, x, batch_size=4)
    assert isinstance(posterior, Posterior)
    draws = posterior.sample((5, 2))
    assert {name: tuple(v.shape) for name, v in draws.items()} == {"z1": (5, 2, 9, 2), "z2": (5, 2, 9, 2, 3)}
    assert {tuple(v.shape) for v in posterior.sample().values()} == {(9, 2), (9, 2, 3)}
    mean = posterior.sample((4000,))["z1"].mean(0)
    down = modules(pair)[-1] if modules(pair)[-1].in_features == 4 else modules(pair)[0]
    # The guide's z1 is N(down(x), 0.7²): means of 4,000 draws lie within 5 standard errors (false alarm 1e-5).
    assert (mean - down(x)).abs().max() < 5 * 0.7 / 4000**0.5
    reconstruct(pair, x)
    assert generate(pair, 3, like=x).shape == (3, 4)


def test_large_data_are_encoded_in_chunks():
    pair, x = TutorialVAE(), torch.rand(30, PIXELS)
    whole, parts = encode(pair, x), encode(pair, x, batch_size=7)
    z = whole.sample((4,))
    assert (parts.batch_shape, parts.event_shape) == (whole.batch_shape, whole.event_shape)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.variance, whole.variance)
    torch.testing.assert_close(parts.log_prob(z), whole.log_prob(z))
    assert parts.sample((4, 2)).shape == (4, 2, 30, 3)


class Conditional(nn.Module):
    """p(x | z, y) with q(z | x, y): a batch of two tensors."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2 + 3, 4), nn.Linear(4 + 3, 4)

    def model(self, x, y):
        pyro.module("cond_up", self.up)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            features = torch.cat([z, y.expand(*z.shape[:-1], 3)], -1)
            pyro.sample("x", dist.Normal(self.up(features), 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("cond_down", self.down)
        with pyro.plate("data", len(x)):
            loc, raw = self.down(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def test_tuple_batches_go_through_all_six():
    pair = Conditional()
    x, y = torch.randn(20, 4), torch.eye(3)[torch.randint(3, (20,))]
    result = fit(pair, (x, y), epochs=2, batch_size=8, progress=False)
    assert len(result.history) == 2
    assert log_likelihood(pair, (x, y), 9).values.shape == (20,)
    assert elbo_terms(pair, (x, y)).values.shape == (20,)
    assert generate(pair, 20, condition=y).shape == (20, 4)
    assert reconstruct(pair, (x, y)).shape == (20, 4)
    assert encode(pair, (x, y)).sample((2,)).shape == (2, 20, 2)
    with pytest.raises(InputError, match="condition"):
        generate(pair, 3)
    with pytest.raises(InputError, match="condition has 20 rows"):
        generate(pair, 3, condition=y)


def test_modules_are_found_behind_functions_methods_and_partials():
    import functools

    vae = TutorialVAE()
    assert modules(Pair(vae.model, vae.guide)) == [vae]
    assert {type(m) for m in modules(bare_functions())} == {Encoder, Decoder}

    def model(net, x):
        return net(x)

    net = nn.Linear(2, 2)
    assert modules(Pair(functools.partial(model, net), lambda x: None)) == [net]


def test_modules_in_containers_are_found():
    nets = {"inner": [nn.Linear(2, 2)]}
    assert modules(Pair(lambda x: nets["inner"][0](x), lambda x: None)) == nets["inner"]


def test_a_forgotten_pyro_module_is_told(caplog):
    up, down = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(up(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("told_down", down)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(down(x), 1.0).to_event(1))

    fit(Pair(model, guide), torch.randn(8, 4), epochs=1, progress=False)
    assert "2 parameters are not known to Pyro and stay as they are (Linear.weight, Linear.bias)" in caplog.text


def test_a_plate_of_fixed_size_is_explained():
    def model(x):
        with pyro.plate("data", 50):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 50):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match=r"fixed size 50.*len\(x\)"):
        log_likelihood(Pair(model, guide), torch.randn(50), 3)


def test_a_second_module_under_the_same_name_is_an_error_that_names_both():
    x = torch.rand(8, PIXELS).round()
    fit(TutorialVAE(hidden_dim=8), x, epochs=1, progress=False)
    with pytest.raises(InputError, match=r"'encoder'.*\(8, 12\).*\(5, 12\)"):
        fit(TutorialVAE(hidden_dim=5), x, epochs=1, progress=False)
    pyro.clear_param_store()
    fit(TutorialVAE(hidden_dim=5), x, epochs=1, progress=False)


def test_generate_needs_to_know_what_data_look_like():
    pair = TutorialVAE()
    with pytest.raises(InputError, match="like="):
        generate(pair, 4)
    assert generate(pair, 4, like=torch.zeros(1, 3, 4)).shape == (4, 3, 4)


def test_seeds_repeat_draws_and_leave_the_random_state_alone():
    pair, x = TutorialVAE(), torch.rand(6, PIXELS).round()
    before = random_states()
    assert torch.equal(generate(pair, 4, like=x, seed=1), generate(pair, 4, like=x, seed=1))
    assert torch.equal(reconstruct(pair, x, seed=1), reconstruct(pair, x, seed=1))
    encode(pair, x)
    assert random_states() == before
    assert not torch.equal(generate(pair, 4, like=x), generate(pair, 4, like=x))


def test_generate_means_are_the_models_means(linear_gaussian):
    """Means over 20,000 draws of x agree with the bias within 5 standard errors (false alarm 3e-6)."""
    pair = linear_gaussian.exact_pair()
    drawn = generate(pair, 20_000, like=linear_gaussian.data(1), seed=0)
    spread = (linear_gaussian.marginal().variance / 20_000).sqrt()
    assert ((drawn.mean(0) - linear_gaussian.bias).abs() < 5 * spread).all()
    again = reconstruct(pair, linear_gaussian.data(3), seed=0)
    assert again.shape == (3, 5)


def test_reconstructions_come_from_the_posterior_of_their_datum(linear_gaussian):
    """Means over 2,000 draws of z agree with W E[z | x] + b within 5 standard errors (false alarm 1e-5)."""
    x = linear_gaussian.data(3)
    again = torch.stack([reconstruct(linear_gaussian.exact_pair(), x, seed=s) for s in range(2000)])
    expected = linear_gaussian.posterior(x).mean @ linear_gaussian.weight.T + linear_gaussian.bias
    assert ((again.mean(0) - expected).abs() < 5 * again.std(0) / 2000**0.5).all()


def test_two_observed_sites_come_back_by_name():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x)
            pyro.sample("b", dist.Categorical(logits=torch.zeros(3)), obs=torch.zeros(len(x)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    again = reconstruct(Pair(model, guide), torch.randn(5))
    assert {name: tuple(v.shape) for name, v in again.items()} == {"a": (5,), "b": (5,)}
    assert again["b"].unique().tolist() == [0]  # a categorical has no mean: its mode


@pytest.mark.parametrize("bad", [None, 3, nn.Linear(1, 1), TutorialVAE])
def test_what_is_no_pair_is_refused(bad):
    with pytest.raises(InputError, match="must have callable `model` and `guide`"):
        as_pair(bad)
    with pytest.raises(InputError, match="guide=None"):
        Pair(lambda x: x, None)


def test_a_tuple_of_two_programs_is_a_pair(linear_gaussian):
    score = log_likelihood((linear_gaussian.model, linear_gaussian.exact_guide), linear_gaussian.data(3), 1)
    assert score.num_data == 3


def test_plain_pyro_trains_a_pair(linear_gaussian):
    pair = TutorialVAE()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    x = torch.rand(20, PIXELS).round()
    losses = [svi.step(x) for _ in range(20)]
    assert losses[-1] < losses[0]
