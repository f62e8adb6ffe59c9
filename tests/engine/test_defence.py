"""Three lines of defence: the observed call, the watch and the comparison. Each holds alone, with the others off."""

import ctypes
import itertools
import logging
import os
import random
import time

import numpy as np
import pytest
import torch

from pyro_vae.engine import policy, replay, settle
from pyro_vae.engine.observe import observe
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.watch import Watch
from tests.engine import test_watch
from tests.engine.test_observe import REFUSED
from tests.engine.test_watch import CASES

X = torch.ones(2)
globals_kept = test_watch.globals_kept  # an automatic fixture here too


@pytest.fixture
def no_observation(monkeypatch):
    """Observed calls find nothing against capturing; which code they execute is still noted."""
    for place in (settle, replay):
        monkeypatch.setattr(place, "observe", lambda *args, **kwargs: (*observe(*args, **kwargs)[:2], None))


@pytest.fixture
def no_watch(monkeypatch):
    """No change between calls is seen."""
    monkeypatch.setattr(Watch, "changed", lambda self, follow=False: None)


@pytest.fixture
def no_comparison(monkeypatch):
    """No replay is compared with an eager call."""
    monkeypatch.setattr(policy, "is_verified", lambda calls: False)


def replayed(function):
    return Replay(function, (function,), compile="graph", what="the test")


# --- the observed call ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_watch", "no_comparison")
@pytest.mark.parametrize("case", [case for case in REFUSED if case not in ("setting of torch",)])
@pytest.mark.filterwarnings("ignore:seen")
def test_the_observed_call_alone_refuses_what_asks_the_world(case, caplog):
    function, _ = REFUSED[case]
    step = replayed(function)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(5):
            step(X)
    assert step.how == "eager (not captured)"
    assert sum(record.name == "pyro_vae" for record in caplog.records) == 1


def test_without_any_defence_these_programs_go_wrong(no_observation, no_watch, no_comparison, monkeypatch):
    """So that the tests here show something."""
    monkeypatch.setenv("ENGINE_TEST", "1")
    step = replayed(lambda x: x * float(os.environ["ENGINE_TEST"]))
    assert [step(X)[0].item() for _ in range(5)] == [1.0] * 5
    monkeypatch.setenv("ENGINE_TEST", "2")
    assert step(X)[0].item() == 1.0
    assert step.how == "captured"


@pytest.mark.usefixtures("no_watch", "no_comparison")
def test_the_observed_call_alone_keeps_numbers_right(monkeypatch):
    step = replayed(lambda x: x * float(os.environ["ENGINE_TEST"]) + random.random())
    random.seed(0)
    for i in range(8):
        monkeypatch.setenv("ENGINE_TEST", str(i))
        state = random.getstate()
        got = step(X)
        random.setstate(state)
        torch.testing.assert_close(got, X * i + random.random())


# --- the watch ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_observation", "no_comparison")
@pytest.mark.parametrize("name", CASES)
def test_the_watch_alone_sees_every_change(name):
    program, change = CASES[name][0]()
    step = replayed(program)
    for _ in range(6):
        assert torch.equal(step(X), program(X))
    assert step.how == "captured", step.refusal
    change()
    for _ in range(6):
        assert torch.equal(step(X), program(X))


@pytest.mark.usefixtures("no_observation", "no_comparison")
def test_the_watch_alone_sees_what_programs_set_anew(caplog):
    state = {"calls": 0}

    def function(x):
        state["calls"] += 1
        return x * state["calls"]

    step = replayed(function)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert [step(X)[0].item() for _ in range(8)] == list(range(1, 9))
    assert "['calls'] is set anew" in caplog.text


@pytest.mark.usefixtures("no_observation", "no_comparison")
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.random.default_rng(0),
        lambda: np.random.RandomState(0),
        lambda: itertools.count(1),
        lambda: torch.Generator().manual_seed(0),
        lambda: iter(range(1, 99)),
    ],
    ids=["Generator", "RandomState", "count", "torch.Generator", "iterator"],
)
def test_the_watch_alone_sees_what_calls_use_up(make):
    def draw(source):
        if isinstance(source, torch.Generator):
            return float(torch.rand((), generator=source))
        return float(source.normal()) if hasattr(source, "normal") else float(next(source))

    ours, theirs = make(), make()
    step = replayed(lambda x: x * draw(ours))
    for _ in range(8):
        torch.testing.assert_close(step(X), X * draw(theirs))
    assert step.how == "eager (not captured)"


# --- the comparison -------------------------------------------------------------------------------------------------------


def counting():
    state = {"calls": 0}

    def function(x):
        state["calls"] += 1
        return x * state["calls"]

    return function


def of_the_clock():
    return lambda x: x * (time.perf_counter_ns() % 1_000_003)


def of_pythons_numbers():
    random.seed(0)
    return lambda x: x * random.random()


def own_numbers():
    stream = np.random.default_rng(0)
    return lambda x: x * float(stream.normal())


def of_an_iterator():
    numbers = itertools.count(1)
    return lambda x: x * next(numbers)


@pytest.mark.usefixtures("no_observation", "no_watch")
@pytest.mark.parametrize(
    "make", [counting, of_the_clock, of_pythons_numbers, own_numbers, of_an_iterator], ids=lambda make: make.__name__
)
def test_the_comparison_alone_finds_what_changes_from_call_to_call(make, monkeypatch, caplog):
    monkeypatch.setattr("pyro_vae.engine.reach.Reach._look_at_instance", lambda *args: None)
    step = replayed(make())
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        results = [step(X)[0].item() for _ in range(6)]
    assert step.how == "eager (not captured)"
    assert "gives other values than an eager run" in caplog.text
    assert len(set(results)) >= 3  # what is compared is also what is returned


@pytest.mark.usefixtures("no_observation", "no_watch")
def test_the_comparison_alone_finds_a_value_burnt_in_on_the_next_batch(caplog):
    places = {}

    def function(x):
        return x + ctypes.c_float.from_address(places["x"]).value  # reads memory behind torch's back

    step = replayed(function)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for i in range(6):
            x = torch.full((2,), float(i))
            places["x"] = x.data_ptr()
            assert step(x)[0].item() == 2 * i
    assert step.how == "eager (not captured)"
    assert "gives other values" in caplog.text


@pytest.mark.usefixtures("no_observation", "no_watch")
@pytest.mark.parametrize("at", [4, 9, 20])
def test_the_comparison_alone_finds_a_later_change_at_the_next_comparison(at, monkeypatch, caplog):
    monkeypatch.setenv("ENGINE_TEST", "1")
    step = replayed(lambda x: x * float(os.environ["ENGINE_TEST"]))
    next_comparison = {4: 5, 9: 14, 20: 34}[at]  # as a call; the graph is traced at the third
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for call in range(1, 40):
            if call == at:
                monkeypatch.setenv("ENGINE_TEST", "2")
            got = step(X)[0].item()
            if call < at or call >= next_comparison or call in (4, 5):
                assert got == (1 if call < at else 2)
    assert step.how == "eager (not captured)"
    assert len(caplog.records) == 1


# --- all of them --------------------------------------------------------------------------------------------------------


def replace_a_weight(net):
    net[0].weight = torch.nn.Parameter(torch.zeros(2, 2))


def replace_statistics(net):
    net[1].running_mean = torch.full((2,), 5.0)


def load_weights(net):
    net.load_state_dict({name: torch.ones_like(value) for name, value in net.state_dict().items()})


def train(net):
    net.train()


@pytest.mark.parametrize(
    "change",
    [replace_a_weight, replace_statistics, load_weights, train],
    ids=lambda change: change.__name__,
)
def test_changes_of_a_network_that_is_not_pyros_are_followed(change):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    x = torch.randn(4, 2)
    step = replayed(lambda x: net(x))
    for _ in range(8):
        assert torch.equal(step(x), net(x))
    assert step.how == "captured", step.refusal
    change(net)
    torch.testing.assert_close(step(x), net(x))
    torch.testing.assert_close(step(x), net(x))
