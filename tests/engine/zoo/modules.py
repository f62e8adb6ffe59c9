"""Attributes of `nn.Module`s, enumerations, and methods that are replaced."""

import types

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from tests.engine.zoo.program import changing, decoder_net, encoder_net, infer, observe, program


def network(read, **attributes):
    """A module with attributes, whose model reads its scale from the module."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder_net()
            for name, value in attributes.items():
                setattr(self, name, value)

        def model(self, x):
            observe(x, self.decoder, read(self))

    return Network()


@program()
def module_number():
    """A number that is an attribute of a module."""
    net = network(lambda self: self.scale, scale=1.0)
    return changing(net.model, lambda value: setattr(net, "scale", value))


@program()
def module_dict():
    """`self.cfg["beta"]`."""
    net = network(lambda self: self.cfg["beta"], cfg={"beta": 1.0})
    return changing(net.model, lambda value: net.cfg.update(beta=value))


@program()
def module_list():
    """A list of a module."""
    net = network(lambda self: self.scales[0], scales=[1.0])
    return changing(net.model, lambda value: net.scales.__setitem__(0, value))


@program()
def module_private():
    """A private attribute of a module."""
    net = network(lambda self: self._scale, _scale=1.0)
    return changing(net.model, lambda value: setattr(net, "_scale", value))


@program()
def module_numpy():
    """A NumPy array of a module is changed in place."""
    net = network(lambda self: float(self.scales[0]), scales=np.ones(2))
    return changing(net.model, lambda value: net.scales.fill(value))


@program()
def module_namespace():
    """A namespace of a module."""
    net = network(lambda self: self.cfg.inner.scale, cfg=types.SimpleNamespace(inner=types.SimpleNamespace(scale=1.0)))
    return changing(net.model, lambda value: setattr(net.cfg.inner, "scale", value))


@program()
def module_tensor_attribute():
    """A tensor that is a plain attribute of a module is replaced."""
    net = network(lambda self: self.scale, scale=torch.tensor(1.0))
    return changing(net.model, lambda value: setattr(net, "scale", torch.tensor(value)))


@program()
def module_property():
    """A property of a module, computed from its list."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self._levels = decoder_net(), [1.0]

        @property
        def scale(self):
            return 2 * self._levels[-1] - 1

        def model(self, x):
            observe(x, self.decoder, self.scale)

    net = Network()
    return changing(net.model, lambda value: net._levels.append(value))


@program()
def module_written_past_setattr():
    """A module's attribute is written through `__dict__`."""
    net = network(lambda self: self.scale, scale=1.0)
    return changing(net.model, lambda value: net.__dict__.update(scale=value))


@program()
def module_class_attribute():
    """A class attribute of a module's base."""

    class Base(nn.Module):
        scale = 1.0

    class Network(Base):
        def __init__(self):
            super().__init__()
            self.decoder = decoder_net()

        def model(self, x):
            observe(x, self.decoder, self.scale)

    net = Network()
    return changing(net.model, lambda value: setattr(Base, "scale", value))


@program()
def module_number_in_forward():
    """A number that the forward of a nested module reads."""

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.options = {"gain": 1.0}

        def forward(self, x):
            return self.options["gain"] * x

    decoder = nn.Sequential(nn.Sequential(decoder_net(), Gain()), nn.Identity())
    return changing(lambda x: observe(x, decoder), lambda value: decoder[0][1].options.update(gain=value))


@program()
def pyro_module_number():
    """A number that is an attribute of a PyroModule."""

    class Network(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder, self.scale = decoder_net(), 1.0

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    net = Network()
    return changing(net, lambda value: setattr(net, "scale", value))


@program()
def owner_of_model_and_guide():
    """A plain object holds both networks, model and guide, and a list."""

    class Pair:
        def __init__(self):
            self.decoder, self.encoder, self.scales = decoder_net(), encoder_net(), {"x": [1.0]}

        def model(self, x):
            observe(x, self.decoder, self.scales["x"][0])

        def guide(self, x):
            infer(x, self.encoder)

    pair = Pair()
    return changing(pair.model, lambda value: pair.scales["x"].__setitem__(0, value), pair.guide)
