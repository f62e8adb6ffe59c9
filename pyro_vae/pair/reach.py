"""The torch modules that a program refers to."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def modules_of(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The outermost torch modules that programs refer to."""
    seen: dict[int, Any] = {}
    found = [thing for program in programs for thing in reachable(program, seen) if isinstance(thing, nn.Module)]
    inner = {id(child) for module in found for child in module.modules() if child is not module}
    return [module for module in found if id(module) not in inner]


def reachable(thing: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """`thing` and all that a function can get at through it: its self, its closure, the globals that it names.

    Modules are not entered; what is in `seen`, by id, is left out.
    """
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    yield thing
    for part in _parts(thing):
        yield from reachable(part, seen)


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (nn.Module, type, types.ModuleType)):
        return
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                yield cell.cell_contents
        for name in names_in(thing.__code__):
            named = thing.__globals__.get(name)
            own_function = getattr(named, "__globals__", None) is thing.__globals__
            if isinstance(named, (nn.Module, list, tuple, dict)) or own_function:
                yield named
    else:
        held = thing if isinstance(thing, dict) else getattr(thing, "__dict__", None)
        parts = held.values() if isinstance(held, dict) else thing if isinstance(thing, (list, tuple)) else ()
        yield from (part for part in parts if isinstance(part, (nn.Module, list, tuple, dict)))


def names_in(code: types.CodeType, texts: bool = False) -> Iterator[str]:
    """The names that code, and the functions inside it, look up; with `texts` all that it might."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant, texts)
        elif isinstance(constant, tuple):  # such as the attributes of a class pattern
            yield from (name for name in constant if isinstance(name, str))
        elif texts and isinstance(constant, str):  # such as torch's `self.__dict__["_buffers"]`
            yield constant
