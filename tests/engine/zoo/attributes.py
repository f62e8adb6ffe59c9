"""Attributes of objects and classes, in all the ways in which Python finds them."""

import argparse
import functools
import operator
import types

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import changing, decoder_net, observe, program

OPTIONS = argparse.Namespace(scale=1.0)


class GlobalConfig:
    """A configuration of class attributes."""

    scale = 1.0


@program()
def global_argparse_namespace():
    """A global argparse.Namespace."""
    OPTIONS.scale = 1.0
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, OPTIONS.scale)

    return changing(model, lambda value: setattr(OPTIONS, "scale", value))


@program()
def global_class_attribute():
    """An attribute of a global class."""
    GlobalConfig.scale = 1.0
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, GlobalConfig.scale)

    return changing(model, lambda value: setattr(GlobalConfig, "scale", value))


@program()
def simple_namespace():
    """A SimpleNamespace in the closure."""
    config = types.SimpleNamespace(scale=1.0)
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def class_attribute_through_instance():
    """A class attribute that is read through an instance."""

    class Config:
        scale = 1.0

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(Config, "scale", value))


@program()
def class_attribute_of_grandparent():
    """A class attribute of a base's base."""

    class Base:
        scale = 1.0

    class Middle(Base):
        pass

    class Config(Middle):
        pass

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(Base, "scale", value))


@program()
def class_attribute_overridden_in_between():
    """A class between an instance's class and its base gets the attribute."""

    class Base:
        scale = 1.0

    class Middle(Base):
        pass

    class Config(Middle):
        pass

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(Middle, "scale", value))


@program()
def metaclass_attribute():
    """An attribute of a class's metaclass."""

    class Meta(type):
        scale = 1.0

    class Config(metaclass=Meta):
        pass

    return scaled(lambda: Config.scale, lambda value: setattr(Meta, "scale", value))


@program()
def instance_shadows_class():
    """An instance gets an attribute that hides its class's."""

    class Config:
        scale = 1.0

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def attribute_deleted():
    """An instance's attribute is deleted, and its class's shows."""

    class Config:
        scale = 2.0

    config = Config()
    config.scale = 1.0

    def write(value):
        if value == 1.5:
            del config.scale
        else:
            config.scale = value

    return scaled(lambda: config.scale, write)


@program()
def slots():
    """An attribute in `__slots__`."""

    class Config:
        __slots__ = ("scale",)

    config = Config()
    config.scale = 1.0
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def slots_of_base():
    """An attribute in the `__slots__` of a base."""

    class Base:
        __slots__ = ("scale",)

    class Config(Base):
        __slots__ = ("name",)

    config = Config()
    config.scale = 1.0
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def property_of_private_list():
    """A property computed from a private list."""

    class Config:
        def __init__(self):
            self._values = [1.0]

        @property
        def scale(self):
            return self._values[0]

    config = Config()
    return scaled(lambda: config.scale, lambda value: config._values.__setitem__(0, value))


@program()
def property_of_closure():
    """A property whose getter reads a closure."""
    values = [1.0]

    class Config:
        scale = property(lambda self: values[0])

    config = Config()
    return scaled(lambda: config.scale, lambda value: values.__setitem__(0, value))


@program()
def property_replaced():
    """A property of a class is replaced."""

    class Config:
        scale = property(lambda self: 1.0)

    config = Config()
    return scaled(lambda: config.scale, lambda value: setattr(Config, "scale", property(lambda self: value)))


@program()
def descriptor_with_own_store():
    """A descriptor that keeps the values in a dict of its own."""

    class Stored:
        def __init__(self):
            self.values = {}

        def __get__(self, owner, kind=None):
            return self.values[id(owner)]

        def __set__(self, owner, value):
            self.values[id(owner)] = value

    class Config:
        scale = Stored()

    config = Config()
    config.scale = 1.0
    return scaled(lambda: config.scale, lambda value: setattr(config, "scale", value))


@program()
def get_attr():
    """`__getattr__` that looks into another object."""

    class Config:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

    inner = types.SimpleNamespace(scale=1.0)
    config = Config(inner)
    return scaled(lambda: config.scale, lambda value: setattr(inner, "scale", value))


@program()
def get_attribute():
    """`__getattribute__` that reads a closure."""
    values = {"scale": 1.0}

    class Config:
        def __getattribute__(self, name):
            return values[name]

    config = Config()
    return scaled(lambda: config.scale, lambda value: values.update(scale=value))


@program()
def module_get_attr():
    """`__getattr__` of a Python module."""
    module, values = types.ModuleType("zoo_lazy"), [1.0]
    module.__getattr__ = lambda name: values[0]
    return scaled(lambda: module.scale, lambda value: values.__setitem__(0, value))


@program()
def cached_property_cleared():
    """A cached_property whose cache is cleared after a change."""

    class Config:
        raw = 1.0

        @functools.cached_property
        def scale(self):
            return self.raw

    config = Config()
    config.scale  # noqa: B018

    def write(value):
        config.raw = value
        del config.__dict__["scale"]
        config.scale  # noqa: B018

    return scaled(lambda: config.scale, write)


@program()
def written_through_dict():
    """An attribute is written through `__dict__`."""
    config = types.SimpleNamespace(scale=1.0)
    return scaled(lambda: config.scale, lambda value: config.__dict__.update(scale=value))


@program()
def read_through_vars():
    """An attribute is read through `vars()`."""
    config = types.SimpleNamespace(scale=1.0)
    return scaled(lambda: vars(config)["scale"], lambda value: setattr(config, "scale", value))


@program()
def name_of_attribute_changes():
    """The name of the attribute that is read."""
    config = types.SimpleNamespace(narrow=1.0, wide=2.0, which="narrow")

    def write(value):
        config.which = "wide" if config.which == "narrow" else "narrow"

    return scaled(lambda: getattr(config, config.which), write)


@program()
def attribute_getter():
    """An operator.attrgetter along a path."""
    config = types.SimpleNamespace(inner=types.SimpleNamespace(scale=1.0))
    read = operator.attrgetter("inner.scale")
    return scaled(lambda: read(config), lambda value: setattr(config.inner, "scale", value))
