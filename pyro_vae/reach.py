"""What a program can get at besides its arguments: modules, closures, globals, and the plain values in them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

#: Types whose values a graph has burnt in.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_LIBRARIES = ("torch", "pyro", "pyro_vae")
_MISSING = object()


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


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names that a function's code, and the functions inside it, look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


class Watch:
    """Tells when a plain value, or a parameter's place, that programs can reach has changed.

    A captured graph has such values burnt in. Watched are numbers, strings and flags (`training` among them) in
    modules, in objects whose methods the programs are, in containers, closures and named globals, and which tensors,
    submodules and parameters modules hold.

    Args:
        programs: functions or modules.

    Attributes:
        moved: pairs of tensors, of which the second took the place of the first.
    """

    def __init__(self, *programs: Callable[..., Any]):
        # Closures are held as (cell, None), all else as (dictionary, key).
        self._places: list[tuple[Any, Any, Any, str]] = []
        self._columns: tuple[list[Any], ...] | None = None  # the same, in columns
        self.moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        seen: dict[int, Any] = {}
        for program in programs:
            for thing in reachable(program, seen):
                self._look(thing)

    def changed(self, follow: bool = False) -> str | None:
        """Where a value is not what it was, for a message; None if nothing has changed.

        Args:
            follow: let a constant tensor be replaced by another one like it, and note the two in `moved`.
        """
        if self._as_it_was():
            return None
        self._columns = None
        for i, (holder, key, value, place) in enumerate(self._places):
            now = holder.get(key, _MISSING) if key is not None else _contents(holder)
            if now is value:
                continue
            if follow and _alike(now, value):
                self.moved.append((value, now))
            elif type(now) is not type(value) or not isinstance(now, PLAIN) or now != value:
                return place
            self._places[i] = (holder, key, now, place)
        return None

    def _as_it_was(self) -> bool:
        """Whether every place holds the very same object; each step asks, so no Python runs place by place."""
        if self._columns is None:
            cells = [place for place in self._places if place[1] is None]
            entries = [place for place in self._places if place[1] is not None]
            columns = [
                list(column) for part in (cells, entries) for column in (zip(*part, strict=True) if part else [[]] * 4)
            ]
            self._columns = (columns[0], columns[2], *columns[4:7])
        cells, contents, holders, keys, values = self._columns
        if not all(map(operator.is_, map(_contents, cells), contents)):
            return False
        return all(map(operator.is_, map(dict.get, holders, keys, itertools.repeat(_MISSING)), values))

    def restore(self) -> None:
        """Puts every watched value back in its place."""
        for holder, key, value, _ in self._places:
            if key is None:
                holder.cell_contents = value
            elif holder.get(key, _MISSING) is not value:
                holder[key] = value

    def tensors(self) -> list[torch.Tensor]:
        """The watched tensors."""
        return [value for _, _, value, _ in self._places if isinstance(value, torch.Tensor)]

    def _look(self, thing: Any) -> None:
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules():
                self._look_at_module(module, f"{type(thing).__name__}{'.' if name else ''}{name}")
        elif isinstance(thing, types.FunctionType):
            self._look_at_function(thing)
        elif isinstance(thing, dict):
            self._watch(thing, "a dict")
        elif not isinstance(thing, (type, types.ModuleType, list, tuple)):
            self._watch(getattr(thing, "__dict__", {}), type(thing).__name__)

    def _look_at_module(self, module: nn.Module, place: str) -> None:
        self._watch(vars(module), place, private=False)
        for held in (module._parameters, module._buffers, module._modules):
            self._places += [(held, name, value, f"{place}.{name}") for name, value in held.items()]
        for kind in type(module).__mro__:
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                for method in vars(kind).values():
                    if isinstance(method, types.FunctionType):
                        self._look_at_function(method)

    def _look_at_function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _contents(cell)
            if isinstance(value, (*PLAIN, torch.Tensor)):
                self._places.append((cell, None, value, f"{name} in {function.__qualname__}"))
        for name in set(names_in(function.__code__)):
            value = function.__globals__.get(name, _MISSING)
            if isinstance(value, (*PLAIN, torch.Tensor)):
                self._places.append((function.__globals__, name, value, f"global {name}"))

    def _watch(self, holder: Any, place: str, private: bool = True) -> None:
        for name, value in holder.items() if isinstance(holder, dict) else ():
            if isinstance(value, (*PLAIN, torch.Tensor)) and (private or not str(name).startswith("_")):
                self._places.append((holder, name, value, f"{place}.{name}"))


def _alike(a: Any, b: Any) -> bool:
    """Whether both are constant tensors that a graph can take for each other."""
    tensors = type(a) is torch.Tensor and type(b) is torch.Tensor and not a.requires_grad and not b.requires_grad
    return tensors and (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING
