"""Tensors as arguments: other layouts, dtypes and gradients, bad values, keywords."""

import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.arguments import current
from tests.engine.zoo.program import Program, batches, changes, decoder_net, encoder_net, infer, observe, program


def usual(args, model=None, **options):
    """The usual pair with given arguments."""
    decoder, encoder = decoder_net(), encoder_net()
    guide = options.pop("guide", lambda x: infer(x, encoder))
    return Program(model or (lambda x: observe(x, decoder)), guide, args=args, **options)


@program()
def values_at_a_few_steps():
    """The batch is scaled at some steps."""
    data, moving = batches(), changes()
    return usual(lambda step: (data[step % 3] * (current(step) if moving else 1.0),))


@program(visible=False)
def transposed_batches():
    """The batch is not contiguous at some steps."""
    data = batches()
    return usual(lambda step: (data[step % 3].t().contiguous().t() if step in (1, 10, 25) else data[step % 3],))


@program(visible=False)
def expanded_batches():
    """The batch is one row, expanded, at some steps."""
    data = batches()
    return usual(lambda step: (data[step % 3][:1].expand(8, 3) if step in (1, 10, 25) else data[step % 3],))


@program(visible=False)
def float64_batches():
    """The batch is of another dtype at some steps."""
    data, decoder, encoder = batches(), decoder_net(), encoder_net()
    return usual(
        lambda step: (data[step % 3].double() if step in (1, 10, 25) else data[step % 3],),
        lambda x: observe(x.float(), decoder),
        guide=lambda x: infer(x.float(), encoder),
    )


@program(visible=False)
def integer_batches():
    """Counts as integers, in a guide of floats."""
    data = [batch.abs().round().long() for batch in batches()]
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(decoder(z).exp()).to_event(1), obs=x)

    return Program(model, lambda x: infer(x.float(), encoder), args=lambda step: (data[step % 3],))


@program(visible=False)
def gradient_of_input():
    """The batch requires a gradient, which is added up."""
    data = [batch.requires_grad_() for batch in batches()]
    return usual(lambda step: (data[step % 3],), kept=lambda: [batch.grad for batch in data])


@program(visible=False)
def gradient_of_input_later():
    """The batch requires a gradient from step 10 on."""
    data = batches()

    def between(step):
        if step == 10:
            data[0].requires_grad_()

    return usual(lambda step: (data[0],), between=between, kept=lambda: data[0].grad)


@program(visible=False)
def one_tensor_twice():
    """Both arguments are one tensor at some steps, which the model changes in place."""
    data, decoder, encoder = batches(), decoder_net(), encoder_net()

    def model(x, y):
        y *= 0.9
        observe(x, decoder)

    def args(step):
        return data[0], data[0] if step in (1, 10, 25) else data[1]

    return Program(model, lambda x, y: infer(x.clone(), encoder), args=args, kept=lambda: data)


@program(visible=False)
def overlapping_views():
    """Arguments are overlapping views of one tensor."""
    data, decoder, encoder = torch.cat(batches()), decoder_net(), encoder_net()

    def model(x, y):
        y *= 0.9
        observe(x, decoder)

    def args(step):
        return data[:8], data[step % 3 + 4 : step % 3 + 12]

    return Program(model, lambda x, y: infer(x.clone(), encoder), args=args, kept=lambda: data)


@program()
def keyword_arguments():
    """Keyword arguments, of which one comes later."""
    decoder, encoder, moving = decoder_net(), encoder_net(), changes()

    def model(x, scale=1.0, shift=None):
        observe(x if shift is None else x + shift, decoder, scale)

    def guide(x, scale=1.0, shift=None):
        infer(x, encoder)

    def kwargs(step):
        given = {"scale": current(step)} if step >= 1 and moving else {}
        return {**given, "shift": torch.tensor(0.5)} if step >= 10 and moving else given

    return Program(model, guide, kwargs=kwargs)


@program()
def keyword_order():
    """The order of keyword arguments, which the model reads."""
    decoder, encoder, moving = decoder_net(), encoder_net(), changes()

    def model(x, **scales):
        observe(x, decoder, next(iter(scales.values())))

    def kwargs(step):
        return {"b": 2.0, "a": 1.0} if moving and step in (1, 10, 25) else {"a": 1.0, "b": 2.0}

    return Program(model, lambda x, **scales: infer(x, encoder), kwargs=kwargs)


@program()
def number_of_arguments():
    """The number of positional arguments."""
    decoder, encoder, data, moving = decoder_net(), encoder_net(), batches(), changes()

    def model(*xs):
        observe(sum(xs), decoder)

    def args(step):
        return tuple(data[: 2 if moving and step in (1, 10, 25) else 1])

    return Program(model, lambda *xs: infer(xs[0], encoder), args=args)


def bernoulli(data):
    """Binary data in a Bernoulli model with validation on, as Pyro's default."""
    decoder, encoder = decoder_net(), encoder_net()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return Program(model, lambda x: infer(x, encoder), args=data)


@program(visible=False)
def observation_outside_support():
    """A batch is outside the support: Pyro raises ValueError."""
    data = [(batch > 0).float() for batch in batches()]
    return bernoulli(lambda step: (data[step % 3] + (1.0 if step in (10, 25) else 0.0),))


@program(visible=False)
def observation_nan():
    """A batch holds NaN: Pyro raises ValueError."""
    data = [(batch > 0).float() for batch in batches()]
    return bernoulli(lambda step: (data[step % 3] + (float("nan") if step in (10, 25) else 0.0),))


@program(visible=False)
def observation_between_classes():
    """A single entry of a batch is 0.5: Pyro raises ValueError."""
    data = [(batch > 0).float() for batch in batches()]
    bad = data[1].clone()
    bad[3, 1] = 0.5
    return bernoulli(lambda step: (bad if step in (10, 25) else data[step % 3],))


@program(visible=False)
def nan_in_guide_input():
    """NaN reaches the guide's location: Pyro raises ValueError."""
    data, decoder = batches(), decoder_net()
    return usual(
        lambda step: (data[0] * (float("nan") if step in (10, 25) else 1.0),),
        lambda x: observe(torch.nan_to_num(x), decoder),
    )


@program(visible=False)
def scale_becomes_negative():
    """A scale that is an argument becomes negative: Pyro raises ValueError."""
    data, decoder, encoder = batches(), decoder_net(), encoder_net()

    def model(x, scale):
        observe(x, decoder, scale)

    def args(step):
        return data[step % 3], torch.tensor(-1.0 if step in (10, 25) else 1.0)

    return Program(model, lambda x, scale: infer(x, encoder), args=args)


@program(visible=False)
def infinite_observation():
    """An infinite observation: the loss is infinite, and the parameters become NaN."""
    data, encoder = batches(), encoder_net()
    bad = data[0].clone()
    bad[0, 0] = float("inf")
    return usual(lambda step: (bad if step == 25 else data[step % 3],), guide=lambda x: infer(x.clamp(-5, 5), encoder))


@program(visible=False)
def nan_loss():
    """The loss is NaN at two steps, by a factor."""
    data, decoder, encoder = batches(), decoder_net(), encoder_net()

    def model(x, factor):
        observe(x, decoder)
        pyro.sample("extra", dist.Unit(factor, validate_args=False), obs=torch.empty(0))

    def args(step):
        return data[step % 3], torch.tensor(float("nan") if step in (10, 25) else 0.5)

    return Program(model, lambda x, factor: infer(x, encoder), args=args)


@program(visible=False)
def wrong_shape():
    """A batch with four columns: Pyro raises."""
    data, decoder = batches(), decoder_net()
    return usual(
        lambda step: (torch.zeros(8, 4) if step in (10, 25) else data[step % 3],), lambda x: observe(x, decoder)
    )


@program(visible=False)
def empty_batch():
    """A batch without rows."""
    data = batches()
    return usual(lambda step: (data[step % 3][: 0 if step in (10, 25) else 8],))
