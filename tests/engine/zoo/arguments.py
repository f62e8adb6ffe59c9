"""Arguments of `svi.step` that change: numbers, containers, tensors of other shapes, iterators."""

import argparse
import dataclasses
import enum
import types

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from tests.engine.zoo.program import (
    VALUES,
    Program,
    batches,
    changes,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
)


def current(step, begin=1.0):
    """The number that holds at a step."""
    value = begin
    for start, one in VALUES.items():
        if step >= start:
            value = one
    return value


def passed(give, read=lambda given: given, changed=True):
    """The usual pair with a second argument: `give` of the step's number, and `read` in the model gives the scale."""
    decoder, encoder, data = decoder_net(), encoder_net(), batches()
    moving = changes()

    def model(x, given):
        observe(x, decoder, read(given))

    def args(step):
        return data[step % 3], give(current(step) if moving else 1.0)

    return Program(model, lambda x, given: infer(x, encoder), args=args)


@program()
def float_argument():
    """A float."""
    return passed(lambda value: value)


@program()
def float_argument_each_step():
    """A float that is another at each step, as an annealing factor."""
    made = passed(lambda value: value)
    data = batches()
    moving = made.args(1)[1] != 1.0
    made.args = lambda step: (data[step % 3], 1.0 + 0.03 * step if moving else 1.0)
    return made


@program()
def int_argument_each_step():
    """An int that counts the steps."""
    made = passed(lambda value: value, lambda step: 1.0 + 0.03 * step)
    data = batches()
    moving = made.args(1)[1] != 1.0
    made.args = lambda step: (data[step % 3], step if moving else 0)
    return made


@program()
def int_argument_as_shape():
    """An int that says how many columns are used."""

    def read(count):
        return torch.ones(count).sum()

    return passed(lambda value: round(2 * value), read)


@program()
def int_and_float_of_one_value():
    """1 becomes 1.0 and True, which are equal and of other kinds."""

    def read(given):
        return {int: 1.0, float: 1.5, bool: 2.0}[type(given)]

    return passed(lambda value: {1.0: 1, 1.5: 1.0, 0.6: True, 2.5: 1}[value], read)


@program()
def negative_zero():
    """0.0 becomes -0.0, which is equal."""
    import math

    return passed(lambda value: 0.0 if value in (1.0, 0.6) else -0.0, lambda zero: 1.5 + math.copysign(0.5, zero))


@program()
def bool_argument():
    """A flag."""
    return passed(lambda value: value > 1.0, lambda wide: 2.0 if wide else 1.0)


@program()
def str_argument():
    """A text."""
    return passed(lambda value: "wide" if value > 1.0 else "narrow", lambda text: 2.0 if text == "wide" else 1.0)


@program()
def none_argument():
    """None, or a number."""
    return passed(lambda value: None if value == 1.0 else value, lambda value: 1.0 if value is None else value)


@program()
def list_argument():
    """A list of numbers."""
    return passed(lambda value: [value, 1.0], lambda values: values[0])


@program()
def list_argument_changed_in_place():
    """One list, which is changed in place between steps."""
    values = [1.0]

    def give(value):
        values[0] = value
        return values

    return passed(give, lambda values: values[0])


@program()
def list_of_tensors_argument():
    """A list of tensors whose length changes."""
    return passed(
        lambda value: [torch.tensor(1.0)] * (2 if value > 1.0 else 1), lambda tensors: torch.stack(tensors).sum()
    )


@program()
def dict_argument():
    """A dict of numbers and tensors."""
    return passed(
        lambda value: {"scale": value, "gain": torch.tensor(value)}, lambda given: given["scale"] * given["gain"]
    )


@program()
def dict_argument_order():
    """The order of a dict, of equal content."""
    return passed(
        lambda value: {"a": 1.0, "b": 2.0} if value == 1.0 else {"b": 2.0, "a": 1.0},
        lambda given: next(iter(given.values())),
    )


@program()
def namespace_argument():
    """An argparse.Namespace, changed in place."""
    options = argparse.Namespace(scale=1.0, jit=False)

    def give(value):
        options.scale = value
        return options

    return passed(give, lambda options: options.scale)


@program()
def simple_namespace_argument():
    """A new SimpleNamespace at each step."""
    return passed(lambda value: types.SimpleNamespace(scale=value), lambda options: options.scale)


@program()
def dataclass_argument():
    """A dataclass that holds a tensor and a number."""

    @dataclasses.dataclass
    class Batch:
        weight: torch.Tensor
        scale: float

    return passed(lambda value: Batch(torch.tensor(1.0), value), lambda batch: batch.scale * batch.weight)


@program()
def object_argument():
    """An object of a user's class, changed in place."""

    class Options:
        def __init__(self):
            self._scale = 1.0

    options = Options()

    def give(value):
        options._scale = value
        return options

    return passed(give, lambda options: options._scale)


@program()
def enum_argument():
    """A member of an Enum."""
    kind = enum.Enum("kind", "NARROW WIDE")
    return passed(lambda value: kind.WIDE if value > 1.0 else kind.NARROW, lambda one: 2.0 if one is kind.WIDE else 1.0)


@program()
def numpy_argument():
    """A NumPy array, changed in place."""
    values = np.ones(2)

    def give(value):
        values.fill(value)
        return values

    return passed(give, lambda values: float(values[0]))


@program()
def numpy_scalar_argument():
    """A NumPy scalar."""
    return passed(lambda value: np.float32(value), float)


@program()
def function_argument():
    """A function."""
    return passed(lambda value: lambda: value, lambda function: function())


@program()
def slice_argument():
    """A slice."""
    return passed(lambda value: slice(0, round(2 * value)), lambda part: torch.ones(8)[part].sum() / 2)


@program()
def module_argument():
    """A network, whose attribute changes."""

    class Gain(nn.Module):
        scale = 1.0

        def forward(self, x):
            return self.scale * x

    gain = Gain()

    def give(value):
        gain.scale = value
        return gain

    return passed(give, lambda gain: gain(torch.tensor(1.0)))


@program()
def distribution_argument():
    """A distribution."""
    return passed(lambda value: dist.Normal(0.0, value), lambda one: one.scale)


@program()
def scalar_tensor_argument():
    """A tensor without dimensions."""
    return passed(lambda value: torch.tensor(value))


@program()
def tensor_argument_changed_in_place():
    """One tensor, which is changed in place between steps."""
    scale = torch.tensor(1.0)
    return passed(lambda value: scale.fill_(value))


@program()
def tensor_argument_with_attribute():
    """A Python attribute of a tensor argument."""

    def give(value):
        tensor = torch.tensor(1.0)
        tensor.gain = value
        return tensor

    return passed(give, lambda tensor: tensor * tensor.gain)
