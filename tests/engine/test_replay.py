"""When a function is captured, when it is compiled, and that neither depends on a clock."""

import logging

import pytest
import torch

from pyro_vae import lowering, replay
from pyro_vae.engine.replay import CAPTURE_FROM, MAX_KINDS, Replay
from pyro_vae.engine.trace import CaptureError

WEIGHT = torch.tensor([2.0, 3.0])


def function(x, factor=1.0):
    return (WEIGHT * x).sum() * factor


@pytest.fixture
def modes(monkeypatch):
    """The ways in which graphs are lowered, noted instead of compiled."""
    noted = []

    def lower(captured, inputs, mode, precision):
        noted.append(mode)
        return captured.graph

    monkeypatch.setattr(replay, "lower", lower)
    monkeypatch.setattr(replay, "has_compiler", lambda device: True)
    return noted


def call(step, times, x=None):
    return [step(torch.ones(2) if x is None else x).item() for _ in range(times)]


def test_the_second_call_captures(modes):
    step = Replay(function, (function,))
    assert call(step, 1) == [5.0]
    assert step.how == "eager"
    assert call(step, 3) == [5.0] * 3
    assert step.how == "captured"
    assert modes == ["graph"]
    assert step.capture_seconds > 0


def test_compiling_waits_until_it_has_paid(modes, monkeypatch):
    monkeypatch.setattr(replay, "seconds_of", lambda graph: 1.0)
    step = Replay(function, (function,))
    call(step, 4)
    assert modes == ["graph"]
    call(step, 60)  # as many seconds, of which a third would have been saved: more than the compiler takes
    assert modes == ["graph", "inductor"]
    assert step.how == "captured, Inductor"


@pytest.mark.parametrize(
    ("calls", "seconds", "wanted"),
    [
        (CAPTURE_FROM - 1, 1.0, []),
        (CAPTURE_FROM, 1e-4, ["graph"]),
        (CAPTURE_FROM, 1.0, ["graph", "inductor"]),
    ],
)
def test_where_the_number_of_calls_is_known_the_first_decides(modes, monkeypatch, calls, seconds, wanted):
    monkeypatch.setattr(replay, "seconds_of", lambda graph: seconds)
    step = Replay(function, (function,), calls=lambda *batch: calls)
    call(step, 1)
    assert modes == wanted
    call(step, 200)
    assert modes == wanted


def test_without_a_compiler_a_graph_stays_a_graph(modes, monkeypatch):
    monkeypatch.setattr(replay, "has_compiler", lambda device: False)
    monkeypatch.setattr(replay, "seconds_of", lambda graph: 1.0)
    step = Replay(function, (function,))
    call(step, 80)
    assert modes == ["graph"]
    assert step.how == "captured"


def test_a_graph_that_cant_be_compiled_stays_a_graph(modes, monkeypatch, caplog):
    def lower(captured, inputs, mode, precision):
        if mode == "inductor":
            raise CaptureError("Inductor can't compile the graph: no")
        return captured.graph

    monkeypatch.setattr(replay, "lower", lower)
    step = Replay(function, (function,), compile="inductor", what="the test")
    assert call(step, 5) == [5.0] * 5
    assert step.how == "captured"
    assert caplog.text.count("The test stays a captured graph that is not compiled: Inductor can't") == 1


def test_a_way_of_running_that_gives_other_values_is_not_used(modes, monkeypatch):
    def lower(captured, inputs, mode, precision):
        return captured.graph if mode == "graph" else lambda *tensors: [captured.graph(*tensors)[0] * 1.01]

    monkeypatch.setattr(replay, "lower", lower)
    step = Replay(function, (function,), compile="inductor")
    assert call(step, 5) == [5.0] * 5
    assert step.how == "captured"


def test_only_the_first_kind_is_compiled_at_once(modes):
    step = Replay(function, (function,), compile="inductor")
    call(step, 3)
    call(step, 3, torch.ones(1, 2))
    assert modes == ["graph", "inductor", "graph"]


def test_kinds_that_come_once_take_no_room():
    step = Replay(function, (function,), compile="graph")
    for size in range(3, 3 + 2 * MAX_KINDS):
        call(step, 1, torch.ones(size, 2))
    assert call(step, 3) == [5.0] * 3
    assert step.how == "captured"


def test_values_that_keep_changing_end_in_eager_calls_and_a_message(caplog):
    options = {"rate": 0}

    def changing(x):
        return x.sum() * options["rate"]

    step = Replay(changing, (changing,), compile="graph")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for options["rate"] in range(MAX_KINDS + 5):
            assert step(torch.ones(2)).item() == 2 * options["rate"]
    assert "a dict.rate keeps changing; keep it in a tensor" in caplog.text
    assert len(caplog.records) == 1


def test_an_argument_that_cant_be_watched_is_named(caplog):
    step = Replay(lambda x, thing: x.sum(), (function,), compile="graph")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert step(torch.ones(2), object()).item() == 2
    assert "an argument is a object" in caplog.text


def test_nested_arguments_are_kinds_of_their_own():
    def of_lists(batch, options):
        return sum(x.sum() for x in batch["x"]) * (2 if options[0] == "double" else 1)

    step = Replay(of_lists, (of_lists,), compile="graph")
    for _ in range(3):
        assert step({"x": [torch.ones(2), torch.ones(3)]}, ("double",)).item() == 10
        assert step({"x": [torch.ones(2), torch.ones(3)]}, ("single",)).item() == 5
        assert step({"x": [torch.ones(5)]}, ("single",)).item() == 5
    assert step.how == "captured"


def test_a_compiler_is_looked_for():
    import shutil

    found = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    assert lowering.has_compiler(torch.device("cpu")) == found
    assert not lowering.has_compiler(torch.device("meta"))
