"""What torch, Pyro and NumPy do for a program, as far as anyone may change it: functions, methods, attributes, registries.

Their code is trusted and not searched, but a function or method that it calls may be replaced while a program is in use.
Watched is what the executed code of libraries looks up: callables in namespaces of modules, methods in those of classes.
All of it is one place, read and compared as a few tuples.
"""

from __future__ import annotations

import abc
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import biject_to, kl, transform_to

from pyro_vae.engine import compat
from pyro_vae.engine.known import LIBRARIES, root_of
from pyro_vae.pair.reach import names_in

if TYPE_CHECKING:
    from pyro_vae.engine.observe import Executed

Namespace = Mapping[str, Any]
Read = Callable[[Any], Any]
_PYTHONS = sys.stdlib_module_names | {"builtins"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), list, dict, set, tuple, frozenset)


class Lookups:
    """What executed code of libraries looks up in namespaces of modules and classes.

    Args:
        executed: what calls have executed.
        classes: library classes whose instances are met.

    Attributes:
        namespaces, keys: where, and by which names there.
    """

    def __init__(self, executed: Executed, classes: Iterable[type]):
        # The user's too, which may stand in the place of a library's.
        self._executed = {id(code) for code, _ in (*executed.libraries.values(), *executed.codes.values())}
        self._own_names = executed.own_names
        self._held: dict[int, tuple[Namespace, set[str]]] = {}
        for code, namespace in executed.libraries.values():
            self._of_code(frozenset(names_in(code)), namespace)
        for kind in classes:
            self._of_class(kind)
        self.namespaces = [namespace for namespace, _ in self._held.values()]
        self.keys = [tuple(sorted(keys)) for _, keys in self._held.values()]
        self._getters = [operator.itemgetter(keys[0], *keys) for keys in self.keys]  # of two, so that it gives a tuple
        self._last: list[Any] = []

    def keys_of(self, kind: type) -> set[str]:
        """The names that are looked up in a class."""
        return self._held.get(id(kind), (None, set()))[1]

    def read(self, namespaces: list[Namespace]) -> list[Any] | None:
        """What is held there now, the same object as long as it is the same; None if something is gone."""
        try:
            now = [get(namespace) for get, namespace in zip(self._getters, namespaces, strict=True)]
        except KeyError:
            return None
        if now != self._last:
            self._last = now
        return self._last

    def _of_code(self, names: frozenset[str], namespace: dict[str, Any]) -> None:
        for name in names & namespace.keys():
            value = namespace[name]
            if isinstance(value, types.ModuleType):
                if root_of(value.__name__) in LIBRARIES:
                    inside = vars(value)
                    self._note(value, inside, {one for one in names & inside.keys() if _is_called(inside[one])})
            elif _is_called(value):
                self._note(namespace, namespace, {name})

    def _of_class(self, kind: type) -> None:
        owners = owners_of(kind)
        held = [(name, value) for one in owners for name, value in vars(one).items()]
        named = {name for name, value in held if id(code_of(value)) in self._executed or _stands_in(value)}
        for one in owners:
            own = {name for name in self._own_names & vars(one).keys() if not isinstance(vars(one)[name], _PLAIN)}
            self._note(one, vars(one), (named & vars(one).keys()) | own)

    def _note(self, owner: Any, namespace: Namespace, names: set[str]) -> None:
        if names:
            key = id(namespace if isinstance(namespace, dict) else owner)
            self._held.setdefault(key, (namespace, set()))[1].update(names)


def owners_of(kind: type) -> list[type]:
    """The classes of libraries in which a class looks its attributes up."""
    return [owner for owner in kind.__mro__ if root_of(owner.__module__) in LIBRARIES]


def code_of(thing: Any) -> types.CodeType | None:
    """The code of a function, of a method of any kind, or of a property."""
    for name in ("__func__", "fget", "wrapped", "func"):
        if not isinstance(thing, types.FunctionType):
            thing = getattr(thing, name, thing) if type(thing).__module__ != "torch._ops" else thing
    return thing.__code__ if isinstance(thing, types.FunctionType) else None


def lookups_of(executed: Executed, kinds: Iterable[type]) -> tuple[list[type], Lookups]:
    """The library classes that count, and what is looked up; kept with `executed`."""
    met = dict.fromkeys(owner for kind in (*executed.classes, *kinds) for owner in owners_of(kind))
    key = len(executed.libraries), *((id(owner), len(vars(owner))) for owner in met)
    if executed.lookups is None or executed.lookups[0] != key:
        executed.lookups = key, Lookups(executed, (*executed.classes, *kinds))
    return list(met), executed.lookups[1]


def contents_of(executed: Executed, lookups: Lookups) -> Iterator[tuple[Any, Read, str]]:
    """Holders, functions that read what they hold, and how these are called in a message."""
    yield lookups.namespaces, lookups.read, "a function of torch's or Pyro's"
    for registry, name in _registries():
        yield registry, _values, name
    if executed.abstract:
        yield None, _registered, "the subclasses of an abstract class"


def _registries() -> list[tuple[dict[Any, Any], str]]:
    """Where libraries hold functions of the user's; hooks of all modules are among `compat.settings`."""
    return [
        (kl._KL_REGISTRY, "the registry of KL divergences"),
        (transform_to._registry, "the registry of transforms"),
        (biject_to._registry, "the registry of bijections"),
    ]


def own_callables(lookups: Lookups) -> Iterator[Any]:
    """Functions of the user's among what libraries hold."""
    found = [value for row in lookups.read(lookups.namespaces) or () for value in row]
    held = (*(registry for registry, _ in _registries()), *compat.global_hooks())
    found += [value for registry in held for value in registry.values()]
    yield from (value for value in found if not _is_librarys(value))


def _values(registry: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(registry.values())


def _registered(_: None) -> Any:
    return abc.get_cache_token()


def hidden_methods() -> list[str]:
    """Compiled methods of tensors that the user's functions hide; torch calls those twice where a mode looks on."""
    compiled = vars(torch.Tensor.__mro__[1])
    return [name for name, value in vars(torch.Tensor).items() if name in compiled and _stands_in(value)]


def _stands_in(value: Any) -> bool:
    """Whether something of the user's stands where a library holds its methods."""
    return callable(value) and not _is_librarys(value)


def _is_called(value: Any) -> bool:
    return callable(value) and not isinstance(value, types.ModuleType)


def _is_librarys(value: Any) -> bool:
    """Whether a callable is a library's, or made by one of Python's modules."""
    while isinstance(value, (types.MethodType, functools.partial)):
        value = value.__func__ if isinstance(value, types.MethodType) else value.func
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__") or ""
    else:
        module = (value if isinstance(value, type) else type(value)).__module__
    return module != "__main__" and (root_of(module) in LIBRARIES or root_of(module) in _PYTHONS)
