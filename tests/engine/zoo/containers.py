"""Numbers in Python containers that a program reaches through its closure or its globals."""

import array
import collections
import heapq
from dataclasses import dataclass, field

from tests.engine.zoo.program import changing, decoder_net, observe, program

GLOBAL_LIST = [1.0]
GLOBAL_DICT = {"model": {"scale": 1.0}}


def scaled(read, write):
    """The usual model with the scale that `read` gives and `write` changes."""
    decoder = decoder_net()
    return changing(lambda x: observe(x, decoder, read()), write)


@program()
def list_in_closure():
    """A list in the model's closure."""
    decoder, values = decoder_net(), [1.0]

    def model(x):
        observe(x, decoder, values[0])

    return changing(model, lambda value: values.__setitem__(0, value))


@program()
def list_in_guide():
    """A list in the guide's closure."""
    from tests.engine.zoo.program import encoder_net, infer, usual_model

    encoder, values = encoder_net(), [1.0]

    def guide(x):
        infer(x, encoder, values[0])

    return changing(usual_model(), lambda value: values.__setitem__(0, value), guide)


@program()
def tuple_rebound():
    """A tuple in the closure is replaced by another."""
    decoder, values = decoder_net(), (1.0, "a")

    def model(x):
        observe(x, decoder, values[0])

    def write(value):
        nonlocal values
        values = (value, "a")

    return changing(model, write)


@program()
def list_in_tuple():
    """A list inside a tuple, which itself stays."""
    values = (0, [1.0])
    return scaled(lambda: values[1][0], lambda value: values[1].__setitem__(0, value))


@program()
def deque_rotated():
    """A deque in the closure is rotated."""
    values = collections.deque([1.0, 1.5, 0.6])
    return scaled(lambda: values[0], lambda value: values.rotate(-1))


@program()
def set_in_closure():
    """A set's members."""
    values = {1.0}

    def write(value):
        values.clear()
        values.add(value)

    return scaled(lambda: max(values), write)


@program()
def size_of_list():
    """Only the length of a list is read."""
    values = [0, 0]
    return scaled(lambda: len(values) / 2, lambda value: values.append(0))


@program()
def length_of_string_list():
    """The text in a list decides a branch."""
    values = ["narrow"]

    def write(value):
        values[0] = "wide" if values[0] == "narrow" else "narrow"

    return scaled(lambda: 2.0 if values[0] == "wide" else 1.0, write)


@program()
def nested_five_deep():
    """A number five containers deep."""
    values = {"a": [({"b": [1.0]},)]}
    return scaled(lambda: values["a"][0][0]["b"][0], lambda value: values["a"][0][0]["b"].__setitem__(0, value))


@program()
def list_in_dict_in_object():
    """A list in a dict in an object."""

    class Config:
        pass

    config = Config()
    config.values = {"scales": [0.0, 1.0]}
    return scaled(lambda: config.values["scales"][1], lambda value: config.values["scales"].__setitem__(1, value))


@program()
def inner_list_replaced_by_equal_one():
    """A list is replaced by an equal one, which changes later."""
    values = {"scales": [1.0]}

    def write(value):
        if value == 1.5:
            values["scales"] = list(values["scales"])
        values["scales"][0] = value

    return scaled(lambda: values["scales"][0], write)


@program()
def two_names_of_one_list():
    """A list changes through another name."""
    values = [1.0]
    other = {"alias": values}
    return scaled(lambda: values[0], lambda value: other["alias"].__setitem__(0, value))


@program()
def heap():
    """The smallest member of a heap."""
    values = [1.0, 3.0]
    return scaled(lambda: values[0], lambda value: heapq.heapreplace(values, value))


@program()
def named_tuple_with_list():
    """A list inside a named tuple."""
    kind = collections.namedtuple("kind", "name scales")
    values = kind("a", [1.0])
    return scaled(lambda: values.scales[0], lambda value: values.scales.__setitem__(0, value))


@program()
def list_subclass():
    """A subclass of list with its own `__getitem__` and a gain."""

    class Gained(list):
        gain = 1.0

        def __getitem__(self, index):
            return self.gain * super().__getitem__(index)

    values = Gained([1.0])
    return scaled(lambda: values[0], lambda value: setattr(values, "gain", value))


@program()
def typed_array():
    """An array.array."""
    values = array.array("d", [1.0])
    return scaled(lambda: values[0], lambda value: values.__setitem__(0, value))


@program()
def byte_array():
    """A bytearray."""
    values = bytearray([10])
    return scaled(lambda: values[0] / 10, lambda value: values.__setitem__(0, int(10 * value)))


@program()
def memory_view():
    """A memoryview of an array that changes."""
    values = array.array("d", [1.0])
    view = memoryview(values)
    return scaled(lambda: view[0], lambda value: values.__setitem__(0, value))


@program()
def dataclass_in_list():
    """A field of a dataclass in a list."""

    @dataclass
    class Part:
        scale: float = 1.0
        tags: list = field(default_factory=list)

    parts = [Part()]
    return scaled(lambda: parts[0].scale, lambda value: setattr(parts[0], "scale", value))


def write_global_list(value):
    GLOBAL_LIST[0] = value


@program()
def global_list():
    """A list in a global."""
    GLOBAL_LIST[0] = 1.0
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, GLOBAL_LIST[0])

    return changing(model, write_global_list)


@program()
def global_dict_of_dicts():
    """A dict in a dict in a global."""
    GLOBAL_DICT["model"]["scale"] = 1.0
    decoder = decoder_net()

    def model(x):
        observe(x, decoder, GLOBAL_DICT["model"]["scale"])

    return changing(model, lambda value: GLOBAL_DICT["model"].update(scale=value))


@program()
def list_changed_for_one_step():
    """A list's number, for one step only, between two looks."""
    values = [1.0]
    program = scaled(lambda: values[0], lambda value: None)
    program.between = lambda step: values.__setitem__(0, 3.0 if step in (1, 12, 25) else 1.0)
    return program


@program()
def list_changed_each_step():
    """A list's number, at every step."""
    values = [1.0]
    program = scaled(lambda: values[0], lambda value: None)
    program.between = lambda step: values.__setitem__(0, 1.0 + 0.05 * step)
    return program
