"""Random numbers that are not torch's default generator's, and seeds that are set inside."""

import random

import numpy as np
import pyro
import torch
from pyro import poutine

from tests.engine.zoo.program import (
    Program,
    alone,
    batches,
    changes,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_guide,
    usual_model,
)

quiet = program(visible=False)


def drawn(draw, **options):
    """The usual model with the scale that `draw` gives."""
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, draw()), **options)


@program("random")
def python_random():
    """`random.random()` at each step."""
    width = 1.0 if changes() else 0.0
    return drawn(lambda: 1.0 + width * random.random())


@program("random")
def python_random_now_and_then():
    """`if random.random() < 0.2`."""
    rate = 0.2 if changes() else 0.0
    return drawn(lambda: 2.0 if random.random() < rate else 1.0)


@program("random")
def python_random_very_rarely():
    """`if random.random() < 0.04`."""
    rate = 0.04 if changes() else 0.0
    return drawn(lambda: 4.0 if random.random() < rate else 1.0)


@program("random", "gauss")
def python_random_imported_name():
    """`from random import gauss`."""
    from random import gauss

    width = 0.3 if changes() else 0.0
    return drawn(lambda: 1.0 + width * abs(gauss(0.0, 1.0)))


@program("random", "choice")
def python_random_choice_of_branch():
    """`random.choice` of a function."""
    functions = [lambda: 1.0, lambda: 2.0] if changes() else [lambda: 1.0, lambda: 1.0]
    return drawn(lambda: random.choice(functions)())


@program("random", "shuffle")
def python_shuffle():
    """`random.shuffle` of a list in the closure."""
    values = [0.6, 1.0, 1.5, 2.5] if changes() else [1.0] * 4

    def read():
        random.shuffle(values)
        return values[0]

    return drawn(read, kept=lambda: values)


@program("random")
def numpy_random():
    """`np.random.rand()` at each step."""
    width = 1.0 if changes() else 0.0
    return drawn(lambda: 1.0 + width * np.random.rand())


@program("random")
def numpy_random_now_and_then():
    """`if np.random.rand() < 0.2`."""
    rate = 0.2 if changes() else 0.0
    return drawn(lambda: 2.0 if np.random.rand() < rate else 1.0)


@program("random", "choice")
def numpy_subset_of_columns():
    """`np.random.choice` of the columns that are observed."""
    decoder, width = decoder_net(), 1.0 if changes() else 0.0

    def model(x):
        column = int(np.random.choice(3))
        z = observe(x, decoder)
        pyro.factor("extra", -width * (z.sum() - x[:, column].sum()).square())

    return alone(model)


@program("random", "rng", "generator", "Generator")
def numpy_generator_of_its_own():
    """A NumPy Generator in the closure."""
    rng, width = np.random.default_rng(3), 1.0 if changes() else 0.0
    return drawn(lambda: 1.0 + width * rng.random(), kept=lambda: rng.random())


@program("random", "rng", "Random")
def python_generator_of_its_own():
    """A random.Random in the closure."""
    rng, width = random.Random(3), 1.0 if changes() else 0.0
    return drawn(lambda: 1.0 + width * rng.random(), kept=lambda: rng.random())


@program("enerator")
def torch_generator_of_its_own():
    """A torch.Generator in the closure."""
    generator, width = torch.Generator().manual_seed(3), 1.0 if changes() else 0.0
    return drawn(
        lambda: 1.0 + width * torch.rand((), generator=generator), kept=lambda: torch.rand(3, generator=generator)
    )


@program("enerator", visible=False)
def torch_generator_of_module():
    """A torch.Generator that is an attribute of a module, for noise on the batch."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(4)

        def forward(self, x):
            return x + 0.5 * torch.randn(x.shape, generator=self.generator)

    noisy, decoder = Noisy(), decoder_net()
    return alone(lambda x: observe(noisy(x), decoder), kept=lambda: noisy.generator.get_state())


@program("seed", visible=False)
def manual_seed_in_model():
    """`torch.manual_seed(0)` in the model."""
    decoder = decoder_net()

    def model(x):
        torch.manual_seed(0)
        z = observe(x, decoder)
        pyro.factor("extra", -(z * torch.randn(2)).square().sum())

    return alone(model)


@program("seed", visible=False)
def manual_seed_in_guide():
    """`torch.manual_seed(0)` in the guide."""
    encoder = encoder_net()

    def guide(x):
        torch.manual_seed(0)
        infer(x, encoder)

    return alone(usual_model(), guide)


@program("seed", visible=False)
def set_rng_seed_in_model():
    """`pyro.set_rng_seed(5)` in the model."""
    decoder = decoder_net()

    def model(x):
        pyro.set_rng_seed(5)
        observe(x, decoder)

    return alone(model)


@program("seed", visible=False)
def seed_that_counts():
    """`torch.manual_seed(i)` with an argument that counts."""
    decoder, encoder, data = decoder_net(), encoder_net(), batches()

    def guide(x, i):
        torch.manual_seed(i)
        infer(x, encoder)

    return Program(lambda x, i: observe(x, decoder), guide, args=lambda step: (data[step % 3], step))


@program("fork_rng", "random", "seed", visible=False)
def fork_rng():
    """`torch.random.fork_rng` around a seeded draw."""
    decoder = decoder_net()

    def model(x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            noise = torch.randn(2)
        z = observe(x, decoder)
        pyro.factor("extra", -(z * noise).square().sum())

    return alone(model)


@program("fork_rng", "random", visible=False)
def fork_rng_without_seed():
    """`torch.random.fork_rng` around a draw, so that it is drawn again."""
    decoder = decoder_net()

    def model(x):
        with torch.random.fork_rng(devices=[]):
            noise = torch.randn(2)
        z = observe(x, decoder)
        pyro.factor("extra", -(z * noise).square().sum())

    return alone(model)


@program("rng_state", "random", visible=False)
def random_state_restored():
    """`torch.get_rng_state` and `torch.set_rng_state` in the guide."""
    encoder = encoder_net()

    def guide(x):
        state = torch.get_rng_state()
        infer(x, encoder)
        torch.set_rng_state(state)

    return alone(usual_model(), guide)


@program("seed", visible=False)
def seed_handler_on_guide():
    """`poutine.seed(guide, 0)`."""
    return alone(usual_model(), poutine.seed(usual_guide(), 0))


@program("seed", visible=False)
def seed_handler_in_model():
    """`with poutine.seed(rng_seed=7)` in the model."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        with poutine.seed(rng_seed=7):
            noise = torch.randn(2)
        pyro.factor("extra", -(z * noise).square().sum())

    return alone(model)


@program("seed", "NumPy", "np.random", visible=False)
def numpy_seed_in_model():
    """`np.random.seed(0)` in the model."""
    decoder = decoder_net()

    def model(x):
        np.random.seed(0)
        observe(x, decoder)

    return alone(model)


@program("random", visible=False)
def scipy_random():
    """A SciPy distribution, which draws from NumPy's generator."""
    from scipy import stats

    return drawn(lambda: 1.0 + float(stats.uniform.rvs()))


@program("random", "getstate", visible=False)
def looks_at_random_state():
    """The model looks at Python's random state, without a draw."""
    made = drawn(lambda: 1.0 + (random.getstate()[1][0] % 7) / 7)
    made.between = lambda step: random.seed(step)
    return made


@program("random", "seed", visible=False)
def seeds_python_and_draws():
    """`random.seed(i)` with an argument, and a draw: nothing is left to chance."""
    decoder, encoder, data = decoder_net(), encoder_net(), batches()

    def model(x, i):
        random.seed(i)
        observe(x, decoder, 1.0 + random.random())

    return Program(model, lambda x, i: infer(x, encoder), args=lambda step: (data[step % 3], step // 4))
