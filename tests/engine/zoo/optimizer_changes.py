"""Optimizers that are replaced, or whose state is changed from outside."""

import copy
import functools

import pyro
import torch
from pyro.optim import PyroOptim

from tests.engine.zoo.optimizers import ClipsTogether, under
from tests.engine.zoo.parameters import once
from tests.engine.zoo.program import program


@program()
def rate_in_state():
    """The rate in the torch optimizers' groups is set from outside."""
    made = under(pyro.optim.Adam({"lr": 0.02}))

    def write(rate):
        for one in made.optim.optim_objs.values():
            one.param_groups[0]["lr"] = rate

    made.between = once(lambda: write(0.3), lambda: write(0.001), lambda: write(0.1))
    return made


@program()
def step_pre_hook_added_later():
    """`register_step_pre_hook` is called on the torch optimizers at step 1."""
    made = under(pyro.optim.SGD({"lr": 3e-3}))

    def halve(optimizer, args, kwargs):
        for param in optimizer.param_groups[0]["params"]:
            param.grad.mul_(-1)

    def add():
        for one in made.optim.optim_objs.values():
            one.register_step_pre_hook(halve)

    made.between = once(add, add, add)
    return made


@program()
def optimizer_replaced():
    """`svi.optim` is replaced by one of another kind."""
    made = under(pyro.optim.Adam({"lr": 0.02}))
    put = lambda optim: setattr(made.svi, "optim", optim)  # noqa: E731
    made.between = once(
        lambda: put(pyro.optim.SGD({"lr": 1e-3})),
        lambda: put(pyro.optim.Adam({"lr": 0.1})),
        lambda: put(ClipsTogether(torch.optim.SGD, {"lr": 0.1})),
    )
    return made


@program()
def optimizer_state_loaded():
    """`get_state` at step 1; a new optimizer takes it by `set_state` at steps 10 and 25."""
    made, kept = under(pyro.optim.Adam({"lr": 0.05})), []

    def put():
        made.svi.optim = pyro.optim.Adam({"lr": 0.05})
        made.svi.optim.set_state(copy.deepcopy(kept[0]))

    made.between = once(lambda: kept.append(copy.deepcopy(made.svi.optim.get_state())), put, put)
    return made


@program()
def optimizer_state_set_in_place():
    """`set_state` on the optimizer in use, whose `optim_objs` are cleared."""
    made, kept = under(pyro.optim.Adam({"lr": 0.05})), []

    def put():
        made.optim.optim_objs.clear()
        made.optim.set_state(copy.deepcopy(kept[0]))

    made.between = once(lambda: kept.append(copy.deepcopy(made.optim.get_state())), put, put)
    return made


@program()
def momentum_forgotten():
    """The optimizer's `optim_objs` are cleared."""
    made = under(pyro.optim.Adam({"lr": 0.05}))
    made.between = once(*[lambda: made.optim.optim_objs.clear()] * 3)
    return made


@program()
def moments_zeroed():
    """The moments in the torch optimizers' state are zeroed in place."""
    made = under(pyro.optim.Adam({"lr": 0.05}))

    def zero():
        for one in made.optim.optim_objs.values():
            for state in one.state.values():
                state["exp_avg"].zero_()

    made.between = once(zero, zero, zero)
    return made


@program()
def weight_decay_changed():
    """`weight_decay` in the groups changes."""
    made = under(pyro.optim.Adam({"lr": 0.05}))

    def write(value):
        for one in made.optim.optim_objs.values():
            one.param_groups[0]["weight_decay"] = value

    made.between = once(lambda: write(20.0), lambda: write(0.0), lambda: write(20.0))
    return made


@program()
def call_of_class_replaced():
    """`PyroOptim.__call__` of a subclass is replaced."""

    class Mine(PyroOptim):
        pass

    def opposite(self, params, *args, **kwargs):
        for param in params:
            param.grad.neg_()
        PyroOptim.__call__(self, params, *args, **kwargs)

    made = under(Mine(torch.optim.SGD, {"lr": 3e-3}))
    made.between = once(lambda: setattr(Mine, "__call__", opposite), lambda: delattr(Mine, "__call__"))
    return made


@program()
def step_of_adam_replaced():
    """`torch.optim.Adam.step` is replaced by one that turns the gradients around, and put back."""
    made, step = under(pyro.optim.Adam({"lr": 0.02})), torch.optim.Adam.step

    @functools.wraps(step)
    def ascends(optimizer, closure=None):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = -param.grad
        return step(optimizer, closure)

    put = lambda function: setattr(torch.optim.Adam, "step", function)  # noqa: E731
    made.between = once(lambda: put(ascends), lambda: put(step), lambda: put(ascends))
    made.close = lambda: put(step)
    return made


@program()
def rate_not_a_number():
    """The rate becomes NaN, and parameters with it."""
    made = under(pyro.optim.Adam({"lr": 0.02}))

    def write():
        for one in made.optim.optim_objs.values():
            one.param_groups[0]["lr"] = float("nan")

    made.between = once(lambda: None, write)
    return made
