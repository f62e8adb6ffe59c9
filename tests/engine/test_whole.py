"""The step that runs as one launch on a GPU: here operation by operation, against the ordinary step."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae.data.resident import Examples
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.step.whole import Tally, WholeStep, can_take
from tests.component_table import vae


def make(x, clip=None, lr=0.01):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = vae()
    gradients = Gradients(lambda: (pair.model, pair.guide, Trace_ELBO().loss_and_grads), size=len)
    gradients(x[:2])
    params = gradients.params
    optimizer = torch.optim.Adam(list(params.values()), lr=lr, fused=True)
    tally = Tally(torch.device("cpu"))
    step = Replay(gradients, (pair.model, pair.guide), compile="graph")
    return pair, WholeStep(Examples(x).batch, step, params, optimizer, clip, tally), tally


@pytest.mark.parametrize("clip", [None, 0.3])
def test_it_is_the_ordinary_step(clip):
    x = torch.rand(40, 4).round()
    order = [torch.randperm(40)[:8] for _ in range(6)]
    pair, step, tally = make(x, clip)
    torch.manual_seed(1)
    for index in order:
        step(index)
    mine = [p.detach().clone() for p in pair.parameters()]
    total, norm = tally.loss.item(), tally.norm.item()

    pair = make(x, clip)[0]
    optimizer, wanted = torch.optim.Adam(pair.parameters(), lr=0.01), 0.0
    torch.manual_seed(1)
    for index in order:
        optimizer.zero_grad()
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, x[index]) / 8
        loss.backward()
        last = torch.nn.utils.clip_grad_norm_(pair.parameters(), clip or 1e9)
        optimizer.step()
        wanted += loss.item() * 8
    assert total == pytest.approx(wanted, rel=1e-5)
    assert norm == pytest.approx(last.item(), rel=1e-4)
    for a, b in zip(mine, pair.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_is_noted_and_undone_and_so_are_those_after_it():
    x = torch.rand(40, 4).round()
    pair, step, tally = make(x)
    x[20:24] = torch.nan
    with pyro.validation_enabled(False):  # as in training after its first step
        for start in (0, 4, 8):
            step(torch.arange(start, start + 4))
        before, loss = [p.detach().clone() for p in pair.parameters()], tally.loss.item()
        for start in (20, 0, 4):
            step(torch.arange(start, start + 4))
        assert tally.bad.item() == 3
        assert tally.loss.item() == loss
        assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
        tally.reset()
        step(torch.arange(4))
    assert tally.bad.item() == -1
    assert not torch.equal(before[0], next(pair.parameters()))


def test_a_step_with_branches_is_not_launched_as_one():
    x = torch.rand(40, 4).round()
    _, step, _ = make(x)
    for start in range(0, 24, 4):  # validation is a branch on values
        step(torch.arange(start, start + 4))
    assert step.losses.how == "captured"
    assert step.losses.current(x[:4]) is None
    with pyro.validation_enabled(False):
        for start in range(0, 24, 4):
            step(torch.arange(start, start + 4))
        assert step.losses.current(x[:4]) is not None


def test_which_optimizers_can_be_recorded():
    tensors = [torch.zeros(2, requires_grad=True)]
    assert not can_take(torch.optim.SGD(tensors, lr=0.1))
    assert not can_take(torch.optim.Adam(tensors, fused=True))
