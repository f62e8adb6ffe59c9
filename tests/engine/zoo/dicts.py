"""Numbers in dicts of all kinds."""

import collections
import types

import torch

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import changing, decoder_net, observe, program


@program()
def dict_in_closure():
    """A dict's value."""
    values = {"scale": 1.0}
    return scaled(lambda: values["scale"], lambda value: values.update(scale=value))


@program()
def dict_key_added():
    """A dict gets a key that `.get` looks for."""
    values = {}
    return scaled(lambda: values.get("scale", 1.0), lambda value: values.update(scale=value))


@program()
def dict_order():
    """The order of a dict, whose values stay."""
    values = {"a": 1.0, "b": 1.6, "c": 0.6}

    def write(value):
        first = next(iter(values))
        values[first] = values.pop(first)

    return scaled(lambda: next(iter(values.values())), write)


@program()
def ordered_dict_moved():
    """The order of an OrderedDict."""
    values = collections.OrderedDict(a=1.0, b=1.6, c=0.6)
    return scaled(lambda: list(values.values())[-1], lambda value: values.move_to_end(next(iter(values))))


@program()
def dict_keys_as_numbers():
    """The keys of a dict are the numbers."""
    values = {1.0: None}

    def write(value):
        values.clear()
        values[value] = None

    return scaled(lambda: max(values), write)


@program()
def bool_in_dict():
    """A flag in a dict."""
    flags = {"wide": False}
    return scaled(lambda: 2.0 if flags["wide"] else 1.0, lambda value: flags.update(wide=not flags["wide"]))


@program()
def none_becomes_number():
    """None in a dict becomes a number."""
    values = {"scale": None}
    return scaled(lambda: values["scale"] or 1.0, lambda value: values.update(scale=value))


@program("missing", "values", "defaultdict", visible=False)
def defaultdict_that_grows():
    """Reading a missing key of a defaultdict adds it."""
    decoder, missing = decoder_net(), collections.defaultdict(lambda: 1.0)

    def model(x):
        observe(x, decoder, missing[len(missing)])

    program = changing(model, lambda value: None)
    program.kept = lambda: dict(missing)
    return program


@program()
def defaultdict_factory():
    """The default factory of a defaultdict."""
    values = collections.defaultdict(lambda: 1.0)

    def write(value):
        values.clear()
        values.default_factory = lambda: value

    return scaled(lambda: values["a"], write)


@program()
def chain_map():
    """A dict behind a ChainMap."""
    front, back = {}, {"scale": 1.0}
    values = collections.ChainMap(front, back)
    return scaled(lambda: values["scale"], lambda value: front.update(scale=value))


@program()
def user_dict():
    """A collections.UserDict."""
    values = collections.UserDict(scale=1.0)
    return scaled(lambda: values["scale"], lambda value: values.update(scale=value))


@program()
def counter_object():
    """A collections.Counter."""
    values = collections.Counter(a=1)
    return scaled(lambda: float(values["a"]), lambda value: values.update(a=1))


@program()
def mapping_proxy():
    """A dict behind a read-only view."""
    values = {"scale": 1.0}
    view = types.MappingProxyType(values)
    return scaled(lambda: view["scale"], lambda value: values.update(scale=value))


@program()
def dict_values_view():
    """The view `dict.values()` of a dict that changes."""
    values = {"scale": 1.0}
    view = values.values()
    return scaled(lambda: sum(view), lambda value: values.update(scale=value))


@program()
def dict_with_attributes():
    """A dict whose keys are attributes."""

    class Config(dict):
        __getattr__ = dict.__getitem__
        __setattr__ = dict.__setitem__

    config = Config(model=Config(scale=1.0))
    return scaled(lambda: config.model.scale, lambda value: setattr(config.model, "scale", value))


@program(captured=True)
def network_as_key():
    """A dict's keys are networks, and one of them gets another gain."""

    class Gain(torch.nn.Module):
        gain = 1.0

        def forward(self):
            return self.gain

    gain = Gain()
    weights = {gain: 0.5}
    return scaled(
        lambda: sum(2 * weight * net() for net, weight in weights.items()), lambda value: setattr(gain, "gain", value)
    )


@program()
def keys_that_are_equal():
    """A key gives way to another one that is equal to it."""

    class Key:
        def __init__(self, scale):
            self.scale = scale

        def __eq__(self, other):
            return isinstance(other, Key)

        def __hash__(self):
            return 0

    values = {Key(1.0): None}

    def write(value):
        values.clear()
        values[Key(value)] = None

    return scaled(lambda: next(iter(values)).scale, write)
