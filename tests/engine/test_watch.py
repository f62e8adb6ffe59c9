"""Whatever a program can reach is watched, and a change of it is seen and named."""

import array
import collections
import copy
import dataclasses
import enum
import functools
import math
import operator
import sys
import types

import numpy as np
import pyro
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vae.engine import policy
from pyro_vae.engine.observe import observe
from pyro_vae.engine.places import Unseen
from pyro_vae.engine.watch import Watch

CASES = {}


def case(path):
    """Registers a function that gives a program and a change of what it reaches, which is named so."""

    def register(make):
        CASES[make.__name__] = (make, path)
        return make

    return register


# --- containers ---------------------------------------------------------------------------------------------------------


@case("parts in ")
def item_of_a_list():
    parts = [1.0, 2.0]
    return lambda x: x * parts[1], lambda: operator.setitem(parts, 1, 3.0)


@case("parts in ")
def length_of_a_list():
    parts = [1.0, 2.0]
    return lambda x: x * sum(parts), lambda: parts.append(3.0)


@case("parts in ")
def order_of_a_list():
    parts = [1.0, 2.0]
    return lambda x: x * parts[0], parts.reverse


@case("parts in ")
def list_in_a_tuple():
    parts = ("a", [1.0])
    return lambda x: x * parts[1][0], lambda: operator.setitem(parts[1], 0, 3.0)


@case("parts in ")
def tuple_in_its_place():
    parts = [(1.0, 2.0)]
    return lambda x: x * parts[0][1], lambda: operator.setitem(parts, 0, (1.0, 3.0))


@case("parts in ")
def item_of_a_deque():
    parts = collections.deque([1.0, 2.0], maxlen=2)
    return lambda x: x * parts[0], lambda: parts.append(3.0)


@case("parts in ")
def a_set():
    parts = {1, 2}
    return lambda x: x * sum(parts), lambda: parts.add(3)


@case("parts in ")
def same_size_of_a_set():
    parts = {1, 2}
    return lambda x: x * sum(parts), lambda: (parts.remove(2), parts.add(5))


@case("['a']")
def entry_of_a_dict():
    parts = {"a": 1.0}
    return lambda x: x * parts["a"], lambda: parts.update(a=2.0)


@case("parts in ")
def new_key_of_a_dict():
    parts = {"a": 1.0}
    return lambda x: x * len(parts), lambda: parts.update(b=2.0)


@case("parts in ")
def order_of_a_dict():
    parts = {"a": 1.0, "b": 2.0}
    return lambda x: x * next(iter(parts.values())), lambda: parts.update(a=parts.pop("a"))


@case("parts in ")
def order_of_an_ordered_dict():
    parts = collections.OrderedDict(a=1.0, b=2.0)
    return lambda x: x * next(iter(parts.values())), lambda: parts.move_to_end("a")


@case("parts in ")
def default_of_a_defaultdict():
    parts = collections.defaultdict(int, a=1)
    return lambda x: x * parts["a"], lambda: parts.update(a=2)


@case("['c'][1]")
def deeply_nested():
    parts = {"a": [{"b": (0, {"c": [1.0, 2.0]})}]}
    return lambda x: x * parts["a"][0]["b"][1]["c"][1], lambda: operator.setitem(parts["a"][0]["b"][1]["c"], 1, 3.0)


@case("parts in ")
def list_with_attributes():
    class Named(list):
        scale = 1.0

    parts = Named([1.0])
    parts.scale = 2.0
    return lambda x: x * parts.scale, lambda: setattr(parts, "scale", 3.0)


# --- records ------------------------------------------------------------------------------------------------------------


@case(".rate")
def attribute_of_a_namespace():
    options = types.SimpleNamespace(rate=1.0)
    return lambda x: x * options.rate, lambda: setattr(options, "rate", 2.0)


@dataclasses.dataclass
class Options:
    rate: float = 1.0
    inner: object = None


@case(".rate")
def field_of_a_dataclass():
    options = Options(inner=Options())
    return lambda x: x * options.inner.rate, lambda: setattr(options.inner, "rate", 2.0)


@case(".rate")
def slot():
    class Slotted:
        __slots__ = ("rate",)

    options = Slotted()
    options.rate = 1.0
    return lambda x: x * options.rate, lambda: setattr(options, "rate", 2.0)


@case(".rate")
def slot_of_a_base():
    class Base:
        __slots__ = "rate"

    class Derived(Base):
        __slots__ = ("other",)

    options = Derived()
    options.rate = 1.0
    return lambda x: x * options.rate, lambda: setattr(options, "rate", 2.0)


@case("Holder.rate")
def class_attribute():
    class Holder:
        rate = 1.0

    holder = Holder()
    return lambda x: x * holder.rate, lambda: setattr(Holder, "rate", 2.0)


@case(".rate")
def class_attribute_of_a_base():
    class Base:
        rate = 1.0

    class Derived(Base):
        pass

    holder = Derived()
    return lambda x: x * holder.rate, lambda: setattr(Base, "rate", 2.0)


@case(".rate")
def attribute_that_shadows_the_classs():
    class Holder:
        rate = 1.0

    holder = Holder()
    return lambda x: x * holder.rate, lambda: setattr(holder, "rate", 2.0)


@case("Derived")
def class_attribute_that_shadows_the_bases():
    class Base:
        rate = 1.0

    class Derived(Base):
        pass

    holder = Derived()
    return lambda x: x * holder.rate, lambda: setattr(Derived, "rate", 2.0)


@case("class of ")
def class_of_an_instance():
    class One:
        def rate(self):
            return 1.0

    class Two:
        def rate(self):
            return 2.0

    holder = One()
    return lambda x: x * holder.rate(), lambda: setattr(holder, "__class__", Two)


@case("Holder.rate")
def method():
    class Holder:
        def rate(self):
            return 1.0

    holder = Holder()
    return lambda x: x * holder.rate(), lambda: setattr(Holder, "rate", lambda self: 2.0)


@case("_rate")
def property_s_own_attribute():
    class Holder:
        def __init__(self):
            self._rate = 1.0

        @property
        def rate(self):
            return self._rate

    holder = Holder()
    return lambda x: x * holder.rate, lambda: setattr(holder, "_rate", 2.0)


@case("Holder.rate")
def property_itself():
    class Holder:
        @property
        def rate(self):
            return 1.0

    holder = Holder()
    return lambda x: x * holder.rate, lambda: setattr(Holder, "rate", property(lambda self: 2.0))


@case("")
def attribute_of_a_metaclass():
    class Meta(type):
        rate = 1.0

    class Holder(metaclass=Meta):
        pass

    return lambda x: x * Holder.rate, lambda: setattr(Meta, "rate", 2.0)


class Colour(enum.Enum):
    RED = 1.0
    BLUE = 2.0


@case("colour in ")
def enumeration():
    colour = Colour.RED

    def change():
        nonlocal colour
        colour = Colour.BLUE

    return lambda x: x * colour.value, change


# --- code ---------------------------------------------------------------------------------------------------------------


@case("level in ")
def closure():
    level = 1.0

    def change():
        nonlocal level
        level = 2.0

    return lambda x: x * level, change


RATE = 1.0


@case("global RATE")
def global_name():
    return lambda x: x * RATE, lambda: globals().update(RATE=RATE + 1)


@case("default of an argument")
def default_argument():
    def program(x, rate=1.0):
        return x * rate

    return program, lambda: setattr(program, "__defaults__", (2.0,))


@case("default of an argument")
def default_of_a_keyword():
    def program(x, *, rate=1.0):
        return x * rate

    return program, lambda: setattr(program, "__kwdefaults__", {"rate": 2.0})


@case("default of an argument")
def item_of_a_default_argument():
    def program(x, rates=[1.0]):  # noqa: B006 - what is tested
        return x * rates[0]

    return program, lambda: operator.setitem(program.__defaults__[0], 0, 2.0)


@case("program.rate")
def function_attribute():
    def program(x):
        return x * program.rate

    program.rate = 1.0
    return program, lambda: setattr(program, "rate", 2.0)


@case("")
def code_of_a_function():
    def program(x):
        return x * 1.0

    return program, lambda: setattr(program, "__code__", (lambda x: x * 2.0).__code__)


@case("")
def argument_of_a_partial():
    rates = [1.0]
    return functools.partial(lambda rates, x: x * rates[0], rates), lambda: operator.setitem(rates, 0, 2.0)


@case("")
def keyword_of_a_partial():
    program = functools.partial(lambda x, rate: x * rate, rate=1.0)
    return program, lambda: program.keywords.update(rate=2.0)


@case(".rate")
def self_of_a_bound_method():
    class Holder:
        def __init__(self):
            self.rate = 1.0

        def program(self, x):
            return x * self.rate

    holder = Holder()
    return holder.program, lambda: setattr(holder, "rate", 2.0)


@case("rates in ")
def function_behind_a_decorator():
    rates = [1.0]

    def decorate(function):
        @functools.wraps(function)
        def inner(x):
            return function(x)

        return inner

    @decorate
    def program(x):
        return x * rates[0]

    return program, lambda: operator.setitem(rates, 0, 2.0)


MODULE = types.ModuleType("settings_of_the_user")
MODULE.rate = 1.0


@case("MODULE.rate")
def attribute_of_a_module():
    return lambda x: x * MODULE.rate, lambda: setattr(MODULE, "rate", MODULE.rate + 1)


@case("pi")
def attribute_of_a_standard_module():
    return lambda x: x * math.pi, lambda: setattr(math, "pi", math.pi + 0.1)


@case("rates in ")
def helper_that_is_called_by_another():
    rates = [1.0]

    def helper():
        return rates[0]

    def between():
        return helper()

    return lambda x: x * between(), lambda: operator.setitem(rates, 0, 2.0)


@case("")
def object_with_a_call():
    class Program:
        def __init__(self):
            self.rate = 1.0

        def __call__(self, x):
            return x * self.rate

    program = Program()
    return program, lambda: setattr(program, "rate", 2.0)


# --- arrays, tensors, random generators ---------------------------------------------------------------------------------


@case("rates in ")
def entry_of_a_numpy_array():
    rates = np.array([1.0, 2.0])
    return lambda x: x * float(rates[0]), lambda: operator.setitem(rates, 0, 3.0)


@case("rates in ")
def entry_of_an_array():
    rates = array.array("d", [1.0])
    return lambda x: x * rates[0], lambda: operator.setitem(rates, 0, 3.0)


@case("rates in ")
def entry_of_a_bytearray():
    rates = bytearray(b"ab")
    return lambda x: x * rates[0], lambda: operator.setitem(rates, 0, 3)


@case("rates in ")
def random_state_of_a_generator():
    rates = torch.Generator()
    return lambda x: x * rates.initial_seed(), lambda: rates.manual_seed(3)


@case("rate in ")
def another_tensor():
    rate = torch.ones(2)

    def change():
        nonlocal rate
        rate = 2 * torch.ones(2)

    return lambda x: x * rate, change


@case("weight")
def frozen_parameter():
    layer = nn.Linear(2, 2)
    return lambda x: layer(x) * (1 + layer.weight.requires_grad), lambda: layer.weight.requires_grad_(False)


@case("")
def hook_of_a_tensor():
    rate = torch.ones(2, requires_grad=True)
    seen = [0.0]
    hooks = lambda: len(rate._backward_hooks or ())  # noqa: E731
    return lambda x: x * rate * (1 + hooks()) + seen[0], lambda: rate.register_hook(lambda g: g)


# --- torch's modules ----------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2)))


def with_network(change):
    net = network()

    def program(x):
        return net(x.expand(5, 2) * torch.arange(5.0)[:, None])

    return net, program, lambda: change(net)


MODULES = {
    "mode": (lambda net: net.eval(), ".training"),
    "mode of a part": (lambda net: net[1][0].eval(), ".training"),
    "number of a part": (lambda net: setattr(net[1][0], "p", 0.1), ".p"),
    "parameter": (lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(2, 2))), "weight"),
    "buffer": (lambda net: setattr(net[1][1], "running_mean", None), "running_mean"),
    "part": (lambda net: operator.setitem(net, 0, nn.Identity()), ""),
    "another part": (lambda net: net.append(nn.Tanh()), ""),
    "forward hook": (lambda net: net[0].register_forward_hook(lambda m, a, out: out * 2), "_forward_hooks"),
    "forward pre-hook": (lambda net: net[0].register_forward_pre_hook(lambda m, a: (a[0] * 2,)), "_forward_pre_hooks"),
    "forward": (lambda net: setattr(net[0], "forward", lambda x: x * 2), ""),
    "frozen": (lambda net: net[0].requires_grad_(False), "_parameters"),
}


@pytest.mark.parametrize("name", MODULES)
def test_changes_of_modules_are_seen(name):
    change, path = MODULES[name]
    _, program, change = with_network(change)
    watch = watched(program)
    assert watch.changed() is None
    change()
    assert path in watch.changed()


def test_statistics_and_weights_written_in_place_are_no_change():
    net, program, _ = with_network(lambda net: None)
    watch = watched(program)
    with torch.no_grad():
        net[0].weight.add_(1)
    program(torch.ones(2))
    assert watch.changed() is None
    assert watch.places


# --- the tests ----------------------------------------------------------------------------------------------------------

X = torch.ones(2)


def watched(*programs):
    for program in programs:
        _, executed, reason = observe(program, X)
        assert reason is None, reason
    return Watch(lambda: programs, executed)


@pytest.fixture(autouse=True)
def globals_kept():
    """Puts back what cases change."""
    pi, rate, of_module = math.pi, RATE, MODULE.rate
    yield
    math.pi, MODULE.rate = pi, of_module
    globals().update(RATE=rate)


@pytest.mark.parametrize("name", CASES)
def test_changes_are_seen_and_named(name):
    make, path = CASES[name]
    program, change = make()
    before = program(X)
    watch = watched(program)
    assert watch.changed() is None
    assert torch.equal(program(X), before)
    assert watch.changed() is None
    change()
    assert not torch.equal(program(X), before), "the change is none"
    found = watch.changed()
    assert found is not None
    assert path in found


@pytest.mark.parametrize("name", CASES)
def test_programs_that_hold_a_program_see_its_changes(name):
    make, _ = CASES[name]
    program, change = make()
    holder = types.SimpleNamespace(run=[program])
    watch = watched(lambda x: holder.run[0](x))
    change()
    assert watch.changed() is not None


def test_equal_values_in_other_objects_are_no_change():
    options = {
        "rate": 0.25,
        "name": "ab",
        "parts": [1, 2],
        "pair": (1.5, None),
        "dtype": torch.float32,
        "nan": math.nan,
    }

    def program(x):
        return (
            x
            * len(options["name"])
            * options["dtype"].itemsize
            * options["rate"]
            * options["nan"]
            * options["parts"][0]
            * options["pair"][0]
        )

    watch = watched(program)
    options.update(rate=float("0.25"), name="".join(["a", "b"]), parts=[1, 2], pair=(1.5, None), nan=float("nan"))
    assert watch.changed() is None
    options["parts"] = [1, 3]
    assert "['parts'][1]" in watch.changed()


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), ("1", 1), (None, 0), ((1,), [1])])
def test_equal_values_of_another_kind_are_a_change(one, other):
    options = [one]
    watch = watched(lambda x: x * len(options) * bool(options[0]))
    options[0] = other
    assert watch.changed() is not None


def test_what_no_executed_code_names_is_no_change():
    options = types.SimpleNamespace(rate=1.0, seen=0)
    watch = watched(lambda x: x * options.rate)
    options.seen += 1
    options.more = 3
    assert watch.changed() is None


def test_names_that_are_made_as_the_program_runs_may_be_any():
    options = types.SimpleNamespace(rate=1.0, seen=0)
    watch = watched(lambda x: x * getattr(options, "".join(["ra", "te"])))
    options.rate = 2.0
    assert ".rate" in watch.changed()


def test_a_change_that_is_taken_back_is_none():
    options = {"rate": 1.0}
    watch = watched(lambda x: x * options["rate"])
    options["rate"] = 2.0
    assert watch.changed() is not None
    options["rate"] = 1.0
    assert watch.changed() is None


# --- constant tensors that are replaced -----------------------------------------------------------------------------------


def test_a_constant_tensor_may_be_followed_to_another():
    options = {"rate": torch.ones(2)}
    first = options["rate"]
    watch = watched(lambda x: x * options["rate"])
    options["rate"] = torch.zeros(2)
    assert watch.changed() is not None
    assert watch.changed(follow=True) is None
    assert [(old is first, new is options["rate"]) for old, new in watch.moved] == [(True, True)]
    watch.moved.clear()
    assert watch.changed() is None


@pytest.mark.parametrize(
    "new",
    [
        torch.ones(3),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, requires_grad=True),
        torch.ones(4)[::2],
        nn.Parameter(torch.ones(2), requires_grad=False),
        1.0,
        None,
    ],
    ids=["shape", "dtype", "gradient", "strides", "class", "number", "nothing"],
)
def test_only_a_tensor_like_it_may_take_its_place(new):
    options = {"rate": torch.ones(2)}
    watch = watched(lambda x: x if options["rate"] is None else x * options["rate"].sum())
    options["rate"] = new
    assert watch.changed(follow=True) is not None


def test_two_ways_to_a_tensor_must_stay_two_ways_to_one():
    options = {"a": torch.ones(2), "b": None}
    options["b"] = options["a"]
    watch = watched(lambda x: x * options["a"] * options["b"])
    options["a"] = torch.zeros(2)
    assert watch.changed(follow=True) is not None
    options["b"] = options["a"]
    assert watch.changed(follow=True) is None


def test_two_tensors_may_not_become_one():
    options = {"a": torch.ones(2), "b": torch.zeros(2)}
    watch = watched(lambda x: x * options["a"] * options["b"])
    options["a"] = options["b"]
    assert watch.changed(follow=True) is not None


# --- Pyro's parameters --------------------------------------------------------------------------------------------------


def with_param():
    def program(x):
        return x * pyro.param("rate", torch.ones(2), constraint=torch.distributions.constraints.positive)

    watch = watched(program)
    unconstrained = pyro.get_param_store()._params["rate"]
    watch.add({"rate": unconstrained})
    assert watch.changed() is None
    return watch, unconstrained


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: pyro.get_param_store().__delitem__("rate"),
        lambda tensor: pyro.get_param_store().__setitem__("rate", torch.full((2,), 3.0)),
        lambda tensor: tensor.requires_grad_(False),
        lambda tensor: tensor.register_hook(lambda g: g),
        lambda tensor: tensor.register_post_accumulate_grad_hook(lambda t: None),
    ],
    ids=["deleted", "set anew", "frozen", "hook", "hook on what is accumulated"],
)
def test_changes_of_parameters_are_seen(change):
    watch, tensor = with_param()
    change(tensor)
    assert "'rate'" in watch.changed()


def test_clearing_the_store_is_seen():
    watch, _ = with_param()
    pyro.clear_param_store()
    assert watch.changed() is not None


def test_steps_of_parameters_are_no_change():
    watch, tensor = with_param()
    with torch.no_grad():
        tensor.add_(1.0)
    tensor.grad = torch.ones(2)
    assert watch.changed() is None


def test_pyro_modules_are_watched():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = PyroParam(torch.tensor(1.0), torch.distributions.constraints.positive)
            self.factor = 1.0

        def forward(self, x):
            return x * self.rate * self.factor

    program = Program()
    watch = watched(program)
    program(X)
    assert watch.changed() is None
    program.factor = 2.0
    assert ".factor" in watch.changed()


# --- what cannot be watched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (iter([1, 2]), "iterator"),
        (zip([1], [2], strict=True), "iterator"),
        (np.zeros(policy.MOST_BYTES), "too many to compare"),
        (np.array([None]), "NumPy array"),
        (np.random.default_rng(0), ""),
    ],
    ids=["iterator", "zip", "large array", "array of objects", "generator of NumPy's"],
)
def test_what_cannot_be_seen_is_named(thing, message):
    holder = {"thing": thing}

    def program(x):
        return x * (1 if holder["thing"] is None else 2)

    _, executed, _ = observe(program, X)
    if message:
        with pytest.raises(Unseen, match=rf"\['thing'\].*{message}"):
            Watch(lambda: (program,), executed)
    else:
        assert Watch(lambda: (program,), executed).changed() is None


def test_too_much_to_watch_is_said(monkeypatch):
    monkeypatch.setattr(policy, "MOST_PLACES", 100)
    monkeypatch.setattr(sys.modules["pyro_vae.engine.reach"], "MOST_PLACES", 100)
    many = list(range(200))
    _, executed, _ = observe(lambda x: x * many[0], X)
    with pytest.raises(Unseen, match="are more than 100 values"):
        Watch(lambda: (lambda x: x * many[0],), executed)


def test_watching_changes_nothing_of_what_is_watched():
    rates = collections.defaultdict(float, a=1.0)
    net = network()
    before = copy.deepcopy(net.state_dict()), dict(rates)

    def program(x):
        return x * rates["a"] + net[0](x)

    watch = watched(program)
    assert watch.changed() is None
    assert dict(rates) == before[1]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before[0].items())
