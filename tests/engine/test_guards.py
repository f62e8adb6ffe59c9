"""Branches on values of tensors: the course taken becomes a guard, and another course runs eagerly."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.engine import policy
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.trace import capture
from pyro_vae.engine.values import CaptureError
from pyro_vae.svi import SVI

UP, DOWN = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])
TARGET = torch.tensor([1.0, 2.0])


def holds(captured, *inputs):
    """Whether the guards of a captured function hold for other inputs."""
    with torch.no_grad():
        return bool(captured.graph(*captured.held, *inputs)[-1])


def loop(x):
    total = torch.zeros(())
    for i in range(int((x > 0).sum())):
        total = total + x[i]
    return total


def nested(x):
    if x.sum() > 0:
        return x * 2 if x[0] > 1 else x * 3
    return -x


def as_index(x):
    return x * [1.0, 2.0, 3.0][(x > 0).sum()]


def of_list(x):
    return x * len(set((x > 0).tolist()))


BRANCHES = {
    "bool": (lambda x: x if x.sum() > 0 else -x, UP, DOWN),
    "float": (lambda x: x if x.sum() else x + 1, UP, torch.tensor([1.0, -1.0])),
    "not": (lambda x: x if not (x.sum() > 0) else -x, DOWN, UP),
    "while": (lambda x: _halved(x), UP, 8 * UP),
    "int": (loop, UP, torch.tensor([1.0, -2.0])),
    "index": (as_index, UP, DOWN),
    "tolist": (of_list, UP, torch.tensor([1.0, -2.0])),
    "number to list": (lambda x: x * (x > 0).sum().tolist(), UP, DOWN),
    "equal": (lambda x: x if torch.equal(x, TARGET) else -x, UP, DOWN),
    "not equal": (lambda x: x if x.equal(TARGET) else -x, DOWN, UP),
    "allclose": (lambda x: x if torch.allclose(x, TARGET, atol=0.1) else -x, UP + 0.05, UP + 0.2),
    "nonzero": (lambda x: x if torch.is_nonzero(x[0]) else x - 1, UP, torch.tensor([0.0, 1.0])),
    "any": (lambda x: x if (x > 1.5).any() else -x, UP, DOWN),
    "all": (lambda x: x if (x > 0).all() else -x, UP, torch.tensor([1.0, -2.0])),
    "comparison of items": (lambda x: x if x[0].item() > 0 else -x, UP, DOWN),
    "nested, outer": (nested, UP, DOWN),
    "nested, inner": (nested, UP, 2 * UP),
    "isinstance of several": (lambda x: max(x.sum(), x.prod()) * x, UP, 3 * UP),
}


def _halved(x):
    while x.max() > 1:
        x = x / 2
    return x


@pytest.mark.parametrize("case", BRANCHES)
def test_a_branch_is_a_guard(case):
    function, x, other = BRANCHES[case]
    captured = capture(function, x)
    assert captured.guards
    assert all("test_guards.py, line" in guard for guard in captured.guards)
    torch.testing.assert_close(captured(x), function(x))
    assert holds(captured, x)
    assert not holds(captured, other)


@pytest.mark.parametrize("case", BRANCHES)
def test_both_courses_give_the_functions_numbers(case):
    function, x, other = BRANCHES[case]
    step = Replay(function, (function,), compile="graph")
    for i in range(24):
        batch = other if i % 9 == 8 else x
        torch.testing.assert_close(step(batch), function(batch))
    assert step.how == "captured", step.refusal


def test_a_guard_holds_on_either_side_of_the_value_it_was_traced_with():
    captured = capture(lambda x: x if x.sum() > 0 else -x, UP)
    assert holds(captured, 100 * UP)
    assert holds(captured, torch.tensor([-1.0, 1.1]))
    assert not holds(captured, torch.tensor([-1.0, 1.0]))
    assert not holds(captured, torch.tensor([torch.nan, 1.0]))


def test_one_hot_with_a_number_of_classes_is_captured():
    captured = capture(lambda x: nn.functional.one_hot(x, 3) * 2, torch.tensor([0, 1]))
    assert captured(torch.tensor([2, 1])).tolist() == [[0, 0, 2], [0, 2, 0]]
    assert holds(captured, torch.tensor([2, 2]))
    assert captured(torch.tensor([2, 1])).dtype == torch.long


def test_one_hot_of_a_class_too_many_raises_what_torch_raises():
    step = Replay(one_hot_of_three, (one_hot_of_three,), compile="graph")
    for _ in range(8):
        step(torch.tensor([0, 2]))
    assert step.how == "captured"
    for _ in range(3):
        with pytest.raises(RuntimeError, match="num_classes"):
            step(torch.tensor([0, 3]))
    assert step(torch.tensor([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]


def one_hot_of_three(x):
    return nn.functional.one_hot(x, 3)


def test_one_hot_without_a_number_of_classes_is_refused():
    with pytest.raises(CaptureError, match="shape depends on values"):
        capture(lambda x: nn.functional.one_hot(x), torch.tensor([0, 1]))


def test_conditions_on_constants_are_folded_away():
    constant = torch.arange(3)

    def function(x):
        if torch.zeros(()).sum() == 0 and torch.ones(2).all():
            return x + 1
        return x

    assert capture(function, UP).guards == []
    # the user's tensor may be written to between calls
    assert len(capture(lambda x: x if constant.sum() > 0 else -x, UP).guards) == 1


def test_a_condition_on_a_draw_is_a_guard():
    captured = capture(lambda x: x if torch.rand(()) < 2 else -x, UP)
    assert len(captured.guards) == 1


def test_a_condition_that_is_asked_twice_is_one_guard():
    captured = capture(lambda x: x + sum(1 for _ in range(4) if x.sum() > 0), UP)
    assert len(captured.guards) == 1


def test_conditions_are_joined():
    captured = capture(lambda x: (x if x[0] > 0 else -x) + (x if x[1] > 0 else 1), UP)
    assert len(captured.guards) == 1  # both are in one line
    assert holds(captured, UP)
    assert not holds(captured, torch.tensor([1.0, -1.0]))
    assert not holds(captured, torch.tensor([-1.0, 1.0]))


def test_parameters_too_may_be_asked():
    weight = nn.Parameter(torch.ones(()))
    captured = capture(lambda x: x * weight if weight > 0 else x, UP)
    assert holds(captured, UP)
    with torch.no_grad():
        weight.fill_(-1.0)
    assert not holds(captured, UP)


# --- what happens where a guard does not hold ---------------------------------------------------------------------------


def noisy(x):
    noise = torch.randn(2)
    if noise[0] > 1.2:
        return x + noise + torch.rand(2)
    return x + noise


def test_a_call_whose_guard_fails_runs_eagerly_from_the_same_random_state():
    step = Replay(noisy, (noisy,), compile="graph")
    torch.manual_seed(3)
    got = [step(UP) for _ in range(60)], torch.get_rng_state()
    assert step.how == "captured", step.refusal
    torch.manual_seed(3)
    wanted = [noisy(UP) for _ in range(60)], torch.get_rng_state()
    torch.testing.assert_close(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_a_call_whose_guard_fails_writes_once():
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return total * 2 if x.sum() > 0 else total * 3

    step = Replay(function, (function,), compile="graph")
    wanted = torch.zeros(2)
    for i in range(20):
        x = DOWN if i % 6 == 5 else UP
        wanted += x
        torch.testing.assert_close(step(x), wanted * (3 if i % 6 == 5 else 2))
    assert step.how == "captured", step.refusal
    assert torch.equal(total, wanted)


def test_a_course_that_changes_too_often_ends_in_eager_calls_and_one_message(caplog):
    def function(x):
        return x if x.sum() > 0 else -x

    step = Replay(function, (function,), compile="graph", what="the test")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for i in range(4 * policy.MOST_MISSES):
            x = DOWN if i > 4 and i % 2 else UP
            assert torch.equal(step(x), function(x))
    assert step.how == "eager (not captured)"
    assert len(caplog.records) == 1
    assert "test_guards.py, line" in caplog.text
    assert "goes another way too often" in caplog.text


def test_a_course_that_changes_now_and_then_stays_captured():
    def function(x):
        return x if x.sum() > 0 else -x

    step = Replay(function, (function,), compile="graph")
    for i in range(300):
        x = DOWN if i % 10 == 9 else UP
        assert torch.equal(step(x), function(x))
    assert step.how == "captured", step.refusal


def test_an_error_in_a_replay_falls_back_to_an_eager_call(caplog):
    table = torch.arange(5.0)

    def function(x):
        return table[x]

    step = Replay(function, (function,), compile="graph")
    for _ in range(8):
        step(torch.tensor([1]))
    assert step.how == "captured"
    with pytest.raises(IndexError), caplog.at_level(logging.WARNING, "pyro_vae"):
        step(torch.tensor([7]))
    assert step(torch.tensor([2])).item() == 2


def test_an_error_of_the_graph_alone_is_said_and_the_call_is_right(caplog):
    step = Replay(noisy, (noisy,), compile="graph")
    torch.manual_seed(5)
    for _ in range(8):
        step(UP)
    assert step.how == "captured", step.refusal
    (kept,) = step._kept
    graph = kept.graph

    def fail(*inputs):
        torch.randn(3)
        raise RuntimeError("no\nmore")

    graph.run = fail
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        got = step(UP)
    torch.set_rng_state(state)
    assert torch.equal(got, noisy(UP))
    assert step.how == "eager (not captured)"
    assert "fails on a later batch (no)" in caplog.text


def make_branching(draws):
    """x ~ N(rate, 1 or 2) as the data, or a latent, lie."""

    def model(x):
        rate = pyro.param("rate", torch.tensor(0.2))
        level = pyro.sample("level", dist.Normal(0.0, 1.0)) if draws else x.mean()
        scale = 2.0 if level > 0.4 else 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(rate + level, scale).expand([len(x), 12]).to_event(1), obs=x)

    def guide(x):
        if draws:
            pyro.sample("level", dist.Normal(pyro.param("loc", torch.tensor(-0.5)), 1.0))

    return model, guide


@pytest.mark.parametrize("draws", [False, True], ids=["data", "draws"])
def test_branches_in_programs_give_pyros_numbers(draws):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(24, 12, generator=generator) + (0.6 if i % 10 == 7 else -0.4) for i in range(40)]
    results = []
    for kind, options in ((pyro.infer.SVI, {}), (SVI, {"compile": "graph"})):
        pyro.clear_param_store()
        torch.manual_seed(11)
        svi = kind(*make_branching(draws), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
        results.append(torch.tensor([svi.step(x) for x in batches]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)
    assert svi.how == "captured", svi._step.refusal


def test_a_mask_is_a_guard_on_how_many_entries_it_gives():
    captured = capture(lambda x: x[x > 0] * 2, torch.tensor([1.0, -1.0, 2.0]))
    assert captured(torch.tensor([-1.0, 3.0, 4.0])).tolist() == [6, 8]
    flat = captured.graph(*captured.held, torch.tensor([1.0, 3.0, 4.0]))
    assert not flat[-1].item()


def test_lengths_of_packed_sequences_are_guards():
    def function(x, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0] * 2

    x = torch.randn(2, 3, 1)
    captured = capture(function, x, torch.tensor([3, 2]))
    other = torch.randn(2, 3, 1)
    torch.testing.assert_close(captured(other, torch.tensor([3, 2])), function(other, torch.tensor([3, 2])))
    assert captured.graph(*captured.held, other, torch.tensor([3, 2]))[-1].item()
    with pytest.raises(RuntimeError):  # a replay that fails runs eagerly
        captured.graph(*captured.held, other, torch.tensor([3, 1]))


def test_places_and_lengths_that_are_tensors_are_guards():
    """As in the reversal of padded sequences: an index, the end of a slice, and the end of a range."""

    def function(x, length):
        turned = torch.zeros_like(x)
        turned[0, 0:length] = x[0, torch.arange(length - 1, -1, -1)]
        return turned * 2

    x, other = torch.randn(1, 5), torch.randn(1, 5)
    captured = capture(function, x, torch.tensor(3))
    torch.testing.assert_close(captured(other, torch.tensor(3)), function(other, torch.tensor(3)))
    assert captured.graph(*captured.held, other, torch.tensor(3))[-1].item()
    assert not captured.graph(*captured.held, other, torch.tensor(2))[-1].item()
