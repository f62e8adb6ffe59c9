"""Which names outside of itself the code of a function looks up as it runs: globals, builtins, modules."""

from __future__ import annotations

import builtins
import dis
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from pyro_vae.engine.things import globals_of
from pyro_vae.pair.reach import names_in


def names_read(code: types.CodeType, namespace: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(where a name is looked up, the name, how it is called in a message), for all that code may look up.

    Args:
        code: of a function.
        namespace: its globals.
    """
    of_python = namespace.get("__builtins__", builtins)
    of_python = of_python if isinstance(of_python, dict) else vars(of_python)
    read = globals_of(code)
    for name in dict.fromkeys(names_in(code)):
        if name in namespace or name in read:
            yield namespace, name, f"global {name}"
        if name not in namespace and name in read:
            yield of_python, name, f"the builtin {name}"
    for name in dict.fromkeys(imports_in(code, namespace)):
        yield sys.modules, name, name


def imports_in(code: types.CodeType, namespace: dict[str, Any]) -> Iterator[str]:
    """The full names of the modules that import statements in code name, with the packages around them.

    Args:
        code: of a function.
        namespace: its globals, which say what relative imports are relative to.
    """
    before: list[Any] = [0, None]
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, given = (before[-2], before[-1]) if isinstance(before[-2], int) else (0, None)
            name = _absolute(str(instruction.argval), level, namespace)
            parts = name.split(".") if name else []
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
            if isinstance(given, tuple) and name:  # which may be modules themselves
                yield from (f"{name}.{one}" for one in given)
        if instruction.opname != "EXTENDED_ARG":
            before = [before[-1], instruction.argval]


def _absolute(name: str, level: int, namespace: dict[str, Any]) -> str | None:
    if not level:
        return name
    package = namespace.get("__package__")
    if package is None:
        package = namespace.get("__name__") or ""
        if "__path__" not in namespace:
            package = package.rpartition(".")[0]
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except ImportError:  # the statement will say so
        return None
