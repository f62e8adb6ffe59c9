"""From Pyro to a tensor graph: what is kept, and what is cleaned away."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.engine.graphs import aten
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.tape import Tape
from pyro_vae.engine.trace import capture
from pyro_vae.engine.values import CaptureError, NoGraph
from tests.engine.graphs import count


def test_a_graph_gives_what_the_function_gives():
    layer = nn.Linear(3, 2)

    def function(x):
        return {"loss": layer(x).square().sum(), "parts": [layer(x), (x + 1, "plain", 3)]}

    captured = capture(function, torch.ones(4, 3))
    x = torch.randn(4, 3)
    got, wanted = captured(x), function(x)
    assert got.keys() == wanted.keys()
    torch.testing.assert_close(got["loss"], wanted["loss"])
    torch.testing.assert_close(got["parts"][0], wanted["parts"][0])
    assert got["parts"][1][1:] == ("plain", 3)
    assert {id(t) for t in captured.held} == {id(p) for p in layer.parameters()}
    with torch.no_grad():
        layer.weight.zero_()
    torch.testing.assert_close(captured(x)["parts"][0], layer.bias.expand(4, 2))


def test_gradients_taken_inside_are_outputs():
    weight = torch.randn(3, requires_grad=True)

    def function(x):
        return torch.autograd.grad((weight * x).square().sum(), weight)[0]

    captured = capture(function, torch.ones(3))
    x = torch.randn(3)
    torch.testing.assert_close(captured(x), function(x))
    assert weight.grad is None
    assert not captured(x).requires_grad


def test_draws_stay_draws_in_their_order():
    def function(x):
        return x + torch.randn(2), torch.rand(2), torch.bernoulli(torch.full((2,), 0.5)), torch.zeros(2).exponential_()

    captured = capture(function, torch.zeros(2))
    for seed in range(3):
        torch.manual_seed(seed)
        wanted = function(torch.ones(2))
        torch.manual_seed(seed)
        torch.testing.assert_close(captured(torch.ones(2)), wanted, rtol=0, atol=0)


def test_a_draw_whose_value_is_unused_is_still_made():
    def function(x):
        torch.randn(5)
        return x + torch.randn(1)

    captured = capture(function, torch.zeros(1))
    torch.manual_seed(0)
    wanted = function(torch.zeros(1))
    torch.manual_seed(0)
    assert captured(torch.zeros(1)) == wanted


def test_a_pass_repeated_in_guide_and_model_is_computed_once():
    """A top-down pair whose guide walks down the model's own path (Sønderby et al. 2016)."""
    torch.manual_seed(0)
    down = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
    up, out = nn.Linear(6, 8), nn.Linear(4, 6)

    def levels(x, posterior):
        h = torch.zeros(len(x), 4)
        for i, layer in enumerate(down):
            h = torch.tanh(layer(h))
            loc = h + (up(x)[:, :4] if posterior else 0.0)
            h = h + pyro.sample(f"z{i}", dist.Normal(loc, 1.0).to_event(1))
        return h

    def model(x):
        pyro.module("down", down)
        pyro.module("out", out)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(out(levels(x, False)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("down", down)
        pyro.module("up", up)
        with pyro.plate("data", len(x)):
            levels(x, True)

    step = Gradients(lambda: (model, guide, Trace_ELBO().loss_and_grads))
    x = torch.randn(5, 6)
    step(x)
    captured = capture(step, x)
    products_forward = 4 + 1 + 1  # each level once, not twice; up once, not four times; out
    assert count(captured, aten.addmm.default) == products_forward
    torch.manual_seed(1)
    wanted = step(x)
    torch.manual_seed(1)
    got = captured(x)
    assert got[0].item() == pytest.approx(wanted[0], rel=1e-6)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_what_is_written_to_is_written_to_at_each_replay():
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return total * 1

    captured = capture(function, torch.ones(2))
    assert [captured.held[i] is total for i in captured.places_written] == [True]
    total.zero_()
    captured(torch.ones(2))
    assert captured(torch.ones(2)).tolist() == [2, 2]
    assert total.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[: int(x[0])], "turns a tensor into a Python number"),
        (lambda x: x * sum(x.tolist()), "turns a tensor into a list"),
        (lambda x: torch.zeros(int((torch.arange(99) > x[0]).tolist()[98])), "asks for the values of a large tensor"),
        (lambda x: x * float(x.numpy()[0]), "turns a tensor into a NumPy array"),
        (lambda x: torch.nonzero(x), "shape depends on values"),
        (lambda x: x.sum().item().is_integer(), "AttributeError"),
    ],
)
def test_what_depends_on_values_is_refused_with_its_line(function, message):
    with pytest.raises(CaptureError, match=message) as caught:
        capture(function, torch.ones(2))
    assert "test_trace.py, line" in str(caught.value)


def test_what_runs_but_makes_no_graph_is_refused_too(monkeypatch):
    def returns(self, tensors):
        raise SyntaxError("from")

    monkeypatch.setattr(Tape, "returns", returns)
    with pytest.raises(CaptureError, match="its graph can't be run: from"):
        capture(lambda x: x + 1, torch.ones(2))


def test_item_stays_a_tensor():
    captured = capture(lambda x: x * x.sum().item(), torch.ones(2))
    assert captured(torch.tensor([1.0, 2.0])).tolist() == [3.0, 6.0]


def test_numbers_that_differ_in_kind_are_not_taken_for_one():
    captured = capture(
        lambda x: (x * 1, x * 1.0, x.sum(0), x.sum(1), torch.full((2,), 0.0), torch.full((2,), -0.0)),
        torch.ones(2, 2, dtype=torch.long),
    )
    got = captured(torch.tensor([[1, 2], [3, 4]]))
    assert got[0].dtype == torch.long
    assert got[1].dtype == torch.float32
    assert [got[2].tolist(), got[3].tolist()] == [[4, 6], [3, 7]]
    assert got[5].signbit().all() and not got[4].signbit().any()  # noqa: PT018 - one statement about both


def test_pyro_is_as_it_was_after_a_capture():
    import pyro.util
    from pyro.infer.util import Dice

    before = (pyro.util.torch_isnan, Dice.compute_expectation, pyro.infer.util.is_validation_enabled())
    with pytest.raises(CaptureError):
        capture(lambda x: float(x.sum()), torch.ones(2))
    assert before == (pyro.util.torch_isnan, Dice.compute_expectation, pyro.infer.util.is_validation_enabled())


def test_an_error_of_the_functions_own_is_raised_as_it_is():
    with pytest.raises(AttributeError, match="missing"):
        capture(lambda x: x.missing, torch.ones(2))


def test_what_a_refused_function_returns_is_what_it_returns_by_itself():
    with pytest.raises(NoGraph, match="turns a tensor into a Python number") as caught:
        capture(lambda x: (x * float(x.sum()), "text"), torch.ones(2))
    assert caught.value.result[0].tolist() == [2, 2]
    assert caught.value.result[1] == "text"
