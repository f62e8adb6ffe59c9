"""Attributes of `nn.Module`s, enumerations, and methods that are replaced."""
# ruff: noqa: RUF012

import enum
import types
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from tests.engine.zoo.containers import scaled
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


@program()
def enum_member_attribute():
    """An attribute of an Enum's member."""

    class Kind(enum.Enum):
        NARROW = 1
        WIDE = 2

    Kind.NARROW.scale = 1.0
    return scaled(lambda: Kind.NARROW.scale, lambda value: setattr(Kind.NARROW, "scale", value))


@program()
def enum_choice():
    """Which member of an Enum is chosen."""

    class Kind(enum.Enum):
        NARROW = 1.0
        WIDE = 2.0

    config = {"kind": Kind.NARROW}

    def write(value):
        config["kind"] = Kind.WIDE if config["kind"] is Kind.NARROW else Kind.NARROW

    return scaled(lambda: config["kind"].value, write)


@program()
def method_replaced_on_instance():
    """An instance gets a method of its own."""

    class Config:
        def scale(self):
            return 1.0

    config = Config()
    return scaled(lambda: config.scale(), lambda value: setattr(config, "scale", lambda: value))


@program()
def method_replaced_on_class():
    """A method of a class is replaced."""

    class Config:
        def scale(self):
            return 1.0

    config = Config()
    return scaled(lambda: config.scale(), lambda value: setattr(Config, "scale", lambda self: value))


@program()
def method_of_base_replaced():
    """A base's method, called by `super()`, is replaced."""

    class Base:
        def scale(self):
            return 1.0

    class Config(Base):
        def scale(self):
            return super().scale()

    config = Config()
    return scaled(lambda: config.scale(), lambda value: setattr(Base, "scale", lambda self: value))


@program()
def forward_replaced_on_instance():
    """A network's `forward` is replaced on the instance."""
    decoder = decoder_net()
    forward = decoder.forward
    return changing(
        lambda x: observe(x, decoder), lambda value: setattr(decoder, "forward", lambda z: value * forward(z))
    )


@program()
def class_of_instance_replaced():
    """An instance's `__class__` is replaced."""

    class Narrow:
        def scale(self):
            return 1.0

    class Wide:
        def scale(self):
            return 2.0

    config = Narrow()

    def write(value):
        config.__class__ = Wide if isinstance(config, Narrow) else Narrow

    return scaled(lambda: config.scale(), write)


@program()
def callable_object():
    """An attribute that `__call__` of an object reads."""

    class Schedule:
        def __init__(self):
            self.values = [1.0]

        def __call__(self):
            return self.values[-1]

    schedule = Schedule()
    return scaled(schedule, lambda value: schedule.values.append(value))


@program()
def static_method():
    """A static method that reads its class's attribute."""

    class Config:
        value = 1.0

        @staticmethod
        def scale():
            return Config.value

    return scaled(lambda: Config.scale(), lambda value: setattr(Config, "value", value))


@program()
def class_method():
    """A class method that reads a dict of the class."""

    class Config:
        values = {"scale": 1.0}

        @classmethod
        def scale(cls):
            return cls.values["scale"]

    return scaled(lambda: Config.scale(), lambda value: Config.values.update(scale=value))


@program()
def weak_reference():
    """An object behind a weak reference."""

    class Config:
        scale = 1.0

    config = Config()
    reference = weakref.ref(config)
    return scaled(lambda: reference().scale, lambda value: setattr(config, "scale", value))


@program()
def operators_of_object():
    """An object whose operators read its attribute."""

    class Number:
        value = 1.0

        def __float__(self):
            return self.value

    number = Number()
    return scaled(lambda: float(number), lambda value: setattr(number, "value", value))


@program()
def object_with_index():
    """An object whose `__getitem__` reads a private dict."""

    class Table:
        def __init__(self):
            self.__rows = {"scale": 1.0}

        def __getitem__(self, name):
            return self.__rows[name]

        def put(self, value):
            self.__rows["scale"] = value

    table = Table()
    return scaled(lambda: table["scale"], table.put)


@program()
def cycle_of_objects():
    """Two objects that hold each other, and a number."""
    first, second = types.SimpleNamespace(), types.SimpleNamespace(scale=1.0)
    first.other, second.other = second, first
    return scaled(lambda: first.other.other.other.scale, lambda value: setattr(second, "scale", value))
