"""When a function is captured, when it is compiled, and that neither depends on a clock."""

import copy
import logging
import pickle

import pytest
import torch
from pyro import poutine
from torch.overrides import BaseTorchFunctionMode

from pyro_vae.engine import lower as lowering
from pyro_vae.engine import policy
from pyro_vae.engine.kept import kept_with
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.values import CaptureError
from tests.engine.counter import counter

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

    monkeypatch.setattr(lowering, "lower", lower)
    monkeypatch.setattr(lowering, "has_compiler", lambda device: True)
    return noted


def call(step, times, x=None):
    return [step(torch.ones(2) if x is None else x).item() for _ in range(times)]


def noting():
    """A function that notes how often its Python runs, and what tells it."""
    note, times = counter()

    def noted(x):
        note()
        return (WEIGHT * x).sum()

    return noted, times


def test_the_third_call_captures_and_the_next_two_are_verified(modes):
    noted, times = noting()
    step = Replay(noted, (noted,), compile="graph")
    how = []
    for _ in range(8):
        assert call(step, 1) == [5.0]
        how.append((times(), step.how))
    assert how == [*((i, "eager") for i in (1, 2)), *((i, "captured") for i in (3, 4, 5, 5, 5, 5))]
    assert modes == ["graph"]
    assert step.capture_seconds > 0


def test_the_functions_python_runs_at_most_once_per_call_and_is_asked_at_growing_intervals():
    noted, times = noting()
    step = Replay(noted, (noted,), compile="graph")
    ran = []
    for _ in range(3 + 301):
        before = times()
        call(step, 1)
        ran.append(times() - before)
    assert set(ran) == {0, 1}
    assert [i - 2 for i, n in enumerate(ran) if n and i > 2] == [1, 2, 11, 31, 101, 301]


@pytest.mark.parametrize("way", ["auto", "graph"])
def test_where_the_number_of_calls_is_not_known(modes, way):
    step = Replay(function, (function,), compile=way)
    first = {"auto": policy.CALLS_BEFORE_CAPTURE, "graph": 0}[way]
    call(step, first + 2)
    assert step.how == "eager"
    call(step, 1)
    assert step.how == "captured"


def test_eager_never_captures(modes):
    step = Replay(function, (function,), compile="eager")
    call(step, 5)
    assert (modes, step.how, step.replays(torch.ones(2))) == ([], "eager", False)


def test_compiling_waits_until_it_has_paid(modes, monkeypatch):
    monkeypatch.setattr(lowering, "seconds_of", lambda captured: 1.0)
    monkeypatch.setattr(policy, "CALLS_BEFORE_CAPTURE", 0)
    step = Replay(function, (function,))
    call(step, 6)
    assert modes == ["graph"]
    call(step, 60)  # as many seconds, of which a third would have been saved: more than the compiler takes
    assert modes == ["graph", "inductor"]
    assert step.how == "captured, Inductor"


@pytest.mark.parametrize(
    ("calls", "seconds", "wanted"),
    [
        (policy.CALLS_WORTH_CAPTURE - 1, 1.0, []),
        (policy.CALLS_WORTH_CAPTURE, 1e-4, ["graph"]),
        (policy.CALLS_WORTH_CAPTURE, 1.0, ["graph", "inductor"]),
    ],
)
def test_where_the_number_of_calls_is_known_it_decides_at_once(modes, monkeypatch, calls, seconds, wanted):
    monkeypatch.setattr(lowering, "seconds_of", lambda captured: seconds)
    step = Replay(function, (function,), calls=lambda *batch: calls)
    assert step.replays(torch.ones(2)) == bool(wanted)
    call(step, 3)
    assert modes == wanted
    call(step, 200)
    assert modes == wanted


def test_which_replays_are_verified():
    assert [n for n in range(3001) if policy.is_verified(n)] == [0, 1, 10, 30, 100, 300, 1000, 3000]


def test_without_a_compiler_a_graph_stays_a_graph(modes, monkeypatch):
    monkeypatch.setattr(lowering, "has_compiler", lambda device: False)
    monkeypatch.setattr(lowering, "seconds_of", lambda captured: 1.0)
    monkeypatch.setattr(policy, "CALLS_BEFORE_CAPTURE", 0)
    step = Replay(function, (function,))
    call(step, 80)
    assert modes == ["graph"]
    assert step.how == "captured"


def test_a_graph_that_cant_be_compiled_stays_a_graph(modes, monkeypatch, caplog):
    def lower(captured, inputs, mode, precision):
        if mode == "inductor":
            raise CaptureError("Inductor can't compile the graph: no")
        return captured.graph

    monkeypatch.setattr(lowering, "lower", lower)
    step = Replay(function, (function,), compile="inductor", what="the test")
    assert call(step, 5) == [5.0] * 5
    assert step.how == "captured"
    assert caplog.text.count("The test stays a captured graph that is not compiled: Inductor can't") == 1


def test_a_way_of_running_that_gives_other_values_is_not_used(modes, monkeypatch):
    def lower(captured, inputs, mode, precision):
        return captured.graph if mode == "graph" else lambda *tensors: [captured.graph(*tensors)[0] * 1.01]

    monkeypatch.setattr(lowering, "lower", lower)
    step = Replay(function, (function,), compile="inductor")
    assert call(step, 5) == [5.0] * 5
    assert step.how == "captured"


def test_only_the_first_kind_is_compiled_at_once(modes):
    step = Replay(function, (function,), compile="inductor")
    call(step, 4)
    call(step, 4, torch.ones(1, 2))
    assert modes == ["graph", "inductor", "graph"]


def test_kinds_that_come_once_take_no_room():
    step = Replay(function, (function,), compile="graph")
    for size in range(3, 3 + 2 * policy.MOST_KINDS):
        call(step, 1, torch.ones(size, 2))
    assert call(step, 6) == [5.0] * 6
    assert step.how == "captured"


def test_kinds_beyond_the_most_run_eagerly():
    noted, times = noting()
    step = Replay(noted, (noted,), compile="graph")
    for size in range(1, policy.MOST_KINDS + 3):
        call(step, 8, torch.ones(size, 2))
    before = times()
    call(step, 3, torch.ones(1, 2))
    assert times() == before
    call(step, 3, torch.ones(policy.MOST_KINDS + 2, 2))
    assert times() == before + 3
    assert step.how == "captured"


def test_values_that_keep_changing_end_in_eager_calls_and_a_message(caplog):
    options = {"rate": 0}

    def changing(x):
        return x.sum() * options["rate"]

    step = Replay(changing, (changing,), compile="graph")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for options["rate"] in range(40):
            assert step(torch.ones(2)).item() == 2 * options["rate"]
    assert "['rate'] keeps changing; keep it in a tensor" in caplog.text
    assert step.how == "eager (not captured)"
    assert len(caplog.records) == 1


def test_values_that_change_back_and_forth_have_a_graph_each():
    options = {"rate": 1}
    note, times = counter()

    def changing(x):
        note()
        return x.sum() * options["rate"]

    step, ran = Replay(changing, (changing,), compile="graph"), []
    for i in range(60):
        options["rate"] = 1 + i // 4 % 2
        assert step(torch.ones(2)).item() == 2 * options["rate"]
        ran.append(times())
    assert step.how == "captured", step.refusal
    assert ran[-1] < 20
    assert ran[-8:] == ran[-1:] * 8


def test_nested_arguments_are_kinds_of_their_own():
    def of_lists(batch, options):
        return sum(x.sum() for x in batch["x"]) * (2 if options[0] == "double" else 1)

    step = Replay(of_lists, (of_lists,), compile="graph")
    for _ in range(6):
        assert step({"x": [torch.ones(2), torch.ones(3)]}, ("double",)).item() == 10
        assert step({"x": [torch.ones(2), torch.ones(3)]}, ("single",)).item() == 5
        assert step({"x": [torch.ones(5)]}, ("single",)).item() == 5
    assert step.how == "captured"


def test_what_is_set_up_by_first_calls_is_waited_for():
    parts = {}

    def lazy(x):
        if "weight" not in parts:
            parts["weight"] = torch.full((2,), 2.0)
        return (parts["weight"] * x).sum()

    step = Replay(lazy, (lazy,), compile="graph")
    assert call(step, 8) == [4.0] * 8
    assert step.how == "captured", step.refusal


def test_a_function_that_counts_its_calls_counts_them_all(caplog):
    state = {"calls": 0}

    def counting(x):
        state["calls"] += 1
        return x.sum() * state["calls"]

    step = Replay(counting, (counting,), compile="graph")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert call(step, 9) == [2.0 * i for i in range(1, 10)]
    assert state["calls"] == 9
    assert "['calls'] is set anew as the programs run" in caplog.text


def test_a_failed_capture_leaves_random_state_and_buffers_as_one_call_does(caplog):
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return total * float((torch.rand(2) + x).sum())  # a number burnt in

    step = Replay(function, (function,), compile="graph")
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        got = [step(torch.ones(2)) for _ in range(6)]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    total.zero_()
    torch.testing.assert_close(got, [function(torch.ones(2)) for _ in range(6)])
    assert torch.equal(torch.get_rng_state(), state)
    assert "turns a tensor into a Python number" in caplog.text


def test_an_error_of_the_function_is_raised_as_it_is():
    def function(x):
        if len(x) == 3:
            raise ValueError("three")
        return x.sum()

    step = Replay(function, (function,), compile="graph")
    for _ in range(8):
        step(torch.ones(2))
        with pytest.raises(ValueError, match="^three$"):
            step(torch.ones(3))


def test_a_default_device_is_no_reason_to_run_eagerly():
    def function(x):
        return x.sum() + torch.ones(2).sum()

    step = Replay(function, (function,), compile="graph")
    with torch.device("cpu"):
        assert call(step, 5) == [function(torch.ones(2)).item()] * 5
        assert step.how == "captured"


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (lambda: poutine.scale(scale=2.0), "a Pyro handler is active around it"),
        (lambda: torch.autograd.set_detect_anomaly(True), "anomaly detection is on"),
        (BaseTorchFunctionMode, "a mode of torch's is active around it"),
    ],
    ids=["handler", "anomaly", "mode"],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_calls_that_something_looks_on_run_eagerly(around, message, caplog):
    noted, times = noting()
    step = Replay(noted, (noted,), compile="graph", what="the test")
    call(step, 7)
    before = times()
    with around(), caplog.at_level(logging.WARNING, "pyro_vae"):
        call(step, 3)
    assert times() == before + 3
    assert len(caplog.records) == 1
    assert message in caplog.text
    call(step, 3)
    assert times() == before + 3
    assert step.how == "captured"


def test_copies_and_pickles_have_no_graphs():
    step = Replay(function, (function,), compile="graph")
    call(step, 6)
    for other in (copy.copy(step), pickle.loads(pickle.dumps(Replay(function, programs, compile="graph")))):
        assert other.how == "eager"
        assert call(other, 6) == [5.0] * 6
        assert other.how == "captured"


def programs():
    return (function,)


def test_replays_belong_to_an_object_and_not_to_its_copies():
    thing = torch.nn.Linear(2, 2)
    kept_with(thing)["loss"] = step = Replay(function, (function,), compile="graph")
    assert kept_with(thing)["loss"] is step
    assert kept_with(copy.deepcopy(thing)) == {}
    assert kept_with(pickle.loads(pickle.dumps(thing))) == {}
    assert list(thing.state_dict()) == ["weight", "bias"]
    assert kept_with(3) == {}


def test_tensors_that_change_places_are_told_apart():
    """Each takes the other's place in the graph; replaced one after the other, both would become one."""
    held = {"factor": torch.tensor(2.0), "shift": torch.tensor(5.0)}

    def function(x):
        return x.sum() * held["factor"] + held["shift"]

    step = Replay(function, (function,), compile="graph")
    assert call(step, 6) == [9.0] * 6
    held["factor"], held["shift"] = held["shift"], held["factor"]
    assert call(step, 3) == [12.0] * 3
    assert step.how == "captured"
