"""An eager call under a profiler: which code it executes, which names that code looks up, and why it may not be captured.

A program's course is decided by its arguments, by what its code can reach, and by the world outside. The first two are
watched (`watch`); a program that asks the third, or changes it, is never captured.
"""

from __future__ import annotations

import abc
import gc
import linecache
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.engine.known import (
    ANY,
    FRAMES,
    LIBRARIES,
    PURE,
    READ_ANY_NAME,
    SEEDING,
    WHY,
    asks,
    opens,
    root_of,
    verdict,
)
from pyro_vae.pair.reach import names_in

#: What programs may do once, as they set themselves up.
ONCE = ("prints", "writes to a log", "issues a warning", "reads or writes files", "opens a file")


Code = tuple[types.CodeType, dict[str, Any]]
Identity = tuple[int, int]


@dataclass
class Executed:
    """What calls have executed.

    Attributes:
        codes: code outside the libraries, with its globals, both by identity: equal functions of two modules are two.
        names: all names that executed code looks up, in the libraries too.
        own_names: those looked up outside the libraries.
        any_name: whether attributes are read by names that stand nowhere in code.
        libraries: code of libraries, with its globals.
        classes: those whose methods in libraries are executed.
        abstract: whether code outside the libraries asks abstract classes for their subclasses.
        lookups: what `libraries` has found of them.
    """

    codes: dict[Identity, Code] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    own_names: set[str] = field(default_factory=set)
    any_name: bool = False
    libraries: dict[Identity, Code] = field(default_factory=dict)
    classes: dict[type, None] = field(default_factory=dict)
    abstract: bool = False
    lookups: Any = None

    def copy(self) -> Executed:
        """As it is now."""
        made = Executed()
        made.add(self)
        return made

    def add(self, other: Executed) -> bool:
        """Joins another call's; whether it brought anything new."""
        before = self._size()
        self.codes.update(other.codes)
        self.names |= other.names
        self.own_names |= other.own_names
        self.any_name |= other.any_name
        self.libraries.update(other.libraries)
        self.classes.update(other.classes)
        self.abstract |= other.abstract
        return before != self._size()

    def _size(self) -> tuple[int, ...]:
        """Code that a call makes anew, such as a data class's methods, is equal to what the last one made."""
        codes = {(code, id(namespace)) for code, namespace in self.codes.values()}
        return len(codes), len(self.names), len(self.own_names), self.any_name, self.abstract


def can_observe() -> bool:
    """Whether no other profiler is active."""
    return sys.getprofile() is None


def observe(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Executed, str | None]:
    """What the function returns, what it executed, and why it may not be captured, if so."""
    profile = _Profile()
    before = random.getstate(), _numpy_state(), ambient()
    sys.setprofile(profile)
    try:
        result = function(*args, **kwargs)
    finally:
        sys.setprofile(None)
    for then, now, what in zip(
        before,
        (random.getstate(), _numpy_state(), ambient()),
        (
            "draws from Python's random numbers",
            "draws from NumPy's random numbers",
            "changes a setting of torch or Pyro",
        ),
        strict=True,
    ):
        if then != now:
            profile.reason = profile.reason or f"it {what}"
    return result, profile.executed, profile.reason


def ambient() -> tuple[Any, ...]:
    """torch's and Pyro's settings that a graph depends on."""
    from pyro_vae.engine import compat

    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        *map(torch.is_autocast_enabled, ("cpu", "cuda")),
        torch.is_anomaly_enabled(),
        *compat.settings(),
    )


def _numpy_state() -> Any:
    kind, keys, *rest = np.random.get_state()
    return kind, keys.tobytes(), *rest


class _Profile:
    """Called by Python at each call of a Python or C function."""

    def __init__(self) -> None:
        self.executed, self.reason = Executed(), None
        self._seen: dict[Identity, Code] = {}
        self._makers: set[Identity] = set()  # libraries' __init__, by which all of their classes are met
        self._verdicts: dict[Any, str | None] = {}
        # The garbage collector's callbacks run in the midst of the program, and are not its own.
        self._asides = {getattr(callback, "__code__", None) for callback in gc.callbacks}

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            key = (id(frame.f_code), id(frame.f_globals))
            if key not in self._seen:
                self._call(frame, key)
            elif key in self._makers:
                self._meet(frame)
        elif event == "c_call":
            owner = arg.__self__
            key = (owner if isinstance(owner, (types.ModuleType, type)) else type(owner), arg.__name__)
            if key[0].__name__.startswith(("PyCapsule", "pybind11_")):  # which keep the module's name elsewhere
                key = (sys.modules.get(arg.__module__, torch), arg.__name__)
            if key not in self._verdicts:
                self._verdicts[key] = verdict(*key)
            if (why := self._verdicts[key]) is not None:
                self._compiled(frame, why, key[1])

    def _call(self, frame: types.FrameType, key: Identity) -> None:
        if frame.f_code in _OF_ABSTRACT and (self.executed.abstract or self._is_library(frame.f_back)):
            return
        code, module = frame.f_code, frame.f_globals.get("__name__") or ""
        root = root_of(module)
        why, whoever = asks(module, code.co_name)
        if why is not None:
            allowed = self._is_ours(frame) if why is SEEDING else not whoever and self._is_library(frame.f_back)
            if not allowed:
                self._refuse(frame, why)
        elif root in sys.stdlib_module_names and root not in PURE and module != "__main__":
            if frame.f_back is not None and self._is_library(frame.f_back):
                return
            self._refuse(frame, WHY.get(root, f"calls {module}.{code.co_name}, whose effects cannot be seen"))
        if self._is_aside(frame):
            return
        if why is None:  # else it depends on who calls
            self._seen[key] = (code, frame.f_globals)
        names = set(names_in(code))
        self.executed.names.update(names_in(code, texts=True))
        self.executed.abstract |= code in _OF_ABSTRACT
        if root in LIBRARIES:
            self.executed.libraries[key] = (code, frame.f_globals)
            self._meet(frame)
            if code.co_name == "__init__":
                self._makers.add(key)
        python = root in sys.stdlib_module_names or root.startswith("namedtuple_")
        if root not in LIBRARIES and (not python or module == "__main__"):
            self.executed.codes[key] = (code, frame.f_globals)
            self.executed.own_names |= names
            if looks := names & FRAMES:
                self._refuse(frame, f"looks at the frames around it ({', '.join(sorted(looks))})")
            self.executed.any_name |= "__dict__" in names

    def _meet(self, frame: types.FrameType) -> None:
        if frame.f_code.co_argcount:
            this = frame.f_locals.get(frame.f_code.co_varnames[0])
            self.executed.classes[this if issubclass(type(this), type) else type(this)] = None

    def _compiled(self, frame: types.FrameType, why: str, name: str) -> None:
        root = root_of(frame.f_globals.get("__name__"))
        if opens(why, name) and self._is_library(frame):
            self._refuse(frame, why)
        if root in LIBRARIES:
            return
        if why is ANY:
            self.executed.any_name |= root not in PURE or root in READ_ANY_NAME
        elif root not in sys.stdlib_module_names or frame.f_globals.get("__name__") == "__main__":
            self._refuse(frame, why)

    def _is_library(self, frame: types.FrameType | None) -> bool:
        """Whether a frame, or what called it through the standard library, is a library's."""
        while frame is not None:
            root = root_of(frame.f_globals.get("__name__"))
            if root in LIBRARIES:
                return True
            if root not in sys.stdlib_module_names or frame.f_globals.get("__name__") == "__main__":
                return False
            frame = frame.f_back
        return False

    def _is_ours(self, frame: types.FrameType | None) -> bool:
        """Whether this package sets a random state, which it puts back."""
        while frame is not None and root_of(frame.f_globals.get("__name__")) in ("torch", "contextlib"):
            frame = frame.f_back
        return frame is not None and root_of(frame.f_globals.get("__name__")) == "pyro_vae"

    def _is_aside(self, frame: types.FrameType | None) -> bool:
        """Whether what runs is none of the program's.

        That is a library's own log message, a garbage collector's callback, a module that is imported for the first time,
        a line of code that is looked up for a message, or torch's compiler.
        """
        logging = False
        while frame is not None:
            module = frame.f_globals.get("__name__") or ""
            root = root_of(module)
            imports = frame.f_code.co_name == "_find_and_load" and "importlib" in root
            if imports or root == "linecache" or module.startswith(("torch._inductor", "torch._dynamo.convert_frame")):
                return True
            if frame.f_code in self._asides or (logging and root in LIBRARIES):
                return True
            logging = root == "logging"
            frame = frame.f_back
        return False

    def _refuse(self, frame: types.FrameType, what: str) -> None:
        if self._is_aside(frame):
            return
        self.reason = self.reason or f"{line_of(frame)} {what}"


_OF_ABSTRACT = frozenset((abc.ABCMeta.__instancecheck__.__code__, abc.ABCMeta.__subclasscheck__.__code__))


def line_of(frame: types.FrameType | None) -> str:
    """The innermost line outside libraries, for a message."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        root = root_of(module)
        if module == "__main__" or (root not in LIBRARIES and root not in sys.stdlib_module_names):
            file, number = frame.f_code.co_filename, frame.f_lineno
            if "site-packages" in file and (line := line_of(frame.f_back)) != "it":  # of a package that the user calls
                return line
            return f"{Path(file).name}, line {number} ({linecache.getline(file, number).strip()!r})"
        frame = frame.f_back
    return "it"
