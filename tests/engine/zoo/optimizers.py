"""Optimizers of Pyro, subclasses of them, schedulers, and optimizers that are changed as training runs."""

import pyro
import torch
from pyro.optim import PyroOptim

from tests.engine.zoo.program import alone, decoder_net, observe, program, usual_model

quiet = program(visible=False)


def under(optim, **options):
    """The usual pair under an optimizer."""
    return alone(usual_model(), optim=optim, **options)


@quiet
def adam_with_betas():
    """Nothing; Adam with betas, weight decay and eps."""
    return under(pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-4}))


@quiet
def adam_amsgrad():
    """Nothing; Adam with amsgrad and maximize."""
    return under(pyro.optim.Adam({"lr": 0.02, "amsgrad": True}))


@quiet
def clipped_adam():
    """Nothing; ClippedAdam with decay of its rate."""
    return under(pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 1.0, "lrd": 0.97}))


@quiet
def sgd_with_momentum():
    """Nothing; SGD with Nesterov momentum."""
    return under(pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9, "nesterov": True}))


@quiet
def rms_prop():
    """Nothing; RMSprop."""
    return under(pyro.optim.RMSprop({"lr": 0.01}))


@quiet
def adagrad():
    """Nothing; Adagrad."""
    return under(pyro.optim.Adagrad({"lr": 0.05}))


@quiet
def adam_w():
    """Nothing; AdamW."""
    return under(pyro.optim.AdamW({"lr": 0.02, "weight_decay": 0.2}))


@quiet
def dct_adam():
    """Nothing; Pyro's DCTAdam."""
    return under(pyro.optim.DCTAdam({"lr": 0.02, "subsample_aware": False}))


@quiet
def adagrad_rms_prop():
    """Nothing; Pyro's AdagradRMSProp."""
    return under(pyro.optim.AdagradRMSProp({"eta": 0.05}))


@quiet
def clip_arguments():
    """Nothing; `clip_args` with a norm and a value."""
    return under(pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 2.0, "clip_value": 1.0}))


@quiet
def arguments_by_parameter():
    """Nothing; a callable gives each parameter its rate."""
    return under(pyro.optim.Adam(lambda name: {"lr": 0.05 if "bias" in name else 0.01}))


@program(visible=False)
def arguments_by_parameter_that_count():
    """A callable gives each parameter its rate, and counts."""
    names = []

    def arguments(name):
        names.append(name)
        return {"lr": 0.01}

    return under(pyro.optim.Adam(arguments), kept=lambda: sorted(names))


@program()
def exponential_rate():
    """ExponentialLR, whose `step()` is called between steps."""
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8})
    return under(optim, between=lambda step: optim.step() if step else None)


@program()
def multi_step_rate():
    """MultiStepLR, whose `step()` is called between steps."""
    optim = pyro.optim.MultiStepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 3e-3}, "milestones": [1, 10, 25], "gamma": 0.3}
    )
    return under(optim, between=lambda step: optim.step() if step else None)


@program()
def cyclic_rate():
    """OneCycleLR, which changes rate and momentum."""
    optim = pyro.optim.OneCycleLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "max_lr": 5e-3, "total_steps": 40}
    )
    return under(optim, between=lambda step: optim.step() if step else None)


@quiet
def rate_on_plateau():
    """ReduceLROnPlateau, stepped by the loss."""
    optim = pyro.optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "patience": 1, "factor": 0.3}
    )

    def take(run, step):
        loss = run.svi.step(*run.args(step))
        optim.step(float(loss))
        return loss

    return under(optim, take=take)


class ClipsTogether(PyroOptim):
    """Clips the norm of all gradients together, in a `__call__` of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norms = []

    def __call__(self, params, *args, **kwargs):
        params = list(params)
        gradients = [param.grad for param in params if param.grad is not None]
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        self.norms.append(float(norm))
        for gradient in gradients:
            gradient.mul_((1.0 / norm).clamp(max=1.0))
        super().__call__(params, *args, **kwargs)


@quiet
def own_call_clips():
    """A subclass of PyroOptim clips the global norm in its `__call__`, and records it."""
    optim = ClipsTogether(torch.optim.Adam, {"lr": 0.02})
    return under(optim, kept=lambda: optim.norms)


class Skips(PyroOptim):
    """Takes every third step alone."""

    calls = 0

    def __call__(self, params, *args, **kwargs):
        self.calls += 1
        if self.calls % 3 == 0:
            super().__call__(params, *args, **kwargs)


@quiet
def own_call_skips():
    """A subclass of PyroOptim takes every third step alone."""
    optim = Skips(torch.optim.Adam, {"lr": 0.05})
    return under(optim, kept=lambda: optim.calls)


class Watches(torch.optim.SGD):
    """Records the norm of `.grad` in `step`."""

    norms: list[float]

    def step(self, closure=None):
        Watches.norms.append(sum(float(param.grad.norm()) for param in self.param_groups[0]["params"]))
        return super().step(closure)


@quiet
def torch_subclass_records():
    """A subclass of torch.optim.SGD records the norm of `.grad`."""
    Watches.norms = []
    return under(PyroOptim(Watches, {"lr": 1e-3}), kept=lambda: sorted(Watches.norms))


class OwnAdam(torch.optim.Adam):
    """Adam with a `step` of its own, which halves the step after ten."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count > 10:
            self.param_groups[0]["lr"] = 0.1
        return super().step(closure)


@quiet
def torch_subclass_changes_its_rate():
    """A subclass of torch.optim.Adam raises its rate after ten steps."""
    return under(PyroOptim(OwnAdam, {"lr": 0.01}))


@quiet
def step_hooks_of_optimizer():
    """`register_step_post_hook` on torch optimizers counts."""
    calls = [0]

    def make(params, **kwargs):
        optimizer = torch.optim.Adam(params, **kwargs)
        optimizer.register_step_post_hook(lambda *given: calls.__setitem__(0, calls[0] + 1))
        return optimizer

    return under(PyroOptim(make, {"lr": 0.02}), kept=lambda: calls)


@quiet
def step_pre_hook_changes_gradient():
    """`register_step_pre_hook` scales `.grad`."""

    def halve(optimizer, args, kwargs):
        for param in optimizer.param_groups[0]["params"]:
            param.grad.mul_(0.1)

    def make(params, **kwargs):
        optimizer = torch.optim.SGD(params, **kwargs)
        optimizer.register_step_pre_hook(halve)
        return optimizer

    return under(PyroOptim(make, {"lr": 5e-3}))


@quiet
def parameter_without_gradient():
    """A registered network that the loss does not reach."""
    decoder, idle = decoder_net(), decoder_net()

    def model(x):
        pyro.module("idle", idle)
        observe(x, decoder)

    return alone(model, optim=pyro.optim.Adam({"lr": 0.02, "weight_decay": 0.5}))


@quiet
def parameter_with_gradient_at_times():
    """A network that the loss reaches in some steps alone; its momentum goes on."""
    decoder, idle, flags = decoder_net(), decoder_net(), {"used": True}

    def model(x):
        pyro.module("idle", idle)
        z = observe(x, decoder)
        if flags["used"]:
            pyro.factor("extra", -idle(z).square().sum())

    made = alone(model)
    made.between = lambda step: flags.update(used=step < 5 or 12 < step < 20)
    return made
