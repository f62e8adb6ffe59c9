"""Python control flow that depends on the values of tensors."""

import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.program import Program, batches, decoder_net, encoder_net, infer, observe, program


def usual(model, args=None):
    """The usual guide with a model; batches whose values vary much between steps."""
    data, encoder = batches(), encoder_net()
    shifts = {step: (-1.0) ** (step // 3) * (0.5 + 0.1 * (step % 4)) for step in range(30)}
    return Program(model, lambda x: infer(x, encoder), args=args or (lambda step: (data[step % 3] + shifts[step],)))


quiet = program(visible=False)


@quiet
def branch_on_latent():
    """`if z.mean() > 0`."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        if z.mean() > 0:
            pyro.factor("penalty", -z.square().sum())

    return usual(model)


@quiet
def branch_on_batch():
    """`if x.sum() > 0` chooses the decoder's scale."""
    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 2.0 if x.sum() > 0 else 1.0))


@quiet
def branch_rarely_taken():
    """A branch that one batch in thirty takes."""
    decoder, data = decoder_net(), batches()

    def model(x):
        observe(x, decoder, 3.0 if x.max() > 50 else 1.0)

    return usual(model, lambda step: (data[step % 3] + (100.0 if step in (12, 26) else 0.0),))


@quiet
def branch_on_all_zero():
    """`if torch.sum(x) == 0` guards a special case."""
    decoder, data = decoder_net(), batches()

    def model(x):
        observe(x, decoder, 2.0 if torch.sum(x) == 0 else 1.0)

    return usual(model, lambda step: (data[step % 3] * (0.0 if step in (10, 25) else 1.0),))


@quiet
def branch_in_guide():
    """A branch of the guide on a batch's value."""
    decoder, encoder = decoder_net(), encoder_net()
    made = usual(lambda x: observe(x, decoder))
    made.guide = lambda x: infer(x, encoder, 0.5 if x[0, 0] > 0 else 1.0)
    return made


@quiet
def branch_on_parameter():
    """A branch on a parameter's value, which training changes."""
    decoder = decoder_net()

    def model(x):
        gain = pyro.param("gain", torch.tensor(1.0))
        observe(x, decoder, 1.5 if gain < 1.1 else 0.7)
        pyro.factor("pull", 10 * gain)

    return usual(model)


@quiet
def item_back_into_tensor():
    """`.item()` whose number goes back into a tensor."""
    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 1.0 + x.abs().mean().item()))


@quiet
def item_through_math():
    """`.item()` whose number goes through `math.exp`."""
    import math

    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 1.0 + math.exp(-x.abs().mean().item())))


@quiet
def item_of_latent_as_text():
    """A number that goes through a text."""
    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, float(f"{1.0 + x.abs().mean().item():.3f}")))


@quiet
def list_of_tensor():
    """`tensor.tolist()`."""
    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 1.0 + max(x.abs().mean(0).tolist())))


@quiet
def through_numpy():
    """`tensor.numpy()` and back."""
    import numpy as np

    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, torch.from_numpy(1.0 + np.abs(x.numpy()).mean(0))))


@quiet
def numpy_on_tensor():
    """A NumPy function on a tensor."""
    import numpy as np

    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 1.0 + float(np.std(np.asarray(x)))))


@quiet
def try_and_except():
    """An exception that depends on a tensor's value and is caught."""
    decoder = decoder_net()

    def model(x):
        try:
            torch.linalg.cholesky(torch.eye(2) * x.sum().sign())
            scale = 1.0
        except RuntimeError:
            scale = 2.0
        observe(x, decoder, scale)

    return usual(model)


@quiet
def assertion_that_fails_once():
    """An assertion on the batch's values, which fails at two steps."""
    decoder, data = decoder_net(), batches()

    def model(x):
        assert x.max() < 50, "too large"
        observe(x, decoder)

    return usual(model, lambda step: (data[step % 3] + (100.0 if step in (10, 25) else 0.0),))


@quiet
def raises_on_values():
    """The model raises an exception of its own on some batches."""
    decoder, data = decoder_net(), batches()

    def model(x):
        if bool((x > 50).any()):
            raise KeyError("too large")
        observe(x, decoder)

    return usual(model, lambda step: (data[step % 3] + (100.0 if step in (10, 25) else 0.0),))


@quiet
def index_by_number_of_tensor():
    """A Python list is indexed by a tensor."""
    decoder, scales = decoder_net(), [0.8, 1.0, 1.6]

    def model(x, kind):
        observe(x, decoder, scales[kind])

    data, encoder = batches(), encoder_net()
    return Program(
        model,
        lambda x, kind: infer(x, encoder),
        args=lambda step: (data[step % 3], torch.tensor(step * step % 7 % 3)),
    )


@quiet
def dict_by_item():
    """A dict is looked up by `.item()`."""
    decoder, scales = decoder_net(), {0: 0.8, 1: 1.0, 2: 1.6}

    def model(x, kind):
        observe(x, decoder, scales[kind.item()])

    data, encoder = batches(), encoder_net()
    return Program(
        model,
        lambda x, kind: infer(x, encoder),
        args=lambda step: (data[step % 3], torch.tensor(step * step % 7 % 3)),
    )


@quiet
def sorted_in_python():
    """Rows are sorted by Python's `sorted`."""
    decoder = decoder_net()

    def model(x):
        observe(x, decoder)
        best = sorted(range(len(x)), key=lambda i: float(x[i, 0]))[:3]
        pyro.factor("extra", -decoder(x[best, :2]).square().sum())

    return usual(model)


@quiet
def tensor_in_boolean_expression():
    """`a and b`, `not`, and chained comparison on tensors."""
    decoder = decoder_net()

    def model(x):
        low = -0.2 < x.mean() < 0.6
        observe(x, decoder, 0.8 if low and not x[0, 0] > 0 else 1.4)

    return usual(model)


@quiet
def stops_at_loss():
    """A branch on the log-probability of a distribution."""
    decoder = decoder_net()

    def model(x):
        level = dist.Normal(0.0, 1.0).log_prob(x).mean()
        observe(x, decoder, 1.0 if level > -1.8 else 2.0)

    return usual(model)
