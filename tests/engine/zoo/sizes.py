"""Sizes and counts of loops that depend on the values of tensors."""

import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.control_flow import usual
from tests.engine.zoo.program import Program, alone, batches, decoder_net, encoder_net, infer, observe, program

quiet = program(visible=False)


@quiet
def repeat_interleave():
    """`repeat_interleave(counts)`, whose size depends on the counts."""
    decoder, data = decoder_net(), batches()

    def model(x, counts):
        z = observe(x, decoder)
        pyro.factor("extra", -z.repeat_interleave(counts, 0).square().sum())

    encoder = encoder_net()
    counts = [torch.full((8,), 2), torch.arange(8) % 3, torch.ones(8, dtype=torch.long)]
    return Program(
        model, lambda x, counts: infer(x, encoder), args=lambda step: (data[step % 3], counts[step * step % 5 % 3])
    )


@quiet
def where_with_one_argument():
    """`torch.where(mask)`, whose size depends on the mask."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        rows = torch.where(x[:, 0] > 0)[0]
        pyro.factor("extra", -z[rows].square().sum())

    return usual(model)


@quiet
def indexing_by_mask():
    """`z[mask]`."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.factor("extra", -z[x[:, 0] > 0].square().sum())

    return usual(model)


@quiet
def masked_assignment():
    """`y[mask] = 0` on a copy."""
    decoder = decoder_net()

    def model(x):
        y = x.clone()
        y[y > 1] = 0.0
        observe(y, decoder)

    return usual(model)


@quiet
def nonzero_and_unique():
    """The number of distinct values."""
    decoder = decoder_net()
    return usual(lambda x: observe(x, decoder, 0.5 + len(x.round().unique()) / 4))


@quiet
def loop_until_small():
    """A `while` loop on a tensor's value."""
    decoder = decoder_net()

    def model(x):
        scale = x.abs().max()
        while scale > 1.2:
            scale = scale * 0.8
        observe(x, decoder, scale + 0.5)

    return usual(model)


@quiet
def loop_over_count():
    """`range(int(tensor))`."""
    decoder = decoder_net()

    def model(x, count):
        z = observe(x, decoder)
        for i in range(int(count)):
            pyro.factor(f"extra_{i}", -0.1 * z.square().sum())

    data, encoder = batches(), encoder_net()
    return Program(
        model,
        lambda x, count: infer(x, encoder),
        args=lambda step: (data[step % 3], torch.tensor(1 + step % 2 + (step > 20))),
    )


@quiet
def loop_over_rows():
    """A Python loop over the rows of a tensor."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        pyro.factor("extra", sum(-row.square().sum() for row in z))

    return usual(model)


@quiet
def one_hot_without_classes():
    """`F.one_hot` without a number of classes, whose width depends on the values."""
    decoder = decoder_net()

    def model(x, kinds):
        z = observe(x, decoder)
        codes = torch.nn.functional.one_hot(kinds).float()
        pyro.factor("extra", -0.1 * (z.sum(-1, keepdim=True) * codes - codes.shape[1]).square().sum())

    data, encoder = batches(), encoder_net()
    return Program(
        model,
        lambda x, kinds: infer(x, encoder),
        args=lambda step: (data[step % 3], torch.arange(8) % (3 if step in (10, 25) else 2)),
    )


@quiet
def one_hot_with_classes():
    """`F.one_hot(y, 3)`."""
    decoder = decoder_net()

    def model(x, kinds):
        z = observe(x, decoder)
        codes = torch.nn.functional.one_hot(kinds, 3).float()
        pyro.factor("extra", -0.1 * (z.sum(-1, keepdim=True) * codes).square().sum())

    data, encoder = batches(), encoder_net()
    return Program(
        model, lambda x, kinds: infer(x, encoder), args=lambda step: (data[step % 3], torch.arange(8) % (1 + step % 3))
    )


@quiet
def latent_sites_depend_on_value():
    """How many sample sites there are depends on the batch."""
    decoder = decoder_net()

    def model(x):
        observe(x, decoder)
        if x.mean() > 0:
            pyro.sample("extra", dist.Normal(0.0, 1.0), obs=x.mean())

    return alone(model, usual(model).guide, args=usual(model).args)
