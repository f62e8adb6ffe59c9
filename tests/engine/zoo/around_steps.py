"""Contexts and handlers around steps, models and guides."""

import contextlib

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from tests.engine.zoo.program import (
    alone,
    changes,
    changing,
    decoder_net,
    observe,
    program,
    usual_model,
)

quiet = program(visible=False)


def within(context, **options):
    """Steps inside a context, at steps 1 to 9 and from 25 on."""
    moving = changes()

    def take(run, step):
        inside = moving and (1 <= step < 10 or step >= 25)
        with context() if inside else contextlib.nullcontext():
            return run.svi.step(*run.args(step))

    return alone(usual_model(), take=take, **options)


@program()
def scale_around_step():
    """`poutine.scale` around the step."""
    return within(lambda: poutine.scale(scale=0.3))


@program()
def condition_around_step():
    """`poutine.condition` around the step."""
    return within(lambda: poutine.condition(data={"x": torch.ones(8, 3)}))


@program()
def seed_around_step():
    """`poutine.seed` around the step."""
    return within(lambda: poutine.seed(rng_seed=3))


@program()
def fork_rng_around_step():
    """`torch.random.fork_rng` around the step."""
    return within(lambda: torch.random.fork_rng(devices=[]))


@program()
def no_grad_around_step():
    """`torch.no_grad` around the step: nothing is trained."""
    return within(torch.no_grad)


@quiet  # by less than is looked for
def type_of_autocast_changes():
    """`torch.autocast` in the model to a type that is set from outside."""
    decoder, before = decoder_net(), torch.get_autocast_dtype("cpu")

    def model(x):
        with torch.autocast("cpu"):
            observe(x, decoder)

    kinds = {1: torch.float16, 10: torch.bfloat16, 25: torch.float16}
    made = changing(model, lambda kind: torch.set_autocast_dtype("cpu", kind), values=kinds)
    made.close = lambda: torch.set_autocast_dtype("cpu", before)
    return made


@program()
def autocast_around_step():
    """`torch.autocast` to bfloat16 around the step."""
    return within(lambda: torch.autocast("cpu", dtype=torch.bfloat16))


@quiet
def anomaly_detection_around_step():
    """`torch.autograd.detect_anomaly` around the step."""
    return within(lambda: torch.autograd.set_detect_anomaly(True))


@quiet
def validation_off_around_step():
    """`pyro.validation_enabled(False)` around the step, with an observation outside the support."""
    decoder = decoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x.sigmoid())

    made = within(lambda: pyro.validation_enabled(False))
    made.model = model
    return made


@quiet
def trace_around_step():
    """`poutine.trace` around the step records its parameters."""
    names = []

    def take(run, step):
        with poutine.trace(param_only=True) as recorded:
            loss = run.svi.step(*run.args(step))
        names.append(sorted(recorded.trace.nodes))
        return loss

    return alone(usual_model(), take=take, kept=lambda: names)


@quiet
def messenger_that_counts():
    """A Messenger of the user's around the model counts its sites."""

    class Counting(poutine.messenger.Messenger):
        sites = 0

        def _pyro_sample(self, msg):
            self.sites += 1

    counting = Counting()
    return alone(counting(usual_model()), kept=lambda: counting.sites)


@program()
def messenger_that_scales():
    """A Messenger of the user's scales a site, by an attribute that changes."""

    class Scales(poutine.messenger.Messenger):
        gain = 1.0

        def _pyro_sample(self, msg):
            if msg["name"] == "x":
                msg["scale"] = msg["scale"] * self.gain

    scales = Scales()
    return changing(scales(usual_model()), lambda value: setattr(scales, "gain", value))
