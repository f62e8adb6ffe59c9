"""Names in other Python modules, in torch and among the builtins."""

import importlib
import sys
import types

import torch

from tests.engine.zoo import program as shared
from tests.engine.zoo.containers import scaled
from tests.engine.zoo.program import at_steps, changing, decoder_net, observe, program

SCALE = 1.0


def own_module(**names):
    """A module of its own, in `sys.modules`."""
    module = types.ModuleType("zoo_settings")
    module.__dict__.update(names)
    sys.modules["zoo_settings"] = module
    return module


@program()
def global_of_other_module():
    """A number of another module."""
    settings = own_module(SCALE=1.0)
    return scaled(lambda: settings.SCALE, lambda value: setattr(settings, "SCALE", value))


@program()
def function_of_other_module():
    """A function of another module that reads a list there."""
    settings = own_module(values=[1.0])
    exec("def scale():\n    return values[0]", settings.__dict__)
    return scaled(lambda: settings.scale(), lambda value: settings.values.__setitem__(0, value))


@program()
def equal_functions_of_two_modules():
    """Two modules hold a function of the same text, and one module's number changes."""
    text = compile("def scale():\n    return SCALE", "scale.py", "exec")
    one, other = own_module(SCALE=1.0), own_module(SCALE=1.0)
    exec(text, one.__dict__)
    exec(text, other.__dict__)
    mine, others = one.scale, other.scale
    return scaled(lambda: mine() * others(), lambda value: setattr(other, "SCALE", value))


@program()
def function_of_other_module_replaced():
    """A function of another module is replaced."""
    settings = own_module(scale=lambda: 1.0)
    return scaled(lambda: settings.scale(), lambda value: setattr(settings, "scale", lambda: value))


@program()
def module_imported_inside():
    """A module that is imported inside the model."""
    settings = own_module(SCALE=1.0)
    decoder = decoder_net()

    def model(x):
        import zoo_settings

        observe(x, decoder, zoo_settings.SCALE)

    return changing(model, lambda value: setattr(settings, "SCALE", value))


@program()
def name_imported_inside():
    """`from module import name` inside the model."""
    settings = own_module(scale=lambda: 1.0)
    decoder = decoder_net()

    def model(x):
        from zoo_settings import scale

        observe(x, decoder, scale())

    return changing(model, lambda value: setattr(settings, "scale", lambda: value))


@program()
def name_imported_from_sibling():
    """`from .module import name` inside a function of a package."""
    package, settings = types.ModuleType("zoo_package"), types.ModuleType("zoo_package.settings")
    reader = types.ModuleType("zoo_package.reader")
    package.__path__ = []
    settings.SCALE, reader.__package__ = 1.0, "zoo_package"
    sys.modules.update({module.__name__: module for module in (package, settings, reader)})
    exec("def scale():\n    from .settings import SCALE\n    return SCALE", reader.__dict__)
    read = reader.scale
    return scaled(lambda: read(), lambda value: setattr(settings, "SCALE", value))


@program("imports a module by its name")
def module_from_builtin_import():
    """A module that `__import__` gives inside the model."""
    settings = own_module(SCALE=1.0)
    name = "zoo_settings"
    return scaled(lambda: __import__(name).SCALE, lambda value: setattr(settings, "SCALE", value))


@program("imports a module by its name")
def module_from_import_module():
    """A module that `importlib.import_module` gives inside the model."""
    settings = own_module(SCALE=1.0)
    name = "zoo_settings"
    return scaled(lambda: importlib.import_module(name).SCALE, lambda value: setattr(settings, "SCALE", value))


@program()
def torch_function_replaced():
    """A function of torch that the model calls is replaced."""
    softplus = torch.nn.functional.softplus
    made = changing(lambda x: observe(x, decoder, torch.nn.functional.softplus(torch.tensor(0.5))), lambda value: None)
    decoder = decoder_net()

    def write(value):
        torch.nn.functional.softplus = lambda x: softplus(x) * value

    made.between = at_steps(write)
    made.close = lambda: setattr(torch.nn.functional, "softplus", softplus)
    return made


@program()
def library_function_replaced():
    """A function of the program's own library is replaced."""
    decoder = decoder_net()
    original = shared.observe

    def model(x):
        shared.observe(x, decoder)

    def write(value):
        shared.observe = lambda x, net, scale=1.0: original(x, net, value)

    made = changing(model, write)
    made.close = lambda: setattr(shared, "observe", original)
    return made


@program()
def builtin_replaced():
    """A builtin that the model calls is hidden by a global."""
    globals().pop("abs", None)
    made = scaled(lambda: abs(-1.0), lambda value: globals().update(abs=lambda number: value))
    made.close = lambda: globals().pop("abs", None)
    return made


@program()
def attribute_named_at_run_time():
    """A number of another module, read by `getattr` with a computed name."""
    settings = own_module(SCALE=1.0)
    return scaled(lambda: getattr(settings, "sca".upper() + "LE"), lambda value: setattr(settings, "SCALE", value))


@program()
def global_that_comes_later():
    """A global that is not there at first."""
    settings = own_module(observe=observe, decoder=decoder_net())
    exec(
        "def model(x):\n"
        "    try:\n        scale = SCALE\n"
        "    except NameError:\n        scale = 1.0\n"
        "    observe(x, decoder, scale)",
        settings.__dict__,
    )
    return changing(settings.model, lambda value: setattr(settings, "SCALE", value))


@program()
def attribute_of_function_that_comes_later():
    """An attribute of a function that is not there at first."""

    def scale():
        return getattr(scale, "value", 1.0)

    return scaled(scale, lambda value: setattr(scale, "value", value))
