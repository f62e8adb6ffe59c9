"""Methods, classes, enumerations and operators of objects."""
# ruff: noqa: RUF012

import enum
import types
import weakref

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import changing, decoder_net, observe, program


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


@program(captured=True)
def weak_reference_that_dies():
    """An object behind a weak reference comes to its end."""

    class Config:
        pass

    held = [Config()]
    reference = weakref.ref(held[0])

    def write(value):
        held[:] = [] if held else [Config()]

    return scaled(lambda: 1.0 if reference() is not None else 2.5, write)


@program()
def object_with_end():
    """Objects that note their end, one taking the place of another."""
    ended = []

    class Config:
        def __init__(self, scale):
            self.scale = scale

        def __del__(self):
            ended.append(self.scale)

    held, counts = [Config(1.0)], []

    def write(value):
        held[0] = Config(value)
        counts.append(len(ended))

    made = scaled(lambda: held[0].scale, write)
    made.kept = lambda: counts
    return made
