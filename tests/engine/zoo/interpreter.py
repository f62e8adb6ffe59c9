"""Settings of the interpreter, of torch and of Pyro."""

import gc
import logging
import os
import sys
import warnings

import pyro
import pyro.distributions as dist
import torch

from tests.engine.zoo.containers import scaled
from tests.engine.zoo.outside_world import restored
from tests.engine.zoo.program import alone, changes, changing, decoder_net, observe, program


@program()
def command_line():
    """`sys.argv`."""
    before = list(sys.argv)
    sys.argv[1:] = ["1.0"]
    made = scaled(lambda: float(sys.argv[1]), lambda value: sys.argv.__setitem__(1, str(value)))
    return restored(made, lambda: sys.argv.__setitem__(slice(None), before))


@program()
def log_level():
    """`logger.isEnabledFor`."""
    log = logging.getLogger("zoo.level")
    log.setLevel(logging.INFO)
    made = scaled(
        lambda: 2.0 if log.isEnabledFor(logging.DEBUG) else 1.0,
        lambda value: log.setLevel(logging.INFO if log.level == logging.DEBUG else logging.DEBUG),
    )
    return restored(made, lambda: log.setLevel(logging.NOTSET))


@program()
def garbage_collector():
    """`gc.isenabled()`."""
    made = scaled(lambda: 1.0 if gc.isenabled() else 2.0, lambda value: gc.disable() if gc.isenabled() else gc.enable())
    return restored(made, gc.enable)


@program()
def warning_filters():
    """The number of warning filters."""
    start = len(warnings.filters)
    return scaled(
        lambda: 1.0 + 0.5 * (len(warnings.filters) - start),
        lambda value: warnings.filterwarnings("always", message=f"zoo {value}"),
    )


@program()
def recursion_limit():
    """`sys.getrecursionlimit()`."""
    before = sys.getrecursionlimit()
    made = scaled(
        lambda: sys.getrecursionlimit() / before, lambda value: sys.setrecursionlimit(int(before * (1 + value)))
    )
    return restored(made, lambda: sys.setrecursionlimit(before))


@program()
def default_dtype():
    """torch's default dtype, which the model's constants follow."""

    def write(value):
        torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32)

    made = changing(pyro_pair(), write, lambda x: None)
    return restored(made, lambda: torch.set_default_dtype(torch.float32))


def pyro_pair():
    """A model whose constants follow the default dtype."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(3))
        scale = torch.tensor(1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale + scale.element_size() / 8).to_event(1), obs=x)

    return model


@program()
def validation_switched():
    """`pyro.enable_validation`, which the model looks at."""
    from pyro.infer.util import is_validation_enabled

    made = scaled(
        lambda: 1.0 if is_validation_enabled() else 2.0,
        lambda value: pyro.enable_validation(not is_validation_enabled()),
    )
    return restored(made, lambda: pyro.enable_validation(True))


@program()
def pyro_setting():
    """A setting of `pyro.settings`."""
    before = pyro.settings.get("cholesky_relative_jitter")
    made = scaled(
        lambda: 1.0 + pyro.settings.get("cholesky_relative_jitter"),
        lambda value: pyro.settings.set(cholesky_relative_jitter=value),
    )
    return restored(made, lambda: pyro.settings.set(cholesky_relative_jitter=before))


@program()
def deterministic_algorithms():
    """`torch.are_deterministic_algorithms_enabled()`."""
    made = scaled(
        lambda: 2.0 if torch.are_deterministic_algorithms_enabled() else 1.0,
        lambda value: torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled()),
    )
    return restored(made, lambda: torch.use_deterministic_algorithms(False))


@program()
def module_table():
    """Whether a module is in `sys.modules`."""
    import types

    def write(value):
        if "zoo_plugin" in sys.modules:
            del sys.modules["zoo_plugin"]
        else:
            sys.modules["zoo_plugin"] = types.ModuleType("zoo_plugin")

    made = scaled(lambda: 2.0 if "zoo_plugin" in sys.modules else 1.0, write)
    return restored(made, lambda: sys.modules.pop("zoo_plugin", None))


@program(visible=False)
def process_id():
    """`os.getpid()`, which never changes in a run."""
    return alone(scaled(lambda: 1.0 + os.getpid() % 2, lambda value: None).model)


@program("gc", "refcount", "sys")
def reference_count():
    """`sys.getrefcount` of an object."""
    thing, holders = object(), []
    start = sys.getrefcount(thing)
    return scaled(lambda: 1.0 + 0.3 * (sys.getrefcount(thing) - start), lambda value: holders.append(thing))


@program("looks at the frames around it")
def local_of_the_caller():
    """A local variable of the function that takes the step, read by the model."""
    decoder = decoder_net()

    def model(x):
        frame = sys._getframe()
        while "zoo_scale" not in frame.f_locals:
            frame = frame.f_back
        observe(x, decoder, frame.f_locals["zoo_scale"])

    moving = changes()

    def take(run, step):
        zoo_scale = 1.0 if step < 1 or not moving else 1.5  # noqa: F841
        return run.svi.step(*run.args(step))

    return alone(model, take=take)
