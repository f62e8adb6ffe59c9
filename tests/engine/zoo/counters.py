"""Programs that count their calls, and pass a threshold."""

import collections

import torch
from torch import nn

from tests.engine.zoo.program import (
    alone,
    changes,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)

CALLS = 0


def threshold():
    """The count from which on a counting program behaves otherwise."""
    return 10 if changes() else 10**9


@program("calls")
def counter_by_nonlocal():
    """A number in the closure counts calls, and passes a threshold."""
    decoder, calls, limit = decoder_net(), 0, threshold()

    def model(x):
        nonlocal calls
        calls += 1
        observe(x, decoder, 2.0 if calls > limit else 1.0)

    return alone(model, kept=lambda: calls)


@program("calls")
def counter_in_list():
    """A number in a list counts calls, and passes a threshold."""
    decoder, calls, limit = decoder_net(), [0], threshold()

    def model(x):
        calls[0] += 1
        observe(x, decoder, 2.0 if calls[0] > limit else 1.0)

    return alone(model, kept=lambda: calls)


@program("CALLS")
def counter_in_global():
    """A global number counts calls, and passes a threshold."""
    globals()["CALLS"] = 0
    decoder, limit = decoder_net(), threshold()

    def model(x):
        global CALLS
        CALLS += 1
        observe(x, decoder, 2.0 if limit < CALLS else 1.0)

    return alone(model, kept=lambda: CALLS)


@program("calls")
def counter_of_module():
    """An attribute of a module counts calls, and passes a threshold."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.calls, self.limit = decoder_net(), 0, threshold()

        def model(self, x):
            self.calls += 1
            observe(x, self.decoder, 2.0 if self.calls > self.limit else 1.0)

    net = Network()
    return alone(net.model, kept=lambda: net.calls)


@program("calls")
def counter_of_class():
    """A class attribute counts calls, and passes a threshold."""

    class Pair:
        calls = 0

    decoder, limit = decoder_net(), threshold()

    def model(x):
        Pair.calls += 1
        observe(x, decoder, 2.0 if Pair.calls > limit else 1.0)

    return alone(model, kept=lambda: Pair.calls)


@program("calls")
def counter_of_function():
    """A function's attribute counts calls, and passes a threshold."""
    decoder, limit = decoder_net(), threshold()

    def model(x):
        model.calls += 1
        observe(x, decoder, 2.0 if model.calls > limit else 1.0)

    model.calls = 0
    return alone(model, kept=lambda: model.calls)


@program("calls")
def counter_in_guide():
    """The guide counts its calls, and passes a threshold."""
    encoder, calls, limit = encoder_net(), {"guide": 0}, threshold()

    def guide(x):
        calls["guide"] += 1
        infer(x, encoder, 2.0 if calls["guide"] > limit else 1.0)

    return alone(usual_model(), guide, kept=lambda: calls)


@program("calls", "state")
def counter_shared_by_model_and_guide():
    """The guide counts, and the model reads."""
    decoder, encoder, state, limit = decoder_net(), encoder_net(), {"calls": 0}, threshold()

    def model(x):
        observe(x, decoder, 2.0 if state["calls"] > limit else 1.0)

    def guide(x):
        state["calls"] += 1
        infer(x, encoder)

    return alone(model, guide, kept=lambda: state)


@program("calls", "count")
def counter_by_dict_method():
    """A Counter's `update` method counts."""
    decoder, calls, limit = decoder_net(), collections.Counter(), threshold()

    def model(x):
        calls.update(["model"])
        observe(x, decoder, 2.0 if calls["model"] > limit else 1.0)

    return alone(model, kept=lambda: dict(calls))


@program("calls", "setattr")
def counter_by_setattr():
    """`setattr` with a computed name counts."""
    decoder, limit = decoder_net(), threshold()

    class State:
        calls = 0

    state = State()

    def model(x):
        setattr(state, "ca" + "lls", getattr(state, "ca" + "lls") + 1)
        observe(x, decoder, 2.0 if state.calls > limit else 1.0)

    return alone(model, kept=lambda: state.calls)


@program("Decoder", "calls", "record", "history")
def counter_hidden_in_forward():
    """The `forward` of a network deep in a Sequential counts."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.limit = 0, threshold()

        def forward(self, x):
            self.calls += 1
            return 2 * x if self.calls > self.limit else x

    decoder = nn.Sequential(nn.Sequential(decoder_net(), Counting()), nn.Identity())
    return alone(lambda x: observe(x, decoder), kept=lambda: decoder[0][1].calls)


@program(visible=False)
def counter_without_effect():
    """A number counts calls, and nothing depends on it."""
    decoder, calls = decoder_net(), [0]

    def model(x):
        calls[0] += 1
        observe(x, decoder)

    return alone(model, kept=lambda: calls)


@program()
def counter_in_tensor():
    """A tensor in the closure counts in place, and passes a threshold by arithmetic."""
    decoder, calls, limit = decoder_net(), torch.zeros(()), threshold()

    def model(x):
        calls.add_(1)
        observe(x, decoder, 1.0 + (calls > limit).float())

    return alone(model, kept=lambda: calls)


@program()
def counter_in_tensor_by_branch():
    """A tensor in the closure counts in place, and a branch reads it."""
    decoder, calls, limit = decoder_net(), torch.zeros(()), threshold()

    def model(x):
        calls.add_(1)
        observe(x, decoder, 2.0 if calls > limit else 1.0)

    return alone(model, kept=lambda: calls)


@program()
def counter_tensor_rebound():
    """A tensor in the closure counts by being replaced."""
    decoder, calls, limit = decoder_net(), torch.zeros(()), threshold()

    def model(x):
        nonlocal calls
        calls = calls + 1
        observe(x, decoder, 1.0 + (calls > limit).float())

    return alone(model, kept=lambda: calls)


@program()
def counter_in_buffer():
    """A buffer of a module counts in place, and anneals the scale."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.rate = decoder_net(), 0.1 if changes() else 0.0
            self.register_buffer("calls", torch.zeros(()))

        def model(self, x):
            self.calls += 1
            observe(x, self.decoder, 1.0 + self.rate * self.calls)

    net = Network()
    return alone(net.model, kept=lambda: net.state_dict())
