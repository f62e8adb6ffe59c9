"""Adam's step by torch's fused kernel: the optimizer's own numbers, and the way back to its own step."""

import contextlib
import copy
import functools

import pyro
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pyro_vae.engine import compat
from pyro_vae.engine.step.fused import FusedAdam
from pyro_vae.engine.step.gradients import Gradients, give
from pyro_vae.engine.step.update import Update
from pyro_vae.svi import SVI
from tests.engine.test_svi import X, make_vae


def regression():
    """A function that gives (loss, gradients) of very different sizes, the parameters by name, and a batch."""
    torch.manual_seed(0)
    params = {"w": nn.Parameter(torch.randn(5, 3)), "b": nn.Parameter(torch.zeros(3))}

    def loss_and_grads(model, guide, x, y):
        for name, tensor in params.items():
            pyro.param(name, tensor)
        loss = ((x @ pyro.param("w") + pyro.param("b") - y) ** 2).sum()
        loss.backward()
        return loss

    pyro.clear_param_store()
    gradients = Gradients(lambda: (None, None, loss_and_grads))
    x, y = torch.randn(7, 5) * torch.logspace(-4, 2, 5), torch.randn(7, 3)
    gradients(x, y)
    store = pyro.get_param_store()._params
    return gradients, {name: store[name] for name in sorted(params)}, x, y


def adam(params):
    return torch.optim.Adam(params, lr=0.1)


def started(make=adam):
    """Some parameters, an optimizer that has taken its first step, and a list of gradients."""
    gradients, params, x, y = regression()
    optimizer = make(list(params.values()))
    give(params, gradients(x, y)[1])
    optimizer.step()
    optimizer.zero_grad()
    return FusedAdam(list(params.values())), optimizer, list(gradients(x, y)[1].values())


def take(fused, optimizer, gradients):
    with torch.no_grad():
        return fused.take(optimizer, gradients)


def held(optimizer):
    return [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]


def two_groups(params):
    first, second = params
    return torch.optim.AdamW(
        [{"params": [first], "lr": 0.1, "weight_decay": 0.3}, {"params": [second], "betas": (0.5, 0.9)}], fused=True
    )


def all_in_one(params):
    return torch.optim.Adam([{"params": [p]} for p in params], lr=0.05, fused=True)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1, eps=1e-3, fused=True),
        functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.2, fused=True),
        two_groups,
        all_in_one,
    ],
    ids=["adam", "adamw", "groups", "one rule"],
)
def test_a_step_is_the_fused_optimizers_own_to_the_bit(make):
    def run(by_us):
        gradients, params, x, y = regression()
        optimizer, fused, taken = make(list(params.values())), FusedAdam(list(params.values())), 0
        for i in range(10):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
            given = gradients(x, y)[1]
            values = [g.t().contiguous().t() for g in given.values()] if i % 2 else list(given.values())
            if by_us and take(fused, optimizer, values):
                taken += 1
                continue
            give(params, given)
            optimizer.step()
            optimizer.zero_grad()
        return optimizer, [p.detach().clone() for p in params.values()], taken

    mine, ours, taken = run(True)
    theirs, torchs, _ = run(False)
    assert taken == 9  # the first is the optimizer's, which makes its state
    assert all(map(torch.equal, ours, torchs))
    for a, b in zip(held(mine), held(theirs), strict=True):
        assert a["step"] == b["step"] == 10
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_gradient_that_is_another_parameter_is_the_one_before_the_step():
    first, second = (nn.Parameter(torch.full((40,), value)) for value in (1.0, -2.0))
    optimizer = torch.optim.Adam([first, second], lr=0.1)
    first.grad, second.grad = torch.zeros(40), torch.zeros(40)
    optimizer.step()
    optimizer.zero_grad()
    assert take(FusedAdam([first, second]), optimizer, [second.detach(), first.detach()])
    assert optimizer.state[first]["exp_avg"][0].item() == pytest.approx(-0.2)
    assert optimizer.state[second]["exp_avg"][0].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5),
        functools.partial(torch.optim.Adam, amsgrad=True),
        functools.partial(torch.optim.Adam, maximize=True),
        functools.partial(torch.optim.Adam, foreach=True),
        functools.partial(torch.optim.Adam, fused=False),
        functools.partial(torch.optim.Adam, lr=torch.tensor(0.1), foreach=False),
        type("MyAdam", (torch.optim.Adam,), {}),
    ],
    ids=["sgd", "amsgrad", "maximize", "foreach", "unfused", "tensor", "subclass"],
)
def test_other_steps_are_left_to_the_optimizer(make):
    fused, optimizer, given = started(make)
    before = [p.detach().clone() for p in fused.params], copy.deepcopy(held(optimizer))
    assert not take(fused, optimizer, given)
    assert all(map(torch.equal, before[0], fused.params))
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(now[name]))
        for then, now in zip(before[1], held(optimizer), strict=True)
        for name, value in then.items()
    )


def test_the_first_step_is_the_optimizers():
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam(params.values())
    assert not take(FusedAdam(list(params.values())), optimizer, list(gradients(x, y)[1].values()))
    assert not optimizer.state


def test_gradients_of_another_dtype_or_shape_are_left_to_the_optimizer():
    fused, optimizer, given = started()
    assert not take(fused, optimizer, [g.double() for g in given])
    assert not take(fused, optimizer, [g[:1] for g in given])
    assert take(fused, optimizer, given)


def test_parameters_of_another_dtype_or_order_in_memory_are_left_to_the_optimizer():
    for tensor in (torch.ones(3, 2, dtype=torch.float64), torch.ones(2, 3).t()):
        param = nn.Parameter(tensor)
        optimizer = torch.optim.Adam([param])
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.zero_grad()
        assert not take(FusedAdam([param]), optimizer, [torch.ones_like(param)])


@contextlib.contextmanager
def hook_of_all_optimizers(register):
    handle = register(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def test_what_changes_an_optimizer_is_seen():
    fused, optimizer, given = started()
    group, (first, second) = optimizer.param_groups[0], fused.params
    assert take(fused, optimizer, given)
    group["amsgrad"] = True
    assert not take(fused, optimizer, given)
    group["amsgrad"] = False
    for register in (optimizer.register_step_post_hook, optimizer.register_step_pre_hook):
        handle = register(lambda *_: None)
        assert not take(fused, optimizer, given)
        handle.remove()
    for register in (register_optimizer_step_post_hook, register_optimizer_step_pre_hook):
        with hook_of_all_optimizers(register):
            assert not take(fused, optimizer, given)
    optimizer.param_groups[0]["params"] = [second]  # the first is frozen
    assert not take(fused, optimizer, given)
    optimizer.param_groups[0]["params"] = [first, second]
    optimizer.step = lambda: None
    assert not take(fused, optimizer, given)
    del optimizer.step
    assert take(fused, optimizer, given)
    assert [int(state["step"]) for state in held(optimizer)] == [3, 3]
    optimizer.state[second] = {}
    assert not take(fused, optimizer, given)
    schedule = torch.optim.lr_scheduler.ExponentialLR(started()[1], 0.9)  # counts the calls of step
    assert not take(fused, schedule.optimizer, given)


def test_state_that_is_put_in_place_is_used():
    fused, optimizer, given = started()
    assert take(fused, optimizer, given)
    loaded = copy.deepcopy(optimizer.state_dict())
    for state in loaded["state"].values():
        state["exp_avg"].fill_(3.0)
        state["step"] += 7.0
    optimizer.load_state_dict(loaded)
    assert take(fused, optimizer, given)
    for state, gradient in zip(held(optimizer), given, strict=True):
        assert state["step"] == 10
        torch.testing.assert_close(state["exp_avg"], 0.9 * torch.full_like(gradient, 3.0) + 0.1 * gradient)


def test_an_optimizer_that_would_move_more_is_left_to_move_it():
    gradients, params, x, y = regression()
    other = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*params.values(), other])
    give(params, gradients(x, y)[1])
    optimizer.step()
    optimizer.zero_grad()
    fused, given = FusedAdam(list(params.values())), list(gradients(x, y)[1].values())
    assert take(fused, optimizer, given)
    other.grad = torch.ones(2)  # another loss's
    assert not take(fused, optimizer, given)
    other.grad = None
    assert take(fused, optimizer, given)


def test_an_optimizer_of_some_parameters_is_left_as_it_is():
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam([params["w"]])
    assert not take(FusedAdam(list(params.values())), optimizer, list(gradients(x, y)[1].values()))
    assert not optimizer.state


def test_autograd_sees_the_step():
    fused, optimizer, given = started()
    loss = (fused.params[1] ** 2).sum()
    assert take(fused, optimizer, given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_the_kernels_the_optimizer_takes_its_step(monkeypatch):
    fused, optimizer, given = started()
    monkeypatch.setattr(compat, "has_fused_adam", lambda: False)
    assert not take(fused, optimizer, given)


@pytest.mark.parametrize("leaves_zeros", [True, False])
def test_gradients_that_another_loss_left_are_added(leaves_zeros):
    def run(by_us):
        gradients, params, x, y = regression()
        optimizer = torch.optim.Adam(params.values(), lr=0.1, fused=True)
        update = Update(optimizer, leaves_zeros=leaves_zeros)
        for i in range(6):
            if i in (2, 4):
                params["w"].grad = torch.full_like(params["w"], 100.0)
            given = gradients(x, y)[1]
            if by_us:
                update(params, given)
            else:
                give(params, given)
                optimizer.step()
                optimizer.zero_grad()
        return [p.detach().clone() for p in params.values()], [p.grad for p in params.values()]

    (mine, left), (theirs, _) = run(True), run(False)
    assert all(map(torch.equal, mine, theirs))
    assert all((g is not None and not g.any()) if leaves_zeros else g is None for g in left)


# --- in SVI ---------------------------------------------------------------------------------------------------------


def trained(compile, optim):
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide = make_vae()
    svi = SVI(model, guide, optim, pyro.infer.Trace_ELBO(), compile=compile)
    losses = [svi.step(X) for _ in range(12)]
    return losses, {name: tensor.detach().clone() for name, tensor in pyro.get_param_store().items()}


@pytest.mark.parametrize("optim", [lambda: pyro.optim.Adam({"lr": 0.01}), lambda: pyro.optim.AdamW({"lr": 0.01})])
def test_steps_of_svi_do_without_the_optimizers_python(monkeypatch, optim):
    assert compat.has_fused_adam()
    calls, kernel = [], compat.fused_adam
    monkeypatch.setattr(compat, "fused_adam", lambda decoupled: calls.append(1) or kernel(decoupled))
    losses, params = trained("graph", optim())
    assert len(calls) == 11  # all but the first step, by an optimizer for each parameter
    wanted, theirs = trained("eager", optim())
    assert len(calls) == 11
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(params, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["step", "_init_group"])
def test_a_step_of_torchs_that_was_replaced_or_wrapped_is_run(monkeypatch, name):
    calls, original = [], getattr(torch.optim.Adam, name)

    @functools.wraps(original)
    def counts(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, name, counts)
    _, params = trained("graph", pyro.optim.Adam({"lr": 0.01}))
    assert len(calls) == 12 * len(params)
