"""Arguments that the program consumes or changes, and batches of a loader."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.engine.zoo.arguments import passed
from tests.engine.zoo.program import (
    Program,
    batches,
    changes,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
)


@program("iterator", "generator", "given")
def iterator_argument():
    """An iterator, which the model takes one item from."""
    iterator = iter([1.0, 1.5, 0.6, 2.5] * 100 if changes() else [1.0] * 400)
    return passed(lambda value: iterator, next)


@program("iterator", "generator", "given")
def generator_argument():
    """A new generator at each step."""
    return passed(lambda value: (value for _ in range(3)), next)


@program("given", "values", "argument")
def list_argument_popped():
    """A list, from which the model pops."""
    values = [1.0 + 0.1 * (i % 7) for i in range(60)]
    values = values if changes() else [1.0] * 60
    made = passed(lambda value: values, lambda given: given.pop())
    made.kept = lambda: values
    return made


@program(visible=False)
def list_argument_appended():
    """A list, to which the model appends its z."""
    decoder, encoder, data, record = decoder_net(), encoder_net(), batches(), []

    def model(x, into):
        into.append(observe(x, decoder).detach())

    made = Program(model, lambda x, into: infer(x, encoder), args=lambda step: (data[step % 3], record))
    made.kept = lambda: record
    return made


@program(visible=False)
def tensor_argument_written_by_model():
    """A tensor, to which the model adds in place."""
    decoder, encoder, data, total = decoder_net(), encoder_net(), batches(), torch.zeros(2)

    def model(x, into):
        into += observe(x, decoder).detach().sum(0)

    made = Program(model, lambda x, into: infer(x, encoder), args=lambda step: (data[step % 3], total))
    made.kept = lambda: total
    return made


@program(visible=False)
def batch_centred_in_place():
    """The batch, which the model centres in place."""
    decoder, encoder = decoder_net(), encoder_net()
    data = [batch + 1 for batch in batches()]

    def model(x):
        x -= 0.1 * x.mean(0)
        observe(x, decoder)

    made = Program(model, lambda x: infer(x.clone(), encoder), args=lambda step: (data[step % 3],))
    made.kept = lambda: data
    return made


@program(visible=False)
def data_loader_batches():
    """Batches of a shuffled DataLoader, whose last is smaller."""
    decoder, encoder = decoder_net(), encoder_net()
    data = TensorDataset(torch.cat(batches())[:21])
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(4))
    stream = (batch for _ in range(20) for (batch,) in loader)
    return Program(lambda x: observe(x, decoder), lambda x: infer(x, encoder), args=lambda step: (next(stream),))


@program(visible=False)
def batch_sizes_all_different():
    """A batch of another size at each step."""
    decoder, encoder, data = decoder_net(), encoder_net(), torch.cat(batches())
    return Program(
        lambda x: observe(x, decoder), lambda x: infer(x, encoder), args=lambda step: (data[: 2 + step % 13],)
    )
