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
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.poutine import replay, trace

from tests.engine.zoo.program import (
    Program,
    alone,
    changes,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_guide,
    usual_model,
)

quiet = program(visible=False)


def elbo_of(model, guide, *args, beta=1.0):
    """A negative ELBO by hand, with a factor on the KL."""
    guide_trace = trace(guide).get_trace(*args)
    model_trace = trace(replay(model, trace=guide_trace)).get_trace(*args)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    divergence = guide_trace.nodes["z"]["log_prob_sum"] - model_trace.nodes["z"]["log_prob_sum"]
    return beta * divergence - model_trace.nodes["x"]["log_prob_sum"]


@quiet
def own_loss_function():
    """Nothing; a loss function of the user's."""
    return alone(usual_model(), loss=elbo_of)


@program()
def own_loss_closure():
    """A loss of the user's, whose beta is in a list."""
    beta = [1.0]

    def loss(model, guide, *args):
        return elbo_of(model, guide, *args, beta=beta[0])

    return changing(usual_model(), lambda value: beta.__setitem__(0, value), loss=loss)


@program()
def own_loss_by_nonlocal():
    """A loss of the user's, whose beta is a number in the closure."""
    beta = 1.0

    def loss(model, guide, *args):
        return elbo_of(model, guide, *args, beta=beta)

    def write(value):
        nonlocal beta
        beta = value

    return changing(usual_model(), write, loss=loss)


@program("calls", "history", "losses")
def own_loss_that_anneals():
    """A loss of the user's counts its calls, and anneals."""
    calls, rate = [0], 0.1 if changes() else 0.0

    def loss(model, guide, *args):
        calls[0] += 1
        return elbo_of(model, guide, *args, beta=1.0 + rate * calls[0])

    return alone(usual_model(), loss=loss, kept=lambda: calls)


@program("history", "losses", "append", visible=False)
def own_loss_that_records():
    """A loss of the user's appends its terms to a list."""
    history = []

    def loss(model, guide, *args):
        value = elbo_of(model, guide, *args)
        history.append(value.item())
        return value

    return alone(usual_model(), loss=loss, kept=lambda: history)


@program()
def own_loss_object():
    """A callable object is the loss, with an attribute that changes."""

    class Loss:
        beta = 1.0

        def __call__(self, model, guide, *args):
            return elbo_of(model, guide, *args, beta=self.beta)

    loss = Loss()
    return changing(usual_model(), lambda value: setattr(loss, "beta", value), loss=loss)


@quiet
def differentiable_loss_given():
    """`loss=elbo.differentiable_loss`."""
    return alone(usual_model(), loss=Trace_ELBO().differentiable_loss)


@quiet
def own_loss_of_two_parts():
    """A loss of the user's adds a penalty on a network's weights."""
    decoder, elbo = decoder_net(), TraceMeanField_ELBO()

    def loss(model, guide, *args):
        return elbo.differentiable_loss(model, guide, *args) + decoder.weight.square().sum()

    return alone(lambda x: observe(x, decoder), loss=loss)


@quiet
def own_loss_without_gradient():
    """A loss of the user's returns a number without a gradient."""
    return alone(usual_model(), loss=lambda model, guide, *args: elbo_of(model, guide, *args).detach())


@program()
def number_of_particles():
    """`elbo.num_particles` changes."""
    elbo = Trace_ELBO()
    return changing(usual_model(), lambda value: setattr(elbo, "num_particles", round(2 * value)), loss=elbo)


@program()
def renyi_alpha():
    """`alpha` of RenyiELBO changes."""
    elbo = RenyiELBO(alpha=0.2, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    return changing(usual_model(), lambda value: setattr(elbo, "alpha", -value), loss=elbo)


@program()
def elbo_subclass_with_beta():
    """A subclass of Trace_ELBO with a factor that changes."""

    class Tempered(Trace_ELBO):
        beta = 1.0

        def _differentiable_loss_particle(self, model_trace, guide_trace):
            loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
            return self.beta * loss, self.beta * surrogate

    elbo = Tempered()
    return changing(usual_model(), lambda value: setattr(elbo, "beta", value), loss=elbo)


@program("calls", "history", visible=False)
def elbo_subclass_that_counts():
    """A subclass of Trace_ELBO counts in its loss_and_grads."""

    class Counting(Trace_ELBO):
        calls = 0

        def loss_and_grads(self, model, guide, *args, **kwargs):
            self.calls += 1
            return super().loss_and_grads(model, guide, *args, **kwargs)

    elbo = Counting()
    return alone(usual_model(), loss=elbo, kept=lambda: elbo.calls)


@program()
def elbo_subclass_own_gradients():
    """A subclass of Trace_ELBO scales the gradients after backward, by a number that changes."""

    class Scaled(Trace_ELBO):
        gain = 1.0

        def loss_and_grads(self, model, guide, *args, **kwargs):
            loss = super().loss_and_grads(model, guide, *args, **kwargs)
            for _, param in pyro.get_param_store().named_parameters():
                if param.grad is not None:
                    param.grad.mul_(self.gain)
            return loss

    elbo = Scaled()
    return changing(
        usual_model(), lambda value: setattr(elbo, "gain", 3 * value), loss=elbo, optim=pyro.optim.SGD({"lr": 3e-3})
    )


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
def method_of_elbo_replaced():
    """`elbo.loss_and_grads` is replaced on the instance before SVI is made, and reads a list."""
    elbo, gain = Trace_ELBO(), [1.0]
    original = elbo.loss_and_grads

    def scaled(model, guide, *args, **kwargs):
        return gain[0] * original(model, guide, *args, **kwargs)

    elbo.loss_and_grads = scaled
    return changing(usual_model(), lambda value: gain.__setitem__(0, value), loss=elbo)


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


@quiet
def loss_and_gradients_given():
    """`loss_and_grads=` of SVI, with a backward of its own."""
    elbo = Trace_ELBO()

    def gradients(model, guide, *args, **kwargs):
        loss = elbo.differentiable_loss(model, guide, *args, **kwargs)
        (0.5 * loss).backward()
        return loss.item()

    made = alone(usual_model(), usual_guide(), loss=elbo.loss, optim=pyro.optim.SGD({"lr": 3e-3}))
    made.subclass = lambda base: lambda m, g, o, loss, **options: base(m, g, o, loss, gradients, **options)
    return made
