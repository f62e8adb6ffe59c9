"""Functions: their closures, defaults, attributes, wrappers and names in other modules."""
# ruff: noqa: B006

import functools
import operator

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import changing, decoder_net, observe, program

SCALE = 1.0


def global_scale():
    return SCALE


def replaceable():
    return 1.0


@program()
def number_by_nonlocal():
    """A number in the closure, written by `nonlocal`."""
    decoder, scale = decoder_net(), 1.0

    def model(x):
        observe(x, decoder, scale)

    def write(value):
        nonlocal scale
        scale = value

    return changing(model, write)


@program()
def number_three_functions_deep():
    """A number in the closure of a function in the closure of a function."""
    scale = 1.0

    def inner():
        return scale

    def middle():
        return inner()

    def write(value):
        nonlocal scale
        scale = value

    return scaled(lambda: middle(), write)


@program()
def global_number():
    """A global number, read two calls away."""
    globals()["SCALE"] = 1.0
    return scaled(global_scale, lambda value: globals().update(SCALE=value))


@program()
def global_function_replaced():
    """A global function is replaced by another."""
    globals()["replaceable"] = lambda: 1.0
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, replaceable())

    return changing(model, lambda value: globals().update(replaceable=lambda: value))


@program()
def global_read_through_globals():
    """A global is read through `globals()`."""
    globals()["SCALE"] = 1.0
    return scaled(lambda: globals()["SCALE"], lambda value: globals().update(SCALE=value))


@program()
def default_argument_changed():
    """A mutable default argument is changed."""
    decoder = decoder_net()

    def model(x, values=[1.0]):
        observe(x, decoder, values[0])

    return changing(model, lambda value: model.__defaults__[0].__setitem__(0, value))


@program()
def default_argument_of_helper():
    """A mutable default argument of a function that the model calls."""

    def read(values={"scale": 1.0}):
        return values["scale"]

    return scaled(lambda: read(), lambda value: read.__defaults__[0].update(scale=value))


@program()
def defaults_replaced():
    """The `__defaults__` of the model are replaced."""
    decoder = decoder_net()

    def model(x, scale=1.0):
        observe(x, decoder, scale)

    return changing(model, lambda value: setattr(model, "__defaults__", (value,)))


@program()
def keyword_default():
    """A keyword-only default is replaced."""

    def read(*, scale=1.0):
        return scale

    return scaled(lambda: read(), lambda value: read.__kwdefaults__.update(scale=value))


@program()
def function_attribute():
    """An attribute of the model function."""
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, model.scale)

    model.scale = 1.0
    return changing(model, lambda value: setattr(model, "scale", value))


@program()
def function_attribute_list():
    """A list that is an attribute of a function the model calls."""

    def read():
        return read.values[-1]

    read.values = [1.0]
    return scaled(lambda: read(), lambda value: read.values.append(value))


@program()
def code_replaced():
    """A function's `__code__` is replaced."""

    def read():
        return 1.0

    def wide():
        return 2.0

    narrow = read.__code__

    def write(value):
        read.__code__ = wide.__code__ if read.__code__ is narrow else narrow

    return scaled(lambda: read(), write)


@program()
def partial_as_model():
    """The keywords of a functools.partial that is the model."""
    decoder = decoder_net()

    def model(x, scale):
        observe(x, decoder, scale)

    given = functools.partial(model, scale=1.0)
    return changing(given, lambda value: given.keywords.update(scale=value))


@program()
def partial_with_list():
    """A list bound by a functools.partial."""
    values = [1.0]
    read = functools.partial(operator.getitem, values)
    return scaled(lambda: read(0), lambda value: values.__setitem__(0, value))


@program()
def bound_method_of_list():
    """A bound method of a list, whose owner changes."""
    values = [1.0]
    read = values.__getitem__
    return scaled(lambda: read(0), lambda value: values.__setitem__(0, value))


@program()
def cached_function_cleared():
    """A functools.lru_cache is cleared after a change."""
    values = [1.0]

    @functools.cache
    def read(key):
        return values[0]

    def write(value):
        values[0] = value
        read.cache_clear()

    return scaled(lambda: read("a"), write)


@program()
def single_dispatch():
    """An implementation is registered with a functools.singledispatch later."""

    @functools.singledispatch
    def read(key):
        return 1.0

    return scaled(lambda: read(0), lambda value: read.register(int, lambda key: value))


@program()
def decorated_with_state():
    """A decorator's own dict, behind functools.wraps."""
    state = {"gain": 1.0}

    def gained(function):
        @functools.wraps(function)
        def wrapper(*args):
            return state["gain"] * function(*args)

        return wrapper

    @gained
    def read():
        return 1.0

    return scaled(lambda: read(), lambda value: state.update(gain=value))


@program()
def list_of_functions():
    """A function in a list is replaced."""
    functions = [lambda: 1.0]
    return scaled(lambda: functions[0](), lambda value: functions.__setitem__(0, lambda: value))


@program()
def evaluated_text():
    """A text that the model evaluates."""
    config = {"scale": "1.0"}
    return scaled(lambda: eval(config["scale"]), lambda value: config.update(scale=f"{value} * 1.0"))


@program()
def evaluated_name():
    """A name that the model evaluates, which its code does not show."""
    values = [1.0]
    names = {"values": values}
    return scaled(lambda: eval("values[0]", names), lambda value: values.__setitem__(0, value))


@program()
def function_made_by_exec():
    """A function made by `exec`, with globals of its own."""
    names = {"scale": 1.0}
    exec("def read():\n    return scale", names)
    return scaled(lambda: names["read"](), lambda value: names.update(scale=value))


@program()
def recursive_function():
    """A list that a recursive function reads at its end."""
    values = [1.0]

    def read(depth):
        return values[0] if depth == 0 else read(depth - 1)

    return scaled(lambda: read(3), lambda value: values.__setitem__(0, value))


@program()
def class_made_in_closure():
    """A class made in the model, which reads a closure."""
    values = [1.0]

    def read():
        class Config:
            scale = values[0]

        return Config().scale

    return scaled(read, lambda value: values.__setitem__(0, value))


@program()
def comprehension():
    """A list that a comprehension inside a lambda reads."""
    values = [1.0]
    return scaled(lambda: sum(value for value in values), lambda value: values.__setitem__(0, value))


@program()
def model_in_partial_of_partial():
    """The keywords of the inner of two partials."""
    decoder = decoder_net()

    def model(x, scale, extra):
        observe(x, decoder, scale * extra)

    inner = functools.partial(model, scale=1.0)
    outer = functools.partial(lambda x, extra, run: run(x, extra=extra), extra=1.0, run=inner)
    return changing(outer, lambda value: inner.keywords.update(scale=value))


@program()
def partial_set_anew():
    """A partial function gets other arguments, in place."""
    scale = functools.partial(float, 1.0)
    return scaled(lambda: scale(), lambda value: scale.__setstate__((float, (value,), {}, None)))
