"""Whole namespaces that are replaced, and names that Python gives to all classes."""

import argparse

import torch

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import program


@program()
def dictionary_of_attributes_replaced():
    """An object gets another `__dict__`."""
    options = argparse.Namespace(scale=1.0)
    return scaled(lambda: options.scale, lambda value: setattr(options, "__dict__", {"scale": value}))


@program()
def one_attribute_for_another():
    """An object loses one attribute and gets another, which shadows its class's."""

    class Config:
        scale = 1.0

    config = Config()
    config.other = 0.0

    def write(value):
        vars(config).clear()
        config.scale = value

    return scaled(lambda: config.scale, write)


@program()
def attribute_put_into_library_class():
    """A number that the user has put into a class of torch's."""
    torch.nn.Module.zoo_scale = 1.0
    net = torch.nn.Identity()
    made = scaled(lambda: net.zoo_scale, lambda value: setattr(torch.nn.Module, "zoo_scale", value))
    made.close = lambda: delattr(torch.nn.Module, "zoo_scale")
    return made


@program()
def name_of_class():
    """A table looked up by the name of an object's class."""

    class Config:
        pass

    config = Config()
    Config.__name__ = "1.0"
    return scaled(lambda: float(type(config).__name__), lambda value: setattr(Config, "__name__", str(value)))
