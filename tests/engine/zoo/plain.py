"""Pure programs, which nothing is wrong with: these have to be captured in mode "graph"."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from tests.engine.zoo.program import (
    Program,
    alone,
    batches,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_guide,
    usual_model,
)

pure = program(captured=True, visible=False)


@pure
def plain_vae():
    """Nothing."""
    return alone(usual_model())


@pure
def plain_vae_two_particles():
    """Nothing; two particles in a loop."""
    return alone(usual_model(), loss=Trace_ELBO(num_particles=2))


@pure
def plain_vae_vectorized_particles():
    """Nothing; three vectorized particles."""
    loss = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return alone(usual_model(), loss=loss)


@pure
def plain_mean_field():
    """Nothing; analytic KL."""
    return alone(usual_model(), loss=TraceMeanField_ELBO())


@pure
def plain_trace_graph():
    """Nothing; TraceGraph_ELBO."""
    return alone(usual_model(), loss=TraceGraph_ELBO())


@pure
def plain_renyi():
    """Nothing; RenyiELBO."""
    loss = RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return alone(usual_model(), loss=loss)


@pure
def plain_float64():
    """Nothing; float64 throughout."""
    decoder, encoder = decoder_net().double(), encoder_net().double()
    data = [x.double() for x in batches()]

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Program(model, lambda x: infer(x, encoder), args=lambda step: (data[step % 3],))


@pure
def constrained_params():
    """Nothing; constrained parameters of the store."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc * weights, scale).to_event(1), obs=x)

    return alone(model, lambda x: None)


@pure
def enumerated_mixture():
    """Nothing; a discrete latent is summed out."""

    def model(x):
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([[0.0, 0.5, 1.0], [1.0, -0.5, 0.0]]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 1.0).to_event(1), obs=x)

    return alone(config_enumerate(model), lambda x: None, loss=TraceEnum_ELBO(max_plate_nesting=1))


def regression(auto):
    """A Bayesian regression with an AutoGuide."""

    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, :2] @ weight, noise), obs=x[:, 2])

    return alone(model, auto(model))


@pure
def auto_normal():
    """Nothing; AutoNormal."""
    return regression(AutoNormal)


@pure
def auto_diagonal_normal():
    """Nothing; AutoDiagonalNormal."""
    return regression(AutoDiagonalNormal)


@pure
def auto_multivariate_normal():
    """Nothing; AutoMultivariateNormal."""
    return regression(AutoMultivariateNormal)


@pure
def auto_low_rank():
    """Nothing; AutoLowRankMultivariateNormal."""
    return regression(AutoLowRankMultivariateNormal)


@pure
def auto_delta():
    """Nothing; AutoDelta."""
    return regression(AutoDelta)


@program(visible=False)
def pyro_module_with_samples():
    """Nothing; a PyroModule with a PyroSample prior and a PyroParam."""

    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

        def forward(self, x):
            mean = self.linear(x[:, :2]).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.noise), obs=x[:, 2])

    torch.manual_seed(3)
    model = Regression()
    return alone(model, AutoNormal(model))


@pure
def scaled_and_masked():
    """Nothing; poutine.scale and poutine.mask with fixed values."""
    decoder, mask = decoder_net(), torch.arange(8) % 2 == 0

    def model(x):
        with poutine.scale(scale=0.5), poutine.mask(mask=mask):
            observe(x, decoder)

    def guide(x, encoder=encoder_net()):  # noqa: B008
        with poutine.scale(scale=0.5), poutine.mask(mask=mask):
            infer(x, encoder)

    return alone(model, guide)


@pure
def factor_and_deterministic():
    """Nothing; pyro.factor and pyro.deterministic."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.deterministic("norm", z.norm())
        pyro.factor("penalty", -0.1 * z.square().sum())

    return alone(model)


@pure
def subsampled_plate():
    """Nothing; a plate of known size, subsampled by the batch."""
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", 100, subsample=x):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Program(model, guide)


@program(visible=False)
def subsample_drawn_by_plate():
    """The plate draws its own indices from torch's generator."""
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[index])

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            loc, raw = encoder(x[index]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Program(model, guide)


@program(visible=False)
def missing_values_obs_mask():
    """Nothing; obs_mask imputes the missing values in the guide."""
    decoder = decoder_net()
    mask = torch.arange(8) % 3 != 0

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x, obs_mask=mask)

    encoder = encoder_net()

    def guide(x):
        pyro.module("encoder", encoder)
        missing = pyro.param("missing", torch.zeros(8, 3))
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            pyro.sample("x_unobserved", dist.Normal(missing, 1.0).to_event(1))

    return alone(model, guide)


@pure
def rejection_gamma():
    """Nothing; gamma latents, whose sampler rejects."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.full((2,), 2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(shape, 1.0).to_event(1))

    return alone(model, guide)


@program(visible=False)
def score_function_latent():
    """Nothing; a Bernoulli latent with the score-function gradient."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logit))

    return alone(model, guide)


@pure
def usual_guide_of_lambda():
    """Nothing; the model is a lambda."""
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder), usual_guide())
