"""Random numbers of torch's default generator, which both engines draw alike."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.program import (
    alone,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)
from tests.engine.zoo.randomness import drawn

quiet = program(visible=False)


@quiet
def torch_random_in_model():
    """`torch.randn` of the default generator."""
    decoder = decoder_net()

    def model(x):
        observe(x + 0.5 * torch.randn_like(x), decoder, 1.0 + torch.rand(()))

    return alone(model)


@quiet
def torch_random_as_number():
    """`torch.rand(()).item() < 0.2` decides a branch."""
    return drawn(lambda: 2.0 if torch.rand(()).item() < 0.2 else 1.0)


@quiet
def torch_randint_as_index():
    """`torch.randint` as the index of a list."""
    scales = [0.8, 1.0, 2.0]
    return drawn(lambda: scales[int(torch.randint(3, ()))])


@quiet
def torch_permutation():
    """`torch.randperm` and `torch.multinomial` of the default generator."""
    decoder = decoder_net()

    def model(x):
        rows = torch.multinomial(torch.ones(8), 4)
        observe(x[torch.randperm(8)], decoder)
        pyro.factor("extra", -decoder(x[rows, :2]).square().sum())

    return alone(model)


@quiet
def draws_between_steps():
    """The user draws from torch's, Python's and NumPy's generators between steps."""
    made = alone(usual_model())
    made.between = lambda step: (torch.rand(step % 3), random.random(), np.random.rand())
    return made


@program()
def seed_set_between_steps():
    """`pyro.set_rng_seed` between steps 10 and 25."""
    made = alone(usual_model())
    made.between = lambda step: pyro.set_rng_seed(step) if step in (1, 10, 25) else None
    return made


@quiet
def dropout():
    """Dropout in the encoder."""
    encoder, decoder = torch.nn.Sequential(encoder_net(), torch.nn.Dropout(0.3)), decoder_net()
    return alone(lambda x: observe(x, decoder), lambda x: infer(x, encoder))


@quiet
def functional_dropout():
    """`F.dropout` of a network in evaluation mode."""
    decoder = decoder_net()
    return alone(lambda x: observe(torch.nn.functional.dropout(x, 0.3), decoder))


@quiet
def distribution_sampled_without_site():
    """A distribution is sampled outside of `pyro.sample`."""
    decoder = decoder_net()
    return alone(lambda x: observe(x + dist.Laplace(0.0, 0.1).sample((8, 3)), decoder))
