"""What a program can reach besides its arguments, at any depth: a list of places and what they hold.

Looked at are the closures, defaults, attributes and named globals of all code that has been executed, and everything these
hold: containers, instances by `__dict__` and `__slots__`, classes, modules with their hooks and modes, arrays, generators.
Attributes count by name: those that no executed code names cannot be read by it.
"""

from __future__ import annotations

import decimal
import gc
import operator
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide

from pyro_vae.engine.containers import CONTAINERS, PLAIN_CONTAINERS, parts_of, places_of_tensor
from pyro_vae.engine.imports import names_read
from pyro_vae.engine.known import LIBRARIES, root_of
from pyro_vae.engine.libraries import contents_of, hidden_methods, lookups_of, own_callables
from pyro_vae.engine.observe import Executed
from pyro_vae.engine.places import ABOUT, Kind, Place, Unseen, namespace_of
from pyro_vae.engine.policy import MOST_BYTES, MOST_PLACES
from pyro_vae.engine.things import (
    CACHE,
    COMMON,
    CONTENTS,
    DUNDERS,
    FIXED,
    LOCKS,
    MISSING,
    OF_MODULES,
    PARTS,
    UNCHANGING,
    content_of,
    contents,
    has_callback,
    is_code,
    is_function_of,
    is_held_elsewhere,
    is_leaf,
    is_own,
    is_own_attribute,
    is_own_module,
    is_pure,
    is_python,
    name_of,
)
from pyro_vae.pair.reach import names_in


class _AnyName(Exception):
    """Attributes are read by names that stand nowhere in code."""


class Reach:
    """Everything that programs can reach.

    Args:
        roots: programs, and other things that a call depends on.
        executed: what calls have executed.

    Attributes:
        places: the places, in an order that depends on what is reached alone.
        mortal: something whose end would be seen, such as a weak reference's referent; it must not be held. None if there
            is nothing like it.

    Raises:
        Unseen: if there is something whose changes cannot be seen.
    """

    def __init__(self, roots: Sequence[Any], executed: Executed):
        self.executed = executed
        try:
            self._walk(roots)
        except _AnyName:
            executed.any_name = True
            self._walk(roots)

    def _walk(self, roots: Sequence[Any]) -> None:
        self.places: list[Place] = []
        self._seen: dict[int, Any] = {}
        self._met: set[tuple[int, str]] = set()
        self._stack: list[tuple[Any, str]] = []
        self.mortal: str | None = None
        self._roots = {id(thing) for root in roots for thing in (root, getattr(root, "__self__", root))}
        own = {name for code, _ in self.executed.codes.values() for name in names_in(code, texts=True)}
        self._common = [name for name in COMMON if name in own]
        self._grads = "grad" in own
        if own & {"get_param_store", "_PYRO_PARAM_STORE"}:
            self._stack.append((pyro.get_param_store(), "Pyro's param store"))
        for i, root in enumerate(roots):
            self._add(Kind.PART, roots, i, root, name_of(root))
        self._empty()
        for code, namespace in self.executed.codes.values():
            self._look_at_globals(code, namespace)
        self._empty()
        if self.executed.libraries:
            self._look_at_libraries()
        if unmet := self._unmet():
            found = [one for one in gc.get_referrers(*unmet) if is_function_of(one, unmet)]
            self._stack += [(one, one.__qualname__) for one in found]
            self._empty()

    def _look_at_libraries(self) -> None:
        """What libraries look up, what the programs' own code reads of their classes, and what of the user's they hold."""
        for name in hidden_methods():
            raise Unseen(f"torch.Tensor.{name} is not torch's own")
        values = (place.value for place in self.places)
        kinds = [kind for kind in (*values, *self._seen.values()) if isinstance(kind, type)]
        classes, lookups = lookups_of(self.executed, kinds)
        for kind in classes:
            namespace = vars(kind)
            self._add(Kind.SIZE, namespace, None, len(namespace), kind.__qualname__)
            for name in sorted(self.executed.own_names & namespace.keys() - DUNDERS):
                if name not in lookups.keys_of(kind):
                    self._add(Kind.OF_CLASS, namespace, name, namespace[name], f"{kind.__qualname__}.{name}")
        for holder, read, path in contents_of(self.executed, lookups):
            self._add(Kind.CONTENT, holder, read, read(holder), path)
        self._stack += [(value, name_of(value)) for value in own_callables(lookups)]
        self._empty()

    def _unmet(self) -> list[types.CodeType]:
        """Executed code with a closure that is held by nothing seen so far; what a function made as it ran is left out."""
        met = {id(thing.__code__) for thing in self._seen.values() if type(thing) is types.FunctionType}
        codes = [code for code, _ in self.executed.codes.values()]
        inner = {constant for code in codes for constant in code.co_consts if is_code(constant)}
        return [code for code in codes if code.co_freevars and id(code) not in met and code not in inner]

    def _empty(self) -> None:
        while self._stack:
            thing, path = self._stack.pop()
            if id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                self._look(thing, path)
            if len(self.places) > MOST_PLACES:
                raise Unseen(f"{path} and what else the programs reach are more than {MOST_PLACES} values")

    def _add(self, kind: Kind, holder: Any, key: Any, value: Any, path: str) -> None:
        leaf = kind in ABOUT or is_leaf(value)
        self.places.append(Place(kind, holder, key, value, path, leaf))
        if value is decimal.Decimal or type(value) is decimal.Decimal:
            context = decimal.getcontext()
            self.places.append(Place(Kind.CONTENT, context, repr, repr(context), "the decimal context", True))
        if not leaf or (kind not in ABOUT and issubclass(type(value), type)):
            self._stack.append((value, path))

    def _look(self, thing: Any, path: str) -> None:
        if is_leaf(thing) and not issubclass(type(thing), type):
            return
        for kinds, look in _LOOKS:
            if issubclass(type(thing), kinds):
                look(self, thing, path)
                return
        self._look_at_instance(thing, path)

    # --- containers -----------------------------------------------------------------------------------------------

    def _look_at_container(self, thing: Any, path: str) -> None:
        for part in parts_of(thing, path):
            self._add(*part)
        self._look_at_subclass(thing, path, PLAIN_CONTAINERS)

    def _look_at_subclass(self, thing: Any, path: str, plain: tuple[type, ...]) -> None:
        if type(thing) not in plain:
            self._look_at_attributes(thing, path)

    def _look_at_array(self, thing: np.ndarray | np.void, path: str) -> None:
        if thing.nbytes > MOST_BYTES or thing.dtype.hasobject:
            raise Unseen(f"{path} is a NumPy array of {thing.nbytes:,} bytes, too many to compare; make it a tensor")
        self._look_at_content(thing, path)

    def _look_at_content(self, thing: Any, path: str) -> None:
        self._add(Kind.CONTENT, thing, content_of, content_of(thing), path)
        if is_own(type(thing)):
            self._look_at_attributes(thing, path)

    def _look_at_reference(self, thing: weakref.ref[Any], path: str) -> None:
        referent = weakref.ref.__call__(thing)
        self._add(Kind.ALIVE, thing, None, referent is not None, path)
        self._look_at_subclass(thing, path, (weakref.ref,))
        if referent is not None:
            if id(referent) not in self._roots and not is_held_elsewhere(referent):
                self.mortal = path
            self._stack.append((referent, path))

    def _look_at_tensor(self, thing: torch.Tensor, path: str) -> None:
        self.places += places_of_tensor(thing, path)
        if self._grads and thing.requires_grad and thing.is_leaf:
            self._add(Kind.ATTRIBUTE, thing, "grad", thing.grad, f"{path}.grad")
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            self._stack.append((type(thing), type(thing).__qualname__))
            self._look_at_namespace(thing, path)
        else:
            self._look_at_attributes(thing, path)

    # --- code -----------------------------------------------------------------------------------------------------

    def _look_at_function(self, thing: types.FunctionType, path: str) -> None:
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self._add(Kind.ATTRIBUTE, thing, name, getattr(thing, name), f"the default of an argument of {path}")
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            self._add(Kind.CELL, cell, None, contents(cell), f"{name} in {thing.__qualname__}")
        self._look_at_common(thing, path)
        for name, value in self._names_of(thing, path).items():
            self._add(Kind.ENTRY, vars(thing), name, value, f"{path}.{name}")

    def _look_at_common(self, thing: Any, path: str) -> None:
        for name in self._common:
            self._add(Kind.ATTRIBUTE, thing, name, getattr(thing, name, MISSING), f"{path}.{name}")

    def _names_of(self, thing: Any, path: str) -> dict[str, Any]:
        """An instance's attributes; which these are is noted."""
        held = namespace_of(thing)
        self._add(Kind.NAMESPACE, thing, "__dict__", held, path)
        if root_of(type(thing).__module__) in LIBRARIES:
            self._add(Kind.SIZE, held, None, len(held), path)
        else:
            self._add(Kind.NAMES, held, None, list(held), path)
        return held

    def _look_at_globals(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        for holder, name, path in names_read(code, namespace):
            if (known := (id(holder), name)) not in self._met:
                self._met.add(known)
                self._add(Kind.ENTRY, holder, name, holder.get(name, MISSING), path)

    def _look_at_module(self, thing: types.ModuleType, path: str) -> None:
        if thing.__name__.startswith("numpy.random"):
            raise Unseen(f"{path} draws random numbers other than torch's")
        names = self.executed.own_names & vars(thing).keys()
        if is_own_module(thing):
            self._names_of(thing, path)
            self._add(Kind.TYPE, thing, None, type(thing), f"the class of {path}")
            if self.executed.any_name:
                names = vars(thing).keys() - OF_MODULES
        else:
            self._add(Kind.SIZE, vars(thing), None, len(vars(thing)), path)
        for name in sorted(names):
            self._add(Kind.ENTRY, vars(thing), name, vars(thing)[name], f"{path.removeprefix('global ')}.{name}")

    def _look_at_parts(self, thing: Any, path: str) -> None:
        """Of bound methods, partial functions, properties and the like."""
        kind = type(thing)
        if kind is CACHE:
            self._look_at_content(thing, path)
        for name in ("__func__", "func", "fget", "fset", "__wrapped__", "args", "keywords", "dispatcher", "__self__"):
            if (part := getattr(thing, name, MISSING)) is not MISSING:
                where = path if name == "__func__" else name_of(part, path)
                self._add(Kind.PART if kind in UNCHANGING else Kind.ATTRIBUTE, thing, name, part, where)
        if is_own(kind):
            self._look_at_attributes(thing, path)
        elif kind not in UNCHANGING:
            self._look_at_namespace(thing, path)

    # --- objects --------------------------------------------------------------------------------------------------

    def _look_at_class(self, thing: type, path: str) -> None:
        if not is_own(thing):
            return
        namespace = vars(thing)
        self._add(Kind.NAMES, namespace, None, list(namespace), path)
        self.places.append(Place(Kind.ATTRIBUTE, thing, "__mro__", thing.__mro__, f"the bases of {path}", True))
        self._look_at_common(thing, thing.__qualname__)
        for name, value in namespace.items():
            if name in DUNDERS or (not name.startswith("__") and not self._counts(name)):
                continue
            self._add(Kind.OF_CLASS, namespace, name, value, f"{thing.__qualname__}.{name}")
        if type(thing) is not type:
            self._add(Kind.TYPE, thing, None, type(thing), f"the class of {path}")
        for i, base in enumerate((type(thing), *thing.__bases__)):
            self._add(Kind.PART, thing, i, base, base.__qualname__)

    def _counts(self, name: Any) -> bool:
        return self.executed.any_name or name in self.executed.names

    def _look_at_instance(self, thing: Any, path: str) -> None:
        kind = type(thing)
        if kind in (operator.attrgetter, operator.methodcaller):
            if not self.executed.any_name:
                raise _AnyName
            self._add(Kind.PART, thing, None, repr(thing), path)
            return
        if kind in LOCKS:
            return
        compiled = [c for c in kind.__mro__ if c not in (object, types.SimpleNamespace) and not is_python(c)]
        if hasattr(kind, "__next__") and not is_python(kind):
            raise Unseen(f"{path} is an iterator ({kind.__name__}), which calls use up")
        if compiled and root_of(kind.__module__) in LIBRARIES:
            return  # such as NumPy's functions
        if compiled and not issubclass(kind, (BaseException, *FIXED, threading.local)):
            raise Unseen(f"{path} is a {kind.__module__}.{kind.__qualname__}, whose changes cannot be seen")
        if issubclass(kind, BaseException):
            self._add(Kind.ATTRIBUTE, thing, "args", thing.args, f"{path}.args")
        self._look_at_attributes(thing, path)

    def _look_at_attributes(self, thing: Any, path: str) -> None:
        kind = type(thing)
        self._add(Kind.TYPE, thing, None, kind, f"the class of {path}")
        self._stack.append((kind, kind.__qualname__))
        if is_own(kind) and (hasattr(kind, "__del__") or has_callback(thing)):
            self.mortal = path
        self._look_at_namespace(thing, path)
        for part in kind.__mro__:
            slots = vars(part).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if self._counts(name) and name not in ("__dict__", "__weakref__"):
                    self._add(Kind.ATTRIBUTE, thing, name, getattr(thing, name, MISSING), f"{path}.{name}")

    def _look_at_namespace(self, thing: Any, path: str) -> None:
        try:
            held = self._names_of(thing, path)
        except AttributeError:
            return
        impure = root_of(type(thing).__module__) in sys.stdlib_module_names and not is_pure(type(thing).__module__)
        for name, value in held.items():
            if name == "plates" and isinstance(thing, AutoGuide):
                continue  # made anew by each call before it is looked at
            if (name in self.executed.own_names if impure else self._counts(name)) and is_own_attribute(thing, name):
                self._add(Kind.ENTRY, held, name, value, f"{path}.{name}")


_LOOKS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (torch.Tensor, Reach._look_at_tensor),
    (types.FunctionType, Reach._look_at_function),
    (PARTS, Reach._look_at_parts),
    (types.ModuleType, Reach._look_at_module),
    (type, Reach._look_at_class),
    (CONTAINERS, Reach._look_at_container),
    (np.ndarray, Reach._look_at_array),
    (np.void, Reach._look_at_array),
    (weakref.ref, Reach._look_at_reference),
    (CONTENTS, Reach._look_at_content),
)
