"""A call that asks the world outside, or changes it, is found by the observed call alone; what libraries do is theirs."""

import collections
import contextvars
import copy
import ctypes
import dataclasses
import datetime
import functools
import gc
import itertools
import logging
import math
import os
import pathlib
import platform
import random
import secrets
import sys
import time
import types
import uuid
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader

from pyro_vae.engine import observe as observing
from pyro_vae.engine.observe import can_observe, observe
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.step.gradients import Gradients

X = torch.ones(2)
FILE = pathlib.Path(__file__)


def reason_of(function, *args):
    return observe(function, *(args or (X,)))[2]


def setting():
    torch.set_default_dtype(torch.float64)


def seeded():
    return np.random.default_rng(0)


VARIABLE = contextvars.ContextVar("VARIABLE", default=1.0)
CHANCE = random.Random(0)
GENERATOR = torch.Generator()

REFUSED = {
    "clock": (lambda x: x * time.time(), "reads the clock"),
    "counter of the clock": (lambda x: x * time.perf_counter(), "reads the clock"),
    "date": (lambda x: x * datetime.datetime.now().year, "reads the clock"),
    "today": (lambda x: x * datetime.date.today().year, "reads the clock"),
    "environment": (lambda x: x * len(os.environ.get("HOME", "")), "asks the operating system"),
    "getenv": (lambda x: x * len(os.getenv("HOME", "")), "asks the operating system"),
    "process": (lambda x: x * os.getpid(), "asks the operating system"),
    "file's existence": (lambda x: x * os.path.exists("/"), "asks the operating system"),
    "platform": (lambda x: x * len(platform.node()), "asks the operating system"),
    "open": (lambda x: x * _read(), "file"),
    "path": (lambda x: x * len(FILE.read_text()), ""),
    "print": (lambda x: print(end="") or x, "prints"),
    "writing": (lambda x: x * (sys.stdout.write("") + 1), ""),
    "log": (lambda x: logging.getLogger("user").info("seen") or x, "writes to a log"),
    "warning": (lambda x: warnings.warn("seen", UserWarning, stacklevel=1) or x, "warning"),
    "Python's random numbers": (lambda x: x * random.random(), "random numbers"),
    "a generator of Python's": (lambda x: x * CHANCE.random(), "random numbers"),
    "secrets": (lambda x: x * secrets.randbelow(5), "random numbers"),
    "uuid": (lambda x: x * int(uuid.uuid4().hex[:3], 16), "random numbers"),
    "NumPy's random numbers": (lambda x: x * float(np.random.rand()), "random numbers"),
    "a new generator of NumPy's": (lambda x: x * float(seeded().normal()), "random"),
    "torch's seed": (lambda x: torch.manual_seed(0) and x + torch.rand(2), "seeds"),
    "Pyro's seed": (lambda x: pyro.set_rng_seed(0) or x, "seeds"),
    "torch's random state": (lambda x: torch.set_rng_state(torch.get_rng_state()) or x, "seeds"),
    "fork of the random state": (lambda x: _forked(x), "seeds"),
    "a seed of a generator": (lambda x: x * GENERATOR.manual_seed(1).initial_seed(), "seeds a random generator"),
    "context variable": (lambda x: x * VARIABLE.get(), "context variable"),
    "C function of unknown packages": (lambda x: x * ctypes.c_float.from_buffer(bytearray(4)).value, "ctypes"),
    "globals": (lambda x: x * globals()["FACTOR"], "looks names up at run time"),
    "setting of torch": (lambda x: setting() or x, "changes a setting"),
    "data loader": (lambda x: x * sum(1 for _ in DataLoader([1, 2])), ""),
    "import by name": (lambda x: x * __import__("importlib").import_module("math").pi, ""),
}
FACTOR = 1.0


def _read():
    with open(FILE) as file:
        return len(file.read())


def _forked(x):
    with torch.random.fork_rng():
        return x + torch.rand(2)


@pytest.fixture(autouse=True)
def settings_kept():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:seen")
def test_what_asks_the_world_or_changes_it_is_refused(case):
    function, message = REFUSED[case]
    reason = reason_of(function)
    assert reason is not None
    assert message in reason
    if case not in ("setting of torch", "NumPy's random numbers"):
        assert "test_observe.py, line" in reason, reason


def test_a_draw_that_no_call_is_seen_of_is_found_by_the_state(monkeypatch):
    monkeypatch.setattr(observing, "verdict", lambda owner, name: None)
    assert reason_of(lambda x: x * random.random()) == "it draws from Python's random numbers"
    assert reason_of(lambda x: x * float(np.random.rand())) == "it draws from NumPy's random numbers"


def test_the_line_is_the_users_own():
    def helper():
        return time.time()  # the line

    assert "('return time.time()  # the line')" in reason_of(lambda x: x * helper())


@dataclasses.dataclass
class Options:
    rate: float = 1.0


@dataclasses.dataclass
class Made:
    x: torch.Tensor


class Node:
    def __init__(self, rate):
        self.rate = rate

    def __add__(self, other):
        return Node(self.rate + other.rate)


NETWORK = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2), nn.GRU(2, 2))
ALLOWED = {
    "arithmetic": lambda x: x * math.exp(0.5) + math.pi,
    "builtins": lambda x: x * sum(sorted(map(abs, [3, -1]))) * len(str(5)) * max(1, 2) * int("3") * round(1.5),
    "itertools": lambda x: x * sum(a for a, _ in itertools.product([1, 2], repeat=2)),
    "collections": lambda x: x * collections.Counter("aab")["a"] * len(collections.deque([1])),
    "functools": lambda x: functools.reduce(lambda a, b: a + b, [x, x]),
    "classes": lambda x: x * (Node(1) + Node(2)).rate,
    "dataclasses": lambda x: Made(dataclasses.replace(Options(), rate=2.0).rate * x).x,
    "copies": lambda x: x * copy.deepcopy({"a": [1.0]})["a"][0],
    "texts": lambda x: x * len(f"{3:.2f}".replace("3", "4").split(".")),
    "exceptions": lambda x: _caught(x),
    "contexts": lambda x: _in_contexts(x),
    "NumPy": lambda x: x * float(np.mean(np.ones(3)) + np.log1p(2.0)),
    "dates": lambda x: x * datetime.date(2020, 1, 1).day * datetime.timedelta(days=2).days,
    "draws of torch's": lambda x: x + torch.randn(2) + torch.rand_like(x) + torch.bernoulli(torch.full((2,), 0.5)),
    "distributions": lambda x: pyro.sample("z", dist.Gamma(x + 1, 1.0)) + dist.Categorical(torch.ones(3)).sample(),
    "networks": lambda x: NETWORK[2](NETWORK[1](NETWORK[0](torch.randn(3, 2)))).sum() * x,
    "recurrent networks": lambda x: NETWORK[3](torch.randn(3, 1, 2))[0].sum() * x,
    "gradients": lambda x: _gradient(x.clone().requires_grad_()),
    "no_grad": lambda x: _without_gradients(x),
    "types": lambda x: x * isinstance(x, torch.Tensor) * issubclass(bool, int),
}


def _gradient(x):
    (x**2).sum().backward()
    return x.grad


def _caught(x):
    try:
        raise ValueError("no")
    except ValueError as error:
        return x * len(error.args)


def _in_contexts(x):
    import contextlib

    with contextlib.suppress(KeyError), contextlib.nullcontext(), contextlib.ExitStack():
        x = x * {}["a"]
    return x


def _without_gradients(x):
    with torch.no_grad():
        return x * 2


@pytest.mark.parametrize("case", ALLOWED)
def test_what_asks_nothing_is_allowed(case):
    assert reason_of(ALLOWED[case]) is None


def test_what_libraries_do_inside_is_theirs():
    """An objective guesses the nesting of plates, which Pyro logs; an optimizer's step reads the environment."""
    torch.manual_seed(0)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0), obs=x)

    loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss_and_grads
    gradients = Gradients(lambda: (model, lambda x: None, loss))
    assert reason_of(gradients) is None


class Handler(logging.Handler):
    """One of the user's, such as Rich's or pytest's own."""

    def emit(self, record):
        logging.StreamHandler.format(self, record)


def test_log_handlers_that_libraries_call_are_not_the_programs():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0), obs=x)

    gradients = Gradients(
        lambda: (model, lambda x: None, Trace_ELBO(num_particles=2, vectorize_particles=True).loss_and_grads)
    )
    handler, logger = Handler(), logging.getLogger("pyro")
    logger.addHandler(handler)
    try:
        assert reason_of(gradients) is None
    finally:
        logger.removeHandler(handler)


# --- what is executed ---------------------------------------------------------------------------------------------------


def test_code_and_names_outside_the_libraries_are_noted():
    options = types.SimpleNamespace(rate=1.0)

    def helper(x):
        return x * options.rate

    def function(x):
        return helper(x).relu()

    result, executed, reason = observe(function, X)
    assert reason is None
    assert torch.equal(result, X)
    assert {function.__code__, helper.__code__} <= {code for code, _ in executed.codes.values()}
    assert not any("torch" in namespace["__name__"] for _, namespace in executed.codes.values())
    assert {"rate", "relu"} <= executed.own_names <= executed.names
    assert not executed.any_name


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * getattr(OPTIONS, "".join(["ra", "te"])),
        lambda x: x * hasattr(OPTIONS, "rate"),
        lambda x: x * len(vars(OPTIONS)),
        lambda x: x * len(dir(OPTIONS)),
        lambda x: x * OPTIONS.__dict__["rate"],
        lambda x: setattr(OPTIONS, "ra" + "te", 1.0) or x,
        lambda x: x * len(dataclasses.asdict(Options())),
        lambda x: x * copy.copy(OPTIONS).rate,
    ],
    ids=["getattr", "hasattr", "vars", "dir", "__dict__", "setattr", "asdict", "copy"],
)
def test_attributes_by_any_name_are_noted(function):
    assert observe(function, X)[1].any_name


OPTIONS = types.SimpleNamespace(rate=1.0)


def test_libraries_may_look_attributes_up_as_they_like():
    assert not observe(lambda x: NETWORK[0](x), X)[1].any_name


def test_calls_are_joined_and_it_is_said_whether_one_brings_anything_new():
    def function(x):
        return x.sin() if x[0] > 0 else x.cos().exp()

    first = observe(function, X)[1]
    assert not first.add(observe(function, X)[1])
    assert not first.add(observe(function, -X)[1])  # the same code
    assert first.add(observe(lambda x: x.tan(), X)[1])
    assert {"sin", "tan"} <= first.own_names


def test_the_profiler_is_gone_afterwards():
    assert can_observe()
    observe(lambda x: x, X)
    assert sys.getprofile() is None
    with pytest.raises(ValueError, match="no"):
        observe(_raise)
    assert sys.getprofile() is None
    sys.setprofile(lambda *_: None)
    try:
        assert not can_observe()
    finally:
        sys.setprofile(None)


def _raise():
    raise ValueError("no")


def test_callbacks_of_the_garbage_collector_are_not_the_programs():
    times = []

    def callback(phase, info):
        times.append(time.perf_counter())

    def program(x):
        while not times:
            cycle = []
            cycle.append(cycle)
        return x.sum()

    gc.callbacks.append(callback)
    try:
        _, executed, reason = observe(program, X)
    finally:
        gc.callbacks.remove(callback)
    assert times
    assert reason is None
    assert callback.__code__ not in {code for code, _ in executed.codes.values()}


def test_what_programs_print_once_does_not_keep_them_from_being_captured(capsys):
    said = []

    def program(x):
        if not said:
            print("set up")
            said.append(True)
        return x.sum()

    step = Replay(program, (program,), compile="graph")
    for _ in range(8):
        step(X)
    assert step.how == "captured"
    assert capsys.readouterr().out == "set up\n"


def test_functions_of_numpy_may_be_named():
    def program(x):
        return x.sum() * np.log(2.0) + np.sum([1.0, 2.0])

    step = Replay(program, (program,), compile="graph")
    for _ in range(5):
        step(X)
    assert step.how == "captured"
