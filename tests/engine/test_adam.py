"""Adam's step behind a captured gradient: torch's own numbers, guards, and the way back to the optimizer's own step."""

import contextlib
import copy
import functools

import pyro
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyro_vae import VAE, fit, replay, training
from pyro_vae.engine.step.fused import AdamStep, Guard
from pyro_vae.engine.step.gradients import Gradients, give
from pyro_vae.engine.trace import capture
from pyro_vae.networks import MLP
from pyro_vae.svi import SVI
from tests.test_svi import X, make_vae


def regression(dtype=torch.float32):
    """Weights, and a captured (loss, gradients) of them, whose gradients are of very different sizes."""
    torch.manual_seed(0)
    params = {"w": nn.Parameter(torch.randn(5, 3, dtype=dtype)), "b": nn.Parameter(torch.zeros(3, dtype=dtype))}

    def loss_and_grads(model, guide, x, y):
        for name, tensor in params.items():
            pyro.param(name, tensor)
        loss = ((x @ pyro.param("w") + pyro.param("b") - y) ** 2).sum()
        loss.backward()
        return loss

    gradients = Gradients(loss_and_grads, None, None)
    x, y = torch.randn(7, 5, dtype=dtype) * torch.logspace(-4, 2, 5, dtype=dtype), torch.randn(7, 3, dtype=dtype)
    pyro.clear_param_store()
    gradients(x, y)
    store = pyro.get_param_store()._params
    return gradients, {name: store[name] for name in params}, x, y


def steps(make, count=25, guard=None, rates=(), dtype=torch.float32, joined=True):
    """The parameters after some steps, taken by the graph or by torch, and the optimizer."""
    gradients, params, x, y = regression(dtype)
    optimizer = make(list(params.values()))
    if joined:
        step = AdamStep(capture(gradients, x, y), params, lambda: optimizer, guard)
        assert step.possible()
        graph = step.joined()
    for i in range(count):
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate / (1 + i)
        if joined:
            state = step.begin()
            with torch.no_grad():
                out = graph.graph(*graph.held, x, y, *state)
            step.count(*out)
        else:
            give(params, gradients(x, y)[1])
            if guard is not None and guard.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(params.values(), guard.clip, norm_of(params))
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in params.values()], optimizer


def held(optimizer):
    return [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]


def norm_of(params):
    return torch.nn.utils.get_total_norm([p.grad for p in params.values()])


def two_groups(params):
    first, second = params
    return torch.optim.AdamW(
        [{"params": [first], "lr": 0.1, "weight_decay": 0.3}, {"params": [second], "betas": (0.5, 0.9)}], fused=True
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(functools.partial(torch.optim.Adam, lr=0.05), id="adam"),
        pytest.param(functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1, eps=1e-3), id="l2"),
        pytest.param(functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.2), id="adamw"),
        pytest.param(two_groups, id="groups"),
    ],
)
@pytest.mark.parametrize("guard", [None, Guard(), Guard(clip=0.5)], ids=["plain", "guarded", "clipped"])
def test_steps_are_torchs_own(make, guard):
    rates = (0.1, 0.02)  # they change from step to step
    exact, _ = steps(make, guard=guard, rates=rates, dtype=torch.float64, joined=False)
    torchs, theirs = steps(make, guard=guard, rates=rates, joined=False)
    ours, mine = steps(make, guard=guard, rates=rates)
    for a, b, true in zip(ours, torchs, exact, strict=True):
        # Gradients here are sums of numbers up to 1e4, so that float32 itself is off by some 1e-5.
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + 1e-6
    for a, b in zip(held(mine), held(theirs), strict=True):
        assert a["step"] == b["step"] == 25
        assert a.keys() == b.keys()
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5 * float(b[name].abs().max()))


def test_a_guarded_step_that_is_not_finite_or_too_large_changes_nothing():
    for guard, bad in ((Guard(), float("nan")), (Guard(), float("inf")), (Guard(bound=1e-3), 1.0)):
        gradients, params, x, y = regression()
        optimizer = torch.optim.Adam(params.values(), lr=0.1)
        step = AdamStep(capture(gradients, x, y), params, lambda made=optimizer: made, guard)
        assert step.possible()
        before = [p.detach().clone() for p in params.values()]
        graph = step.joined()
        with torch.no_grad():
            out = graph.graph(*graph.held, x, y * bad, *step.begin())
        step.count(*out)
        assert all(torch.equal(a, b) for a, b in zip(before, params.values(), strict=True))
        assert all(state["step"] == 0 and not state["exp_avg"].any() for state in optimizer.state.values())


def test_a_norm_that_equals_the_bound_but_for_rounding_counts_as_it_moves():
    def taken(guard):
        gradients, params, x, y = regression()
        optimizer = torch.optim.Adam(params.values(), lr=0.1)
        step = AdamStep(capture(gradients, x, y), params, lambda: optimizer, guard)
        assert step.possible()
        before = params["w"].detach().clone()
        graph = step.joined()
        with torch.no_grad():
            out = graph.graph(*graph.held, x, y, *step.begin())
        step.count(*out)
        counted = int(optimizer.state[params["w"]]["step"])
        assert counted == (not torch.equal(before, params["w"]))
        return counted, out[1].item()

    counted, norm = taken(Guard())
    assert counted
    assert [taken(Guard(bound=norm * factor))[0] for factor in (1 + 1e-9, 1 - 1e-9, 0.5)] == [1, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1, eps=1e-3, fused=True),
        functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.2, fused=True),
        two_groups,
    ],
    ids=["adam", "adamw", "groups"],
)
def test_a_step_past_the_optimizers_python_is_its_own_to_the_bit(make):
    gradients, params, x, y = regression()
    optimizer = make(list(params.values()))
    step = AdamStep(capture(gradients, x, y), params, lambda: optimizer)
    assert step.possible()
    for i in range(10):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        loss, given = gradients(x, y)
        given = given.values()
        with torch.no_grad():
            assert step.take([loss, *([g.t().contiguous().t() for g in given] if i % 2 else given)])
    mine = [p.detach().clone() for p in params.values()]

    gradients, params, x, y = regression()
    theirs = make(list(params.values()))
    for i in range(10):
        theirs.param_groups[0]["lr"] = 0.1 / (1 + i)
        give(params, gradients(x, y)[1])
        theirs.step()
        theirs.zero_grad()
    assert all(map(torch.equal, mine, params.values()))
    for a, b in zip(held(optimizer), held(theirs), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_gradient_that_is_another_parameter_is_the_one_before_the_step():
    first, second = (nn.Parameter(torch.full((40,), value)) for value in (1.0, -2.0))
    params = {"first": first, "second": second}

    def gradients(x):
        return (first * second).sum().detach() + x, {"first": second.detach() * 1, "second": first.detach() * 1}

    optimizer = torch.optim.Adam([first, second], lr=0.1)
    step = AdamStep(capture(gradients, torch.zeros(())), params, lambda: optimizer)
    assert step.possible()
    with torch.no_grad():
        assert step.take([torch.zeros(()), second.detach(), first.detach()])
    assert optimizer.state[first]["exp_avg"][0].item() == pytest.approx(-0.2)
    assert optimizer.state[second]["exp_avg"][0].item() == pytest.approx(0.1)


def test_no_step_is_taken_past_the_optimizer_where_it_has_more_to_do():
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    guarded, step = (AdamStep(capture(gradients, x, y), params, lambda: optimizer, guard) for guard in (Guard(), None))
    assert guarded.possible()
    assert step.possible()
    before = [p.detach().clone() for p in params.values()]
    loss, named = gradients(x, y)
    given = [loss, *named.values()]
    assert not guarded.take(given)
    assert not step.take([g.double() for g in given])
    params["w"].grad = torch.ones_like(params["w"])  # another loss's
    assert not step.take(given)
    params["w"].grad = None
    optimizer.param_groups[0]["amsgrad"] = True
    assert not step.take(given)
    assert all(map(torch.equal, before, params.values()))
    assert all(state["step"] == 0 for state in held(optimizer))
    optimizer.param_groups[0]["amsgrad"] = False
    with torch.no_grad():
        assert step.take(given)
    assert all(state["step"] == 1 for state in held(optimizer))


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.Adam, amsgrad=True),
        functools.partial(torch.optim.Adam, maximize=True),
        functools.partial(torch.optim.Adam, foreach=True),
        functools.partial(torch.optim.Adam, fused=False),
        functools.partial(torch.optim.Adam, lr=torch.tensor(0.1)),
        type("MyAdam", (torch.optim.Adam,), {}),
    ],
    ids=["sgd", "amsgrad", "maximize", "foreach", "unfused", "tensor", "subclass"],
)
def test_other_steps_are_left_to_the_optimizer(make):
    gradients, params, x, y = regression()
    optimizer = make(params.values())
    assert not AdamStep(capture(gradients, x, y), params, lambda: optimizer).possible()
    assert not optimizer.state


@contextlib.contextmanager
def global_hook(hook):
    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_what_changes_an_optimizer_is_seen():
    gradients, params, x, y = regression()
    made = [torch.optim.Adam(params.values(), lr=0.1)]
    step = AdamStep(capture(gradients, x, y), params, lambda: made[0])
    assert step.possible()
    group, (w, b) = made[0].param_groups[0], params.values()
    group["betas"] = (0.5, 0.9)
    assert step.begin() is None
    group["betas"] = (0.9, 0.999)
    assert step.begin() is not None
    w.grad = torch.ones_like(w)
    assert step.begin() is None
    w.grad = None
    handle = made[0].register_step_post_hook(lambda *_: None)
    assert step.begin() is None
    handle.remove()
    made[0].state[b]["step"] += 1
    assert step.begin() is None
    made[0].state[b]["step"] -= 1
    loaded = copy.deepcopy(made[0].state_dict())
    for state in loaded["state"].values():
        state["exp_avg"] += 3.0
        state["step"] += 7.0
    made[0].load_state_dict(loaded)
    m, *_, numbers = step.begin()
    assert m is made[0].state[step.params[0]]["exp_avg"]
    assert (m == 3).all()
    assert numbers[0, 0] == pytest.approx(0.1 / (1 - 0.9**8))
    made[0].param_groups[0]["params"] = [w]  # b is frozen
    assert step.begin() is None
    made[0].param_groups[0]["params"] = [w, b]
    assert step.begin() is not None
    made[0].state[b] = {}
    assert step.begin() is None
    made[0].state.clear()
    assert step.begin() is None
    assert step.possible()  # it starts anew
    with global_hook(lambda *_: None):
        assert step.begin() is None
    made[0] = torch.optim.lr_scheduler.ExponentialLR(made[0], 0.9).optimizer  # counts the calls of step
    assert step.begin() is None


def test_an_optimizer_of_some_parameters_is_left_as_it_is():
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam([params["w"]])
    assert not AdamStep(capture(gradients, x, y), params, lambda: optimizer).possible()
    assert not optimizer.state
    optimizer.state_dict()


def test_wake_sleep_has_two_losses_and_keeps_them():
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam(params.values())

    def two(*batch):
        loss, grads = gradients(*batch)
        return (loss, 2 * loss), grads

    assert not AdamStep(capture(two, x, y), params, lambda: optimizer).possible()


@pytest.mark.parametrize("joined", [False, True])
def test_autograd_sees_the_step(joined):
    gradients, params, x, y = regression()
    optimizer = torch.optim.Adam(params.values())
    step = AdamStep(capture(gradients, x, y), params, lambda: optimizer)
    assert step.possible()
    loss = (params["w"] ** 2).sum()
    value, named = gradients(x, y)
    with torch.no_grad():
        if joined:
            graph = step.joined()
            graph.graph(*graph.held, x, y, *step.begin())
        else:
            assert step.take([value, *named.values()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- in SVI and fit -------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    """A step counts as repaying its compilation from the first call on."""
    monkeypatch.setattr(replay, "STEP_COST", 0.0)


@pytest.mark.parametrize("optim", [lambda: pyro.optim.Adam({"lr": 0.01}), lambda: pyro.optim.AdamW({"lr": 0.01})])
def test_captured_steps_of_svi_do_without_the_optimizers_python(monkeypatch, optim):
    calls = []
    step = torch.optim.Adam.step  # AdamW's too
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: calls.append(1) or step(self, *args))
    _, losses, params = trained("graph", optim())
    few = len(calls)  # the first step, by an optimizer for each parameter
    calls.clear()
    _, wanted, theirs = trained("eager", optim())
    assert len(calls) == few + 11
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(params, theirs, rtol=1e-4, atol=1e-5)


def trained(compile, optim=None, count=12, between=lambda svi, i: None):
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide = make_vae()
    svi = SVI(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO(), compile=compile)
    losses = []
    for i in range(count):
        between(svi, i)
        losses.append(float(svi.step(X)))
    return svi, losses, {name: tensor.detach().clone() for name, tensor in pyro.get_param_store().items()}


def whole_of(svi):
    (graph,) = (graph for setting in svi._step._settings for graph in setting.graphs.values())
    return graph.whole


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: None, lambda: pyro.optim.AdamW({"lr": 0.02, "weight_decay": 0.1})])
@pytest.mark.usefixtures("at_once")
def test_svi_compiles_its_step_whole(make):
    _, losses, params = trained("eager", make())
    svi, got, now = trained("inductor", make())
    assert whole_of(svi) is not None
    assert not whole_of(svi).missed
    assert got == pytest.approx(losses, rel=1e-4)
    for name, tensor in params.items():
        torch.testing.assert_close(now[name], tensor, rtol=1e-3, atol=1e-4)
    counts = [next(iter(state["state"].values()))["step"] for state in svi.optim.get_state().values()]
    assert counts == [12] * len(params)


@pytest.mark.slow
def test_a_long_run_of_svi_joins_its_step_later(monkeypatch):
    monkeypatch.setattr(replay, "STEP_GAIN", 1e6)
    svi, *_ = trained("inductor", count=999)
    assert whole_of(svi) is None
    for _ in range(5):
        svi.step(X)
    assert whole_of(svi) is not None
    counts = [next(iter(state["state"].values()))["step"] for state in svi.optim.get_state().values()]
    assert {int(count) for count in counts} == {1004}


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_svi_follows_changed_rates_and_betas():
    def between(svi, i):
        for made in svi.optim.optim_objs.values():
            made.param_groups[0]["lr"] = 0.01 if i < 5 else 0.05
            if i == 8:
                made.param_groups[0]["betas"] = (0.5, 0.9)

    _, losses, params = trained("eager", between=between, count=14)
    svi, got, now = trained("inductor", between=between, count=14)
    assert whole_of(svi).step.rules[0].beta1 == 0.5  # it was compiled anew, as other betas came to stay
    assert svi.how == "captured, Inductor"
    assert got == pytest.approx(losses, rel=1e-4)
    for name, tensor in params.items():
        torch.testing.assert_close(now[name], tensor, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"clip": 0.2}, {"ema": 0.9}, {"skip_gradient_above": 2.5}], ids=str)
@pytest.mark.usefixtures("at_once")
def test_fit_compiles_its_step_whole(options, monkeypatch):

    kept = []

    class Kept(replay.Replay):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            kept.append(self)

    monkeypatch.setattr(training, "Replay", Kept)
    x = (torch.rand(70, 12, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    results = []
    for compile in ("graph", "inductor"):
        torch.manual_seed(2)
        vae = VAE((12,), 2, encoder=MLP([8]), decoder=MLP([8]))
        made = fit(
            vae, x, epochs=6, batch_size=16, lr=0.01, schedule="cosine", seed=0, compile=compile, device="cpu",
            progress=False, **options,
        )  # fmt: skip
        results.append((made, [p.detach().clone() for p in vae.parameters()]))
    wholes = [g.whole for s in kept[1]._settings for g in s.graphs.values() if g is not None and g.whole is not None]
    assert wholes
    assert not any(whole.missed for whole in wholes)  # with a short last batch in each epoch
    (graph, expected), (compiled, got) = results
    for a, b in zip(compiled.history, graph.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a.get("skipped") == b.get("skipped")
    if "skip_gradient_above" in options:
        assert 0 < sum(row["skipped"] for row in compiled.history) < 6 * 5
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
