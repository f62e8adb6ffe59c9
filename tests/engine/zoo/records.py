"""Programs that keep records: lists, files, prints, logs, warnings, exceptions by count."""

import collections
import logging
import threading

import numpy as np
import torch
from torch import nn

from tests.engine.zoo.program import alone, changes, decoder_net, encoder_net, infer, observe, program, usual_model

quiet = program(visible=False)
logger = logging.getLogger("zoo")


@program("history", "append", "value", visible=False)
def norms_in_list():
    """The model appends a number of its latent to a list."""
    decoder, history = decoder_net(), []

    def model(x):
        history.append(observe(x, decoder).norm().item())

    return alone(model, kept=lambda: history)


@program("history", "append", visible=False)
def tensors_in_list():
    """The model appends its latent to a list."""
    decoder, history = decoder_net(), []

    def model(x):
        history.append(observe(x, decoder).detach())

    return alone(model, kept=lambda: history)


@program("history", "append", visible=False)
def tensors_with_gradient_in_list():
    """The guide appends its latent, with its graph, to a list."""
    encoder, history = encoder_net(), []

    def guide(x):
        history.append(infer(x, encoder))

    return alone(usual_model(), guide, kept=lambda: history)


@program("history", "value", visible=False)
def records_in_dict_of_lists():
    """The model appends to a list in a defaultdict of a module."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.history = decoder_net(), collections.defaultdict(list)

        def model(self, x):
            self.history["norm"].append(float(observe(x, self.decoder).norm()))

    net = Network()
    return alone(net.model, kept=lambda: dict(net.history))


@program("recent", "deque", "value", visible=False)
def records_in_bounded_deque():
    """The model appends to a deque of bounded length, whose length stays."""
    decoder, recent = decoder_net(), collections.deque([0.0] * 5, maxlen=5)

    def model(x):
        recent.append(float(observe(x, decoder).norm()))

    return alone(model, kept=lambda: recent)


@program("ring", "value", visible=False)
def records_in_numpy_ring():
    """The model writes to a NumPy array in place."""
    decoder, ring = decoder_net(), np.zeros(7)

    def model(x):
        ring[1:] = ring[:-1].copy()
        ring[0] = float(observe(x, decoder).norm())

    return alone(model, kept=lambda: ring)


@quiet
def running_mean_in_tensor():
    """The model keeps a running mean in a tensor, in place."""
    decoder, mean = decoder_net(), torch.zeros(2)

    def model(x):
        z = observe(x, decoder).detach()
        mean.mul_(0.9).add_(0.1 * z.mean(0))

    return alone(model, kept=lambda: mean)


@quiet
def running_mean_used():
    """The model centres its batch by a running mean in a buffer."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder_net()
            self.register_buffer("mean", torch.zeros(3))

        def model(self, x):
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            observe(x - self.mean, self.decoder)

    net = Network()
    return alone(net.model, kept=lambda: net.mean)


@quiet
def running_mean_rebound():
    """A buffer is assigned anew at each call."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder_net()
            self.register_buffer("mean", torch.zeros(3))

        def model(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            observe(x - self.mean, self.decoder)

    net = Network()
    return alone(net.model, kept=lambda: net.mean)


@quiet
def rows_copied_into_tensor():
    """The guide copies its locations into rows of a tensor."""
    encoder, table = encoder_net(), torch.zeros(8, 2)

    def guide(x):
        table.copy_(infer(x, encoder).detach())

    return alone(usual_model(), guide, kept=lambda: table)


@program("calls")
def raises_at_tenth_call():
    """The model counts its calls, and raises at the tenth and the twentieth."""
    decoder, calls, limit = decoder_net(), [0], 10 if changes() else 10**9

    def model(x):
        calls[0] += 1
        if calls[0] in (limit, 2 * limit):
            raise RuntimeError("the tenth call")
        observe(x, decoder)

    return alone(model, kept=lambda: calls)


@program()
def raises_by_flag():
    """The model raises while a flag from outside is set."""
    decoder, flags = decoder_net(), {"stop": False}

    def model(x):
        if flags["stop"]:
            raise KeyboardError("stopped")
        observe(x, decoder)

    made = alone(model)
    made.between = lambda step: flags.update(stop=step in (1, 10, 25))
    return made


class KeyboardError(Exception):
    """An exception of the user's."""


@quiet
def takes_lock():
    """The model holds a lock while it runs."""
    decoder, lock = decoder_net(), threading.Lock()

    def model(x):
        with lock:
            observe(x, decoder)

    return alone(model, kept=lambda: lock.locked())


@program("callback", "means", "value", visible=False)
def callback_object():
    """The model calls a callback that keeps the latents' means."""

    class Callback:
        def __init__(self):
            self.means = []

        def on_latent(self, z):
            self.means.append(z.mean().item())

    decoder, callback = decoder_net(), Callback()

    def model(x):
        callback.on_latent(observe(x, decoder))

    return alone(model, kept=lambda: callback.means)


@program("write", "history", "append", "value", visible=False)
def record_through_bound_method():
    """A bound method `list.append` is all that the model holds."""
    decoder, history = decoder_net(), []
    write = history.append

    def model(x):
        write(observe(x, decoder).norm().item())

    return alone(model, kept=lambda: history)


@program("default", visible=False)
def record_through_default_argument():
    """A default argument collects the records."""
    decoder = decoder_net()

    def model(x, history=[]):  # noqa: B006
        history.append(float(observe(x, decoder).norm()))

    made = alone(model, kept=lambda: list(model.__defaults__[0]))
    return made


@quiet
def activations_in_module():
    """A network keeps its last activations as an attribute."""

    class Keeping(nn.Module):
        def forward(self, x):
            self.activations = x.detach()
            return x

    encoder = nn.Sequential(encoder_net(), Keeping())
    return alone(usual_model(), lambda x: infer(x, encoder), kept=lambda: encoder[1].activations)


@quiet
def auxiliary_loss_as_attribute():
    """A network leaves an auxiliary loss, which the model takes up."""
    import pyro

    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.penalty = decoder_net(), 0.0

        def forward(self, z):
            y = self.linear(z)
            self.penalty = y.square().mean()
            return y

    decoder = Penalised()

    def model(x):
        observe(x, decoder)
        pyro.factor("penalty", -decoder.penalty)

    return alone(model, kept=lambda: decoder.penalty)
