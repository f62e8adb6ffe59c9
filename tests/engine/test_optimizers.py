"""What users do to optimizers and parameters between steps, a captured step follows as an eager one does."""

import copy
from multiprocessing.reduction import ForkingPickler

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.svi import SVI

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
AT = 6  # the step before which something changes; some are captured before it, and some after


def model(x):
    weight, mean = pyro.param("weight", torch.ones(3)), pyro.param("mean", torch.zeros(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(weight * z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.full((3, 2), 0.1))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ slope, scale).to_event(1))


def by_pyro():
    return pyro.optim.Adam({"lr": 0.05})


def by_torch():
    model(X)
    guide(X)
    return torch.optim.Adam(pyro.get_param_store()._params.values(), lr=0.05)


def trained(make, compile, change, count=14):
    """The parameters after some steps; `change` is called before each with the SVI and its number."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    svi = SVI(model, guide, make(), pyro.infer.Trace_ELBO(), compile=compile)
    for i in range(count):
        change(svi, i)
        svi.step(X)
    return torch.cat([tensor.detach().flatten() for tensor in pyro.get_param_store()._params.values()]), svi


def once(function):
    return lambda svi, i: function(svi) if i == AT else None


def made(svi):
    """Pyro's optimizers by parameter."""
    return svi.optim.optim_objs


def states(svi):
    optimizers = [svi.optim] if isinstance(svi.optim, torch.optim.Optimizer) else made(svi).values()
    return [state for optimizer in optimizers for state in optimizer.state.values()]


def set_rates(svi, rate=0.3):
    for optimizer in made(svi).values():
        optimizer.param_groups[0]["lr"] = rate


def one_of_them():
    return pyro.get_param_store()._params["slope"]


def set_betas_of_one(svi):
    made(svi)[one_of_them()].param_groups[0]["betas"] = (0.1, 0.9)


def replace_groups(svi):
    for optimizer in made(svi).values():
        optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.3}


def replace_states(svi):
    for tensor, optimizer in made(svi).items():
        zeros = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[tensor] = {"step": torch.tensor(0.0), **zeros}


def clear_states(svi):
    for optimizer in made(svi).values():
        optimizer.state.clear()


def forget_momentum(svi):
    for state in states(svi):
        state["exp_avg"] = torch.zeros_like(state["exp_avg"])


def count_anew(svi):
    for state in states(svi):
        state["step"].zero_()


def count_elsewhere(svi):
    for state in states(svi):
        state["step"].data = torch.zeros(())


def count_in_vectors(svi):
    for state in states(svi):
        state["step"] = torch.zeros(1)


def load_earlier_states(svi, i):
    if i == AT - 3:
        svi.kept = {tensor: copy.deepcopy(optimizer.state_dict()) for tensor, optimizer in made(svi).items()}
    elif i == AT:
        for tensor, optimizer in made(svi).items():
            optimizer.load_state_dict(svi.kept[tensor])


def clip(svi):
    svi.optim.grad_clip.update(dict.fromkeys(svi.optim.grad_clip, lambda p: p.grad.clamp_(-1e-3, 1e-3)))


def leave_a_gradient(svi):
    tensor = one_of_them()
    tensor.grad = torch.full_like(tensor, 300.0)


def another_optimizer_for_one(svi):
    tensor = one_of_them()
    made(svi)[tensor] = torch.optim.Adam([tensor], lr=0.3)


def another_optimizer(svi):
    svi.optim = pyro.optim.Adam({"lr": 0.3})


@pytest.mark.parametrize(
    "change",
    [
        *map(once, (set_rates, set_betas_of_one, replace_groups, replace_states, clear_states, forget_momentum)),
        *map(once, (count_anew, count_elsewhere, count_in_vectors, clip, leave_a_gradient)),
        *map(once, (another_optimizer_for_one, another_optimizer)),
        load_earlier_states,
    ],
    ids=[
        *("rates", "betas", "groups", "states", "cleared", "momentum", "counts", "memory", "vectors", "clipping"),
        *("gradient", "one optimizer", "optimizer", "loaded"),
    ],
)
def test_what_changes_pyros_optimizers_is_followed(change):
    follows(by_pyro, change)


def edit_betas(svi, i):
    group = svi.optim.param_groups[0]
    if i == 2:
        group["betas"] = [0.9, 0.999]
    elif i == AT:
        group["betas"][0] = 0.1


def freeze(svi):
    pyro.get_param_store()._params["slope"].requires_grad_(False)


def hook_a_gradient(svi):
    def hook(tensor):
        tensor.grad.zero_()

    pyro.get_param_store()._params["slope"].register_post_accumulate_grad_hook(hook)


def transpose_in_memory(svi):
    pyro.get_param_store()._params["slope"].data = torch.arange(6.0).reshape(2, 3).t() / 10


def another_class(svi):
    class Faster(torch.optim.Adam):
        def step(self, *args):
            self.param_groups[0]["lr"] = 0.3
            return super().step(*args)

    svi.optim.__class__ = Faster


@pytest.mark.parametrize(
    "change",
    [
        *map(once, (forget_momentum, count_elsewhere, freeze, transpose_in_memory, another_class)),
        edit_betas,
    ],
    ids=["momentum", "memory", "frozen", "transposed", "class", "betas"],
)
def test_what_changes_a_torch_optimizer_or_a_parameter_is_followed(change):
    follows(by_torch, change)


def test_a_hook_on_gradients_that_are_done_is_called_and_said(caplog):
    follows(by_torch, once(hook_a_gradient), "eager (not captured)")
    assert "looks at gradients" in caplog.text


def follows(make, change, how="captured"):
    unchanged, _ = trained(make, "eager", lambda svi, i: None)
    wanted, _ = trained(make, "eager", change)
    got, svi = trained(make, "graph", change)
    assert (wanted - unchanged).abs().max() > 1e-2
    assert svi.how == how
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def share_counts(svi):
    """Pickling for another process moves a tensor's memory while the tensor stays."""
    kept = svi.optim.state_dict() if isinstance(svi.optim, torch.optim.Optimizer) else svi.optim.get_state()
    ForkingPickler.dumps(kept)


@pytest.mark.parametrize("make", [by_pyro, by_torch])
def test_states_may_be_shared_with_other_processes(make):
    wanted, _ = trained(make, "eager", lambda svi, i: None)
    got, svi = trained(make, "graph", once(share_counts))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert {int(state["step"]) for state in states(svi)} == {14}


def note_something(svi, i):
    svi.optim.param_groups[0]["note"] = torch.full((3,), float(i))
    svi.optim.state["epoch"] = i


def test_users_may_keep_more_in_an_optimizer():
    wanted, _ = trained(by_torch, "eager", note_something)
    got, svi = trained(by_torch, "graph", note_something)
    assert svi.how == "captured"
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Shared(pyro.nn.PyroModule):
    """A program that holds its parameter."""

    def __init__(self):
        super().__init__()
        self.mean = pyro.nn.PyroParam(torch.zeros(3))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.mean, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_copy_of_a_young_svi_trains_parameters_of_its_own(steps):
    moves_a_copy(steps)


def test_a_copy_trains_parameters_of_its_own():
    moves_a_copy(4)


def moves_a_copy(steps):
    with pyro.settings.context(module_local_params=True):
        moved = []
        for compile in ("eager", "graph"):
            pyro.clear_param_store()
            program = Shared()
            svi = SVI(program, lambda x: None, by_pyro(), pyro.infer.Trace_ELBO(), compile=compile)
            for _ in range(steps):
                svi.step(X)
            before = program.mean.detach().clone()
            other = copy.deepcopy(svi)
            for _ in range(4):
                other.step(X)
            assert torch.equal(program.mean, before)
            moved.append(other.model.mean.detach() - before)
        assert moved[0].abs().max() > 1e-2
        torch.testing.assert_close(moved[1], moved[0])


def test_programs_without_parameters_have_a_loss():
    def program(x):
        pyro.sample("z", dist.Normal(x, 1.0))

    pyro.clear_param_store()
    svi = SVI(program, program, by_pyro(), pyro.infer.Trace_ELBO())
    assert [svi.step(1.0) for _ in range(4)] == [0.0] * 4
