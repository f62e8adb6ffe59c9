"""Programs that change what they reach as they run: counters, caches, iterators, attributes."""

import collections
import contextlib
import functools
import itertools

import pyro
import torch
from torch import nn

from tests.engine.zoo.program import (
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


@program("numbers", "count", "iterator")
def itertools_count():
    """`next(itertools.count())`."""
    numbers, rate = itertools.count(), 0.1 if changes() else 0.0
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, 1.0 + rate * next(numbers)), kept=lambda: next(numbers))


@program("values", "cycle", "iterator")
def itertools_cycle():
    """`next(itertools.cycle())`."""
    values = itertools.cycle([1.0, 1.5, 0.6] if changes() else [1.0])
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, next(values)), kept=lambda: next(values))


@program("values", "generator", "iterator")
def generator_in_closure():
    """`next()` of a generator in the closure."""
    values = (1.0 + 0.1 * (i % 5) * changes() for i in range(1000))
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, next(values)), kept=lambda: next(values))


@program("values", "generator", "send")
def generator_sent_to():
    """`generator.send()`."""

    def numbers():
        value = 1.0
        while True:
            step = yield value
            value = value + step if value < 2 else 1.0

    values, decoder, rate = numbers(), decoder_net(), 0.2 if changes() else 0.0
    next(values)
    return alone(lambda x: observe(x, decoder, values.send(rate)), kept=lambda: values.send(0.0))


@program("batches", "iterator", "stream", visible=False)
def data_loader_iterator_in_closure():
    """The model takes its batch from an iterator of a DataLoader."""
    from torch.utils.data import DataLoader

    stream = itertools.chain.from_iterable(DataLoader(torch.cat(batches()), batch_size=8) for _ in range(100))
    decoder = decoder_net()
    return alone(lambda x: observe(next(stream) + 0 * x, decoder), kept=lambda: next(stream))


@program("queue", "pop")
def list_popped():
    """`list.pop(0)`."""
    queue = [1.0 + 0.1 * (i % 5) * changes() for i in range(300)]
    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, queue.pop(0)), kept=lambda: queue)


@program("values", "rotate", "deque")
def deque_rotated_by_model():
    """`deque.rotate()` in the model."""
    values = collections.deque([1.0, 1.5, 0.6] if changes() else [1.0])
    decoder = decoder_net()

    def model(x):
        values.rotate(1)
        observe(x, decoder, values[0])

    return alone(model, kept=lambda: values)


@program("cache")
def cache_by_key():
    """A dict that the model fills, by an argument's value."""
    decoder, cache = decoder_net(), {}

    def model(x):
        key = len(cache) if len(cache) < (20 if changes() else 1) else 0
        cache.setdefault(key, 1.0 + 0.05 * key)
        observe(x, decoder, cache[key])

    return alone(model, kept=lambda: cache)


@program(visible=False)
def value_made_at_first_call():
    """An attribute that the first call makes, as a lazy network does."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.offset, self.made = decoder_net(), None, 0

        def model(self, x):
            if self.offset is None:
                self.offset, self.made = x.mean(0), self.made + 1
            observe(x - self.offset, self.decoder)

    net = Network()
    return alone(net.model, kept=lambda: [net.offset, net.made])


@program(visible=False)
def lazy_linear():
    """A network whose layers get their sizes at the first call."""
    torch.manual_seed(9)
    encoder = nn.Sequential(nn.LazyLinear(4))
    encoder(torch.zeros(1, 3))
    return alone(usual_model(), lambda x: infer(x, encoder))


@program(visible=False)
def lru_cache_with_hits():
    """A functools.lru_cache, whose hits the user reads."""

    @functools.cache
    def scale(rows):
        return rows / 8

    decoder = decoder_net()
    return alone(lambda x: observe(x, decoder, scale(len(x))), kept=lambda: list(scale.cache_info()))


@program("last", visible=False)
def last_latent_as_attribute():
    """`self.last = z` for later use."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.last = decoder_net(), None

        def model(self, x):
            self.last = observe(x, self.decoder).detach()

    net = Network()
    return alone(net.model, kept=lambda: net.last)


@program("flag", "turn", "even")
def flag_that_flips():
    """A flag that the model flips at each call."""
    decoder, flag, wide = decoder_net(), {"even": False}, 2.0 if changes() else 1.0

    def model(x):
        flag["even"] = not flag["even"]
        observe(x, decoder, wide if flag["even"] else 1.0)

    return alone(model, kept=lambda: flag)


@program("depth", "entered", visible=False)
def context_manager_with_state():
    """A context manager of the user that counts its entries."""
    decoder, entered = decoder_net(), []

    @contextlib.contextmanager
    def noted():
        entered.append(len(entered))
        yield

    def model(x):
        with noted():
            observe(x, decoder)

    return alone(model, kept=lambda: entered)


@program("train", "training", visible=False)
def mode_flipped_by_model():
    """The model flips a network between train() and eval()."""
    network, decoder = nn.Sequential(encoder_net(), nn.Dropout(0.5)), decoder_net()

    def guide(x):
        network.train(not network.training)
        infer(x, network)

    return alone(lambda x: observe(x, decoder), guide, kept=lambda: network.training)


@program(visible=False)
def weights_clamped_by_model():
    """The model clamps a weight in place under `no_grad`."""
    decoder = decoder_net()

    def model(x):
        with torch.no_grad():
            decoder.weight.clamp_(-0.3, 0.3)
        observe(x, decoder)

    return alone(model)


@program(visible=False)
def store_read_by_model():
    """The model reads the names in the param store."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        if len(list(pyro.get_param_store().keys())) >= 4:
            pyro.factor("extra", -0.1 * z.square().sum())

    return alone(model, usual_guide())
