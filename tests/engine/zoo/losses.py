"""Losses: Pyro's with settings that change, subclasses, and functions of the user's."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    EnergyDistance,
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)

from tests.engine.zoo.program import (
    Program,
    alone,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)

quiet = program(visible=False)


@program()
def number_of_particles():
    """`elbo.num_particles` changes."""
    elbo = Trace_ELBO()
    return changing(usual_model(), lambda value: setattr(elbo, "num_particles", int(value) + 1), loss=elbo)


@program()
def renyi_alpha():
    """`alpha` of RenyiELBO changes."""
    elbo = RenyiELBO(alpha=0.2, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return changing(usual_model(), lambda value: setattr(elbo, "alpha", -value), loss=elbo)


@quiet
def wake_sleep():
    """ReweightedWakeSleep, which returns two losses."""
    loss = ReweightedWakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return alone(usual_model(), loss=loss)


@quiet
def tail_adaptive():
    """TraceTailAdaptive_ELBO."""
    loss = TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    return alone(usual_model(), loss=loss)


@quiet
def energy_distance():
    """EnergyDistance."""

    def model(x=None):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", 8):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    loss = EnergyDistance(num_particles=4)
    return alone(model, lambda x=None: None, loss=loss)


@quiet
def maximum_mean_discrepancy():
    """Trace_MMD."""
    from pyro.contrib.gp.kernels import RBF

    loss = Trace_MMD(kernel=RBF(input_dim=2), num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return alone(usual_model(), loss=loss)


@quiet
def jit_elbo():
    """JitTrace_ELBO, Pyro's own tracing."""
    return alone(usual_model(), loss=JitTrace_ELBO(ignore_jit_warnings=True))


@quiet
def tensor_monte_carlo():
    """TraceTMC_ELBO."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"enumerate": "parallel", "num_samples": 3})
            pyro.sample("x", dist.Normal(scale * z.unsqueeze(-1).expand((*z.shape, 3)), 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0), infer={"enumerate": "parallel", "num_samples": 3})

    return Program(model, guide, loss=TraceTMC_ELBO(max_plate_nesting=1))


@quiet
def baseline():
    """TraceGraph_ELBO with a decaying-average baseline, which changes in the param store."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "k",
                dist.Bernoulli(logits=logit),
                infer={"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}},
            )

    return Program(model, guide, loss=TraceGraph_ELBO())


@quiet
def baseline_network():
    """TraceGraph_ELBO with a baseline network."""
    torch.manual_seed(4)
    network = torch.nn.Linear(3, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("baseline", network)
        logit = pyro.param("logit", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "k",
                dist.Bernoulli(logits=logit),
                infer={"baseline": {"nn_baseline": lambda y: network(y).squeeze(-1), "nn_baseline_input": x}},
            )

    return Program(model, guide, loss=TraceGraph_ELBO())


@program()
def enumeration_switched():
    """A site's `infer` dict is changed between enumeration and sampling."""
    options = {"enumerate": "parallel"}

    def model(x):
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(k.unsqueeze(-1) * 1.0, 1.0).expand((*k.shape, 3)).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.tensor([0.0, 0.4]))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits), infer=dict(options))

    def write(value):
        options["enumerate"] = None if options["enumerate"] else "parallel"

    return changing(model, write, guide, loss=TraceEnum_ELBO(max_plate_nesting=1))


@program()
def scale_of_elbo_outside():
    """A network's loss is scaled by `poutine.scale` on model and guide, by a number in a dict."""
    from pyro import poutine

    decoder, encoder, options = decoder_net(), encoder_net(), {"scale": 1.0}

    def model(x):
        with poutine.scale(scale=options["scale"]):
            observe(x, decoder)

    def guide(x):
        with poutine.scale(scale=options["scale"]):
            infer(x, encoder)

    return changing(model, lambda value: options.update(scale=value), guide)
