"""Every private name of torch and Pyro that the engine uses, behind one probe each.

A name that a release lacks turns off what needs it, and programs run eagerly or uncompiled; importing never fails.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def _probe(find: Callable[[], Any]) -> Any:
    """What `find` returns; None where this release lacks it."""
    try:
        return find()
    except (AttributeError, ImportError):
        return None


# --- Pyro -----------------------------------------------------------------------------------------------------------

handlers = _probe(lambda: __import__("pyro.poutine.runtime", fromlist=["_PYRO_STACK"])._PYRO_STACK)


def store_place() -> tuple[dict[str, Any], str]:
    """Where the param store holds its dictionary of parameters, which it replaces when it is cleared."""
    return vars(pyro.get_param_store()), "_params"


def store_parts() -> tuple[dict[str, Any], ...]:
    """The param store's dictionaries: unconstrained parameters, constraints, names by parameter."""
    store = pyro.get_param_store()
    return store._params, store._constraints, store._param_to_name


def settings() -> tuple[Any, ...]:
    """Global settings of torch and Pyro that decide what a program does."""
    return (
        *(read(module) for read, module in _pyro_settings()),
        torch.are_deterministic_algorithms_enabled(),
        *_torch_settings(),
    )


@functools.cache
def _pyro_settings() -> list[tuple[Callable[[Any], Any], Any]]:
    """How each of Pyro's settings is read; `pyro.settings.get()` takes ten times as long."""
    known = pyro.settings._REGISTRY.values()
    return [(operator.attrgetter(name), importlib.import_module(module)) for module, name, *_ in known]


def _torch_settings() -> tuple[Any, ...]:
    types = map(torch.get_autocast_dtype, ("cpu", "cuda"))
    cached = torch.is_autocast_cache_enabled()
    return (*map(tuple, global_hooks()), function_modes(), str(torch.get_default_device()), *types, cached)


@functools.cache
def global_hooks() -> list[dict[int, Any]]:
    """torch's hooks of all modules: when these are called, and when they are given children, buffers and parameters."""
    held = vars(torch.nn.modules.module)
    return [value for name, value in held.items() if name.startswith("_global_") and isinstance(value, dict)]


def function_modes() -> int:
    """How many modes of the user's look on at torch's functions, besides a default device."""
    count = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return count - sum(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()) if count else 0


@functools.cache
def dice_code() -> Any:
    """The code of Pyro's enumeration that selects weights above zero, a size that depends on values."""
    from pyro.infer.util import Dice

    return Dice.compute_expectation.__code__


@functools.cache
def warning_codes() -> tuple[Any, ...]:
    """The code of Pyro's warnings about numbers that are not finite."""
    from pyro.util import warn_if_inf, warn_if_nan

    return warn_if_inf.__code__, warn_if_nan.__code__


# --- torch ----------------------------------------------------------------------------------------------------------

DispatchMode: Any = _probe(lambda: importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode) or object


@functools.cache
def is_composite(operation: Any) -> bool:
    """Whether an operation is told to others that it calls, and no device has a way of its own."""
    if not operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return False
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), key) for key in ("CPU", "CUDA"))


def of_packed_sequences() -> tuple[Any, ...]:
    """The functions that pack and unpack sequences."""
    names = ("_pack_padded_sequence", "_pad_packed_sequence")
    return tuple(getattr(torch, name) for name in names if hasattr(torch, name))


class Unrecorded:
    """`torch.no_grad()` without its Python, which between large products takes 0.02 ms."""

    def __enter__(self) -> None:
        self.recording = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self.recording)


def is_complete() -> bool:
    """Whether all that capturing needs is there."""
    try:
        store_parts(), settings(), dice_code(), warning_codes(), torch._C._set_grad_enabled
        is_composite(torch.ops.aten.add.Tensor)
    except (AttributeError, ImportError):
        return False
    return handlers is not None and DispatchMode is not object


@functools.cache
def has_fused_adam() -> bool:
    """Whether torch's fused kernels of Adam and AdamW are there, and take what `step.fused` gives them."""
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    try:
        for decoupled in (False, True):
            param, gradient, m, v, count = (torch.ones(shape) for shape in (1, 1, 1, 1, ()))
            kernel = fused_adam(decoupled)
            kernel([param], [gradient], [m], [v], [], [count], **numbers, amsgrad=False, maximize=False)
    except Exception:  # a name that is missing, or another signature: the optimizers take their steps by themselves
        return False
    return True


def fused_adam(decoupled: bool) -> Callable[..., None]:
    """torch's kernel of AdamW, or of Adam."""
    return torch._fused_adamw_ if decoupled else torch._fused_adam_


def moving_code() -> list[Any]:
    """All functions that an optimizer of Pyro's calls when it takes Adam's or AdamW's step, as they are now."""
    adam, optim = importlib.import_module("torch.optim.adam"), pyro.optim.PyroOptim
    classes = (torch.optim.Adam, torch.optim.AdamW)
    return [
        *(getattr(one, name) for one in classes for name in ("step", "_init_group")),
        *(getattr(adam, name) for name in ("adam", "_single_tensor_adam", "_multi_tensor_adam", "_fused_adam")),
        optim.__call__,
    ]


def _chain(function: Any) -> list[Any]:
    """A function and what it wraps, the innermost last."""
    chain = [function]
    while (function := getattr(function, "__wrapped__", None)) is not None:
        chain.append(function)
    return chain


_moving_code: Any = _probe(lambda: [_chain(function)[-1].__code__ for function in moving_code()])


def moves_as_known() -> bool:
    """Whether Adam's and AdamW's steps are torch's, and nobody has put others in their place or around them."""
    if _moving_code is None:
        return False
    chains = list(map(_chain, moving_code()))
    homes = [getattr(function, "__globals__", {}).get("__name__", "") for chain in chains for function in chain]
    known = all(home.partition(".")[0] in ("torch", "pyro") for home in homes)
    return known and all(chain[-1].__code__ is code for chain, code in zip(chains, _moving_code, strict=True))


def _hooks_of_all_optimizers() -> tuple[dict[int, Any], ...]:
    module = importlib.import_module("torch.optim.optimizer")  # torch.optim has no attribute of this name
    return module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks


_of_all_optimizers = _probe(_hooks_of_all_optimizers)


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks wait for an optimizer's step, or may."""
    if _of_all_optimizers is None or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return True
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or any(_of_all_optimizers))
