"""Changes of what torch and Pyro do, while a program is in use: their functions, methods, classes and registries."""

import abc

import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import alone, at_steps, changing, observe, program, usual_model


def patched(owner, name, new, model=None, **options):
    """A program under which `new(original, value)` takes the place of a function, at each of the steps."""
    original, held = getattr(owner, name), name in vars(owner)
    write = lambda value: setattr(owner, name, new(original, value))  # noqa: E731
    made = changing(model or usual_model(), write, **options)

    def close():
        if held:
            setattr(owner, name, original)
        elif name in vars(owner):
            delattr(owner, name)

    made.close = close
    return made


@program()
def method_of_library_replaced():
    """`log_prob` of torch's normal distribution is replaced."""
    new = lambda old, factor: lambda self, value: old(self, value) * factor  # noqa: E731
    return patched(torch.distributions.Normal, "log_prob", new)


@program()
def method_of_library_overridden():
    """`log_prob` is added to Pyro's normal distribution, which had inherited torch's."""
    new = lambda old, factor: lambda self, value: old(self, value) * factor  # noqa: E731
    return patched(dist.Normal, "log_prob", new)


@program("torch.Tensor.log is not torch's own")
def method_of_tensors_hidden():
    """A method of `torch.Tensor` that is compiled is hidden by a function."""
    return patched(torch.Tensor, "log", lambda old, factor: lambda self: old(self) * factor)


@program()
def initializer_of_library_replaced():
    """`__init__` of torch's normal distribution is replaced."""

    def new(old, factor):
        return lambda self, loc, scale, *args, **kwargs: old(self, loc, scale * factor, *args, **kwargs)

    return patched(torch.distributions.Normal, "__init__", new)


@program()
def function_inside_library_replaced():
    """A function that torch's layers call is replaced."""
    new = lambda old, factor: lambda *args: old(*args) * factor  # noqa: E731
    return patched(nn.functional, "linear", new)


@program("is set anew as the programs run", visible=False)
def method_of_library_counts():
    """A method of Pyro's ELBO is replaced by one that counts its calls."""
    calls = []

    def new(old, value):
        def counts(*args, **kwargs):
            calls.append(value)
            return old(*args, **kwargs)

        return counts

    return patched(Trace_ELBO, "_get_trace", new, kept=lambda: calls)


@program()
def attribute_of_library_class():
    """A number that is kept on `torch.nn.Module`."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.zoo_scale

    nn.Module.zoo_scale = 1.0
    torch.manual_seed(11)
    decoder = Scaled(2, 3)
    made = changing(lambda x: observe(x, decoder), lambda value: setattr(nn.Module, "zoo_scale", value))
    made.close = lambda: delattr(nn.Module, "zoo_scale")
    return made


@program("is set anew as the programs run", visible=False)
def counter_of_library_class():
    """A count of calls that is kept on `torch.nn.Module`."""

    class Counts(nn.Linear):
        def forward(self, x):
            nn.Module.zoo_calls += 1
            return super().forward(x)

    nn.Module.zoo_calls = 0
    decoder = Counts(2, 3)
    made = alone(lambda x: observe(x, decoder), kept=lambda: nn.Module.zoo_calls)
    made.close = lambda: delattr(nn.Module, "zoo_calls")
    return made


def diverging(write, divergence):
    """The usual pair under a KL divergence of its own between normal distributions."""
    pair = dist.Normal, dist.Normal
    if divergence is not None:
        kl.register_kl(*pair)(divergence)
    made = changing(usual_model(), write, loss=TraceMeanField_ELBO())

    def close():
        kl._KL_REGISTRY.pop(pair, None)
        kl._KL_MEMOIZE.clear()

    made.close = close
    return made


@program()
def divergence_registered():
    """A KL divergence is registered anew."""
    new = lambda value: lambda p, q: value * (p.loc - q.loc).abs() + p.scale  # noqa: E731
    return diverging(lambda value: kl.register_kl(dist.Normal, dist.Normal)(new(value)), None)


class Holder:
    """An object that only a library holds."""

    scale = 1.0

    def divergence(self, p, q):
        """A method that is registered."""
        return self.scale * (p.loc - q.loc).abs() + p.scale

    def hook(self, module, given, out):
        """A hook of all modules."""
        return out * self.scale


@program()
def divergence_of_an_object():
    """The registered KL divergence is a method of an object."""
    holder = Holder()
    return diverging(lambda value: setattr(holder, "scale", value), holder.divergence)


@program()
def hook_of_an_object():
    """The hook of all modules is a method of an object."""
    holder = Holder()
    handle = nn.modules.module.register_module_forward_hook(holder.hook)
    made = changing(usual_model(), lambda value: setattr(holder, "scale", value))
    made.close = handle.remove
    return made


@program()
def subclass_registered():
    """A class is registered with an abstract class that the model asks for."""

    class Wide(abc.ABC):  # noqa: B024
        pass

    class Some:
        pass

    some = Some()
    made = scaled(lambda: 2.5 if isinstance(some, Wide) else 1.0, lambda value: None)
    made.between = at_steps(lambda value: Wide.register(Some))
    return made
