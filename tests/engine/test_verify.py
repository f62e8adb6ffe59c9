"""A graph against an eager call: rounding passes, and a wrong number, draw or write is found."""

import logging

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.engine.replay import Replay
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.trace import capture
from pyro_vae.engine.values import CaptureError
from pyro_vae.engine.verify import (
    LOWERED,
    RECORDED,
    RandomState,
    against_eager,
    agree,
    check_lowered,
    close,
    run_apart,
    unwritten,
    written_to,
)
from tests.engine.test_svi import X, make_vae

# --- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.000001])),
        (torch.tensor([1e-9, 1.0]), torch.tensor([0.0, 1.0])),  # measured by the largest entry
        (torch.tensor([1e-9, 1e-9]), torch.tensor([1e-9, 1e-9])),
        (torch.tensor([torch.nan, torch.inf, 1.0]), torch.tensor([torch.nan, torch.inf, 1.0])),
        (torch.zeros(0), torch.zeros(0)),
        (torch.tensor(3), 3.0),
        (torch.tensor([True]), torch.tensor([True])),
        (3, 3.0),
        ("a", "a"),
        (float("nan"), float("nan")),
        (None, None),
    ],
)
def test_close(a, b):
    assert close(a, b, 1e-5)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001])),
        (torch.tensor([1e-9, 2e-9]), torch.tensor([1e-9, 1e-9])),  # however small
        (torch.tensor([1e-9, 1e-9]), torch.zeros(2)),
        (torch.tensor([torch.nan]), torch.tensor([1.0])),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf])),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([1.0, 1.0])),
        (torch.ones(1), torch.ones(2)),
        (torch.ones(1), None),
        (None, torch.ones(1)),
        (3, 4),
        ("a", "b"),
        (None, 0),
    ],
)
def test_apart(a, b):
    assert not close(a, b, 1e-5)


def test_results_may_be_apart_by_a_hundred_times_what_rounding_moves_them():
    got, expected = [torch.tensor([1.0]), torch.tensor([3e-8])], [torch.tensor([1.0]), torch.tensor([-2e-8])]
    assert not agree(got, expected, 1e-5)
    assert agree(got, expected, 1e-5, lambda: [0.0, 1e-8])
    assert not agree(got, expected, 1e-5, lambda: [0.0, 1e-10])
    assert not agree(got, expected, 1e-5, lambda: [1e-8, 0.0])
    assert not agree(got, expected, 1e-5, lambda: [1e-8])


# --- states -------------------------------------------------------------------------------------------------------------


def test_random_state_is_restored_and_compared():
    before = RandomState(torch.device("cpu"))
    first = torch.rand(3)
    assert not before.is_now(RandomState(torch.device("cpu")))
    before.restore()
    assert before.is_now(RandomState(torch.device("cpu")))
    assert torch.equal(torch.rand(3), first)


def test_tensors_are_left_as_they_were():
    tensor = torch.ones(2, requires_grad=True)
    with unwritten([tensor]), torch.no_grad():
        tensor.fill_(3.0)
    assert tensor.tolist() == [1, 1]
    with pytest.raises(IndexError), unwritten([tensor]), torch.no_grad():
        tensor.fill_(3.0)[7]
    assert tensor.tolist() == [1, 1]


def test_a_graph_that_is_tried_leaves_no_traces():
    total = torch.zeros(2)

    def function(x):
        total.add_(x + torch.rand(2))
        return total * 2

    captured = capture(function, torch.ones(2))
    before = total.clone(), torch.get_rng_state()
    assert [t is total for t in written_to(captured, [torch.ones(2)])] == [True]
    first, second = (run_apart(captured.graph, captured, [torch.ones(2)]) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(total, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_way_of_running_that_gives_other_values_is_refused():
    captured = capture(lambda x: (x * 2, x.sum()), torch.ones(3))
    x = [torch.randn(3)]
    check_lowered(captured.graph, captured, x, "graph")
    check_lowered(lambda *t: [out * (1 + LOWERED / 4) for out in captured.graph(*t)], captured, x, "graph")
    with pytest.raises(CaptureError, match="run by graph, its graph gives other values"):
        check_lowered(lambda *t: [out * (1 + 4 * LOWERED) for out in captured.graph(*t)], captured, x, "graph")


# --- gradients that are rounding alone ------------------------------------------------------------------------------------


def biased_network():
    """A bias before a batch norm has the gradient zero, of which rounding is left."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def gradients(x):
        loss = (net(x) ** 2).sum()
        return loss.detach(), torch.autograd.grad(loss, list(net.parameters()))

    return net, gradients


def compared(function, x, change=lambda outputs: outputs):
    """Whether the graph of a function, whose outputs are changed, agrees with the function."""
    captured = capture(function, x)
    recorded = captured.recorded
    captured.recorded = lambda *tensors: change(list(recorded(*tensors)))
    with torch.no_grad():
        got = captured.recorded(*captured.held, x)
    loss, gradients = function(x)
    return against_eager(captured, [x], got, [loss, *gradients])


def scaled(place, factor):
    return lambda outputs: [value * factor if i == place else value for i, value in enumerate(outputs)]


def test_gradients_that_are_rounding_alone_agree():
    gradients, x = biased_network()[1], torch.randn(64, 5)
    _, (weight, bias, *_) = gradients(x)
    assert 0 < bias.abs().max() < 1e-4 < weight.abs().max()
    assert compared(gradients, x)
    # rounding that comes out otherwise
    assert compared(gradients, x, lambda outputs: [*outputs[:2], outputs[2].flip(0), *outputs[3:]])
    assert not compared(gradients, x, lambda outputs: [*outputs[:2], outputs[2] + 1e-3, *outputs[3:]])


@pytest.mark.parametrize("place", [0, 1, 3, 4, 5, 6])
def test_other_wrong_gradients_beside_them_are_found(place):
    gradients, x = biased_network()[1], torch.randn(64, 5)
    if place != 3:  # a scale behind a batch norm is summed over terms that cancel
        assert not compared(gradients, x, scaled(place, 1.0003))
    assert not compared(gradients, x, scaled(place, 1.01))


def test_a_bias_before_a_batch_norm_stays_captured():
    def make():
        net = biased_network()[0]

        def model(x):
            pyro.module("net", net)
            pyro.factor("loss", -(net(x) ** 2).sum())

        return model, lambda x: None

    gradients = Gradients(lambda: (*programs, Trace_ELBO().loss_and_grads))
    programs = make()
    step = Replay(gradients, programs, compile="graph")
    for i in range(40):
        step(torch.randn(64, 5, generator=torch.Generator().manual_seed(i)))
    assert step.how == "captured", step.refusal


SCALE = 1e-7


def tiny(weights, x):
    """A loss, and gradients of which one is tiny."""
    loss = (weights[0] * x).sum() + SCALE * (weights[1] * x.square()).sum()
    return loss.detach(), torch.autograd.grad(loss, weights)


def test_a_wrong_tiny_gradient_is_found():
    weights, x = [torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)], torch.randn(4)

    def function(x):
        return tiny(weights, x)

    assert function(x)[1][1].abs().max() < 1e-5
    assert compared(function, x)
    assert not compared(function, x, scaled(2, 1.0003))
    assert not compared(function, x, scaled(2, 0.0))
    assert RECORDED < 3e-4


# --- planted faults -----------------------------------------------------------------------------------------------------


def plain(x):
    return {"loss": (WEIGHT * x).sum(), "parts": [WEIGHT * x, "text"]}


WEIGHT = torch.tensor([2.0, 3.0])


def captured_step(calls, function=None, **options):
    """A replayed function after some replays, and its graph."""

    def of_weight(x):
        noise = torch.rand(2)
        return {"loss": (WEIGHT * x).sum() + noise.sum(), "parts": [WEIGHT * x + noise, "text"]}

    function = function or of_weight
    step = Replay(function, (function,), compile="graph", what="the test", **options)
    for _ in range(3 + calls):
        step(torch.ones(2))
    assert step.how == "captured", step.refusal
    (graph,) = (kept.graph for kept in step._kept)
    return step, graph, function


def run_on(step, function, calls):
    """Which of the next calls give wrong results."""
    wrong = []
    for i in range(calls):
        state = torch.get_rng_state()
        got = step(torch.full((2,), float(i)))
        torch.set_rng_state(state)
        expected = function(torch.full((2,), float(i)))
        same = torch.allclose(got["loss"], expected["loss"]) and torch.allclose(got["parts"][0], expected["parts"][0])
        if not same or got["parts"][1] != expected["parts"][1]:
            wrong.append(i)
    return wrong


@pytest.mark.parametrize(
    "which",
    [
        *("recorded", "part", "recorded without draws", "part without draws", "graph", "both", "draws", "fixed"),
    ],
)
def test_a_graph_that_goes_wrong_is_found_at_the_next_comparison(which, caplog):
    which, _, without = which.partition(" without ")
    step, graph, function = captured_step(5, plain if without else None)  # the next comparison is at the 11th replay
    captured, run = graph.captured, graph.run
    recorded = captured.recorded

    def wrong_by(factor, place=0):
        return lambda out: [value * factor if i == place else value for i, value in enumerate(out)]

    if which in ("recorded", "both"):
        captured.recorded = lambda *t: wrong_by(1.001)(recorded(*t))
    if which in ("graph", "both"):
        graph.run = lambda *t: wrong_by(1.01)(run(*t))
    if which == "part":
        captured.recorded = lambda *t: wrong_by(1.001, 1)(recorded(*t))
    if which == "draws":
        captured.recorded = lambda *t: (recorded(*t), torch.rand(1))[0]
    if which == "fixed":
        captured.fixed = dict.fromkeys(captured.fixed, "other")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        wrong = run_on(step, function, 10)
    assert set(wrong) <= set(range(5))
    assert (len(wrong) > 0) == (which in ("graph", "both", "fixed"))
    assert step.how == "eager (not captured)"
    assert len(caplog.records) == 1
    assert "gives other values than an eager run under the same random state (8 calls have gone by" in caplog.text


def test_a_comparison_gives_the_eager_results_and_draws_once():
    step, _, function = captured_step(10)
    assert run_on(step, function, 25) == []
    assert step.how == "captured"


def test_a_comparison_writes_once():
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return total * 1

    step = Replay(function, (function,), compile="graph")
    for i in range(1, 40):
        assert step(torch.ones(2)).tolist() == [i, i]
    assert step.how == "captured"


def test_a_program_of_pyro_with_a_wrong_gradient_is_found(caplog):
    programs = make_vae()
    gradients = Gradients(lambda: (*programs, Trace_ELBO().loss_and_grads))
    step = Replay(gradients, programs, compile="graph")
    for _ in range(8):
        step(X)
    (graph,) = (kept.graph for kept in step._kept)
    recorded = graph.captured.recorded
    names = list(step(X)[1])
    place = 1 + names.index("width")
    graph.captured.recorded = lambda *t: [v * 1.001 if i == place else v for i, v in enumerate(recorded(*t))]
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(6):
            step(X)
    assert step.how == "eager (not captured)"
    assert "gives other values" in caplog.text


def test_a_wrong_number_beside_a_tensor_that_is_written_to_is_found():
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return {"loss": total.sum() * 1, "parts": [total * WEIGHT, "text"]}

    step, graph, _ = captured_step(5, function)
    recorded = graph.captured.recorded
    graph.captured.recorded = lambda *t: [v * 1.001 for v in recorded(*t)]
    for _ in range(10):
        step(torch.ones(2))
    assert step.how == "eager (not captured)"


DRAWS = {
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "multinomial": lambda x: x * torch.multinomial(torch.ones(5), 2),
    "randperm": lambda x: x * torch.randperm(2),
    "randint": lambda x: x * torch.randint(0, 9, (2,)),
    "gamma": lambda x: torch._standard_gamma(x + 0.3),
    "poisson": lambda x: torch.poisson(x * 3),
    "binomial": lambda x: torch.binomial(x * 5, torch.full((2,), 0.5)),
    "in place": lambda x: x.clone().normal_() + torch.empty(2).exponential_() + torch.empty(2).uniform_(),
    "cauchy": lambda x: x + torch.empty(2).cauchy_(),
}


@pytest.mark.parametrize("case", DRAWS)
def test_draws_of_every_kind_are_those_of_eager_calls(case):
    function = DRAWS[case]
    step = Replay(function, (function,), compile="graph")
    for _ in range(40):
        state = torch.get_rng_state()
        got, after = step(torch.ones(2)), torch.get_rng_state()
        torch.set_rng_state(state)
        assert torch.equal(got, function(torch.ones(2)))
        assert torch.equal(torch.get_rng_state(), after)
    assert step.how == "captured", step.refusal
