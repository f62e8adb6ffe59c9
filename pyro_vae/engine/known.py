"""What is known of torch, Pyro, NumPy and Python's library: which functions ask or change the world outside, and how."""

from __future__ import annotations

import types
from typing import Any

import torch


def words(text: str) -> frozenset[str]:
    """The names in a text."""
    return frozenset(text.split())


#: Packages whose functions are trusted to ask nothing outside: their code is not searched, their objects are.
LIBRARIES = frozenset({"torch", "pyro", "pyro_vae", "numpy", "opt_einsum", "functorch"})
#: Modules of the standard library that neither ask nor change anything outside.
PURE = words(
    """
    __future__ _collections_abc _weakrefset abc argparse ast bisect cmath collections colorsys contextlib copy
    copyreg dataclasses decimal difflib enum fractions functools heapq importlib inspect itertools keyword linecache
    math numbers operator pprint re reprlib statistics string struct sys textwrap token tokenize types typing
    unicodedata warnings weakref
    """
)
#: Of these, the ones that read attributes whose names stand nowhere in code.
READ_ANY_NAME = frozenset({"copy", "copyreg", "dataclasses", "pprint", "reprlib"})
COMPILED_PURE = PURE | words(
    """
    builtins _operator _functools _collections _abc _weakref _struct _bisect _heapq _statistics _string _sre
    _decimal _imp _json _pickle _hashlib _ast scipy
    """
)
WHY = {
    **dict.fromkeys(("time", "datetime", "_datetime", "calendar"), "reads the clock"),
    **dict.fromkeys(("os", "posix", "nt", "posixpath", "platform", "getpass"), "asks the operating system"),
    **dict.fromkeys(("random", "_random", "secrets", "uuid"), "draws random numbers other than torch's"),
    **dict.fromkeys(("io", "_io", "pathlib", "tempfile", "shutil", "glob", "pickle"), "reads or writes files"),
    "logging": "writes to a log",
    "_warnings": "issues a warning",
    **dict.fromkeys(("_contextvars", "contextvars"), "reads a context variable"),
}
_OF_SYS = frozenset({"_getframe", "exc_info", "intern", "getsizeof"})
_SETTINGS = ("get_", "are_", "is_deterministic", "initial_seed", "memory_", "current_", "device_count")
_BUILTINS = {
    "print": "prints",
    "input": "waits for input",
    "open": "opens a file",
    "globals": "looks names up at run time",
    "__import__": "imports a module by its name",
    "breakpoint": "stops in a debugger",
}
_ANY_NAME = frozenset({"getattr", "setattr", "hasattr", "delattr", "vars", "dir"})
#: Compiled functions that open, read or write files, in libraries too.
_FILES = words("open fromfile tofile dump from_file _write_file _new_with_file _set_from_file")
#: Modules of the standard library that only ask or change the world outside, so that libraries call them for programs alone.
_WORLD = words("subprocess socket ssl urllib.request http.client ftplib smtplib tempfile shutil sqlite3 dbm")
_FILES_OF_TORCH = words("save load _open_file_like _open_zipfile_reader _open_zipfile_writer")
#: Attributes by which code looks at what called it.
FRAMES = words("f_locals f_globals f_back f_lineno f_builtins tb_frame gi_frame cr_frame ag_frame")
SEEDS = (
    frozenset(("torch.random", "torch.cuda.random", "torch.mps", "pyro.util")),
    frozenset({"manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_seed", "fork_rng"}),
)


def root_of(module: str | None) -> str:
    """The package of a module's name."""
    return (module or "").partition(".")[0]


ANY = "attributes by any name"
FILES = WHY["io"]
SEEDING = "seeds or sets torch's random state"


def is_setting(module: str, name: str) -> bool:
    """Whether a function tells a setting of torch's or Pyro's that is not watched."""
    if module.startswith(("torch.backends", "pyro.settings")):
        return True
    places = ("torch", "torch._C", "torch.random", "torch.cuda", "torch.cuda.memory", "torch.cuda.random")
    return module in places and name.removeprefix("_").startswith(_SETTINGS) and name != "get_default_dtype"


def asks(module: str, name: str) -> tuple[str | None, bool]:
    """Why a Python function is not to be captured, if so; and whether that holds where libraries call it, too."""
    if module in SEEDS[0] and name in SEEDS[1]:
        return SEEDING, True
    if module.startswith("torch.utils.data"):
        return "iterates over a data loader", True
    of_files = module in ("torch.serialization", "torch.jit._serialization") and name in _FILES_OF_TORCH
    if of_files or module.startswith(("torch.hub", "torch.package")):
        return FILES, True
    if (root := root_of(module)) in _WORLD or module in _WORLD:
        return WHY.get(root, f"calls {module}.{name}, whose effects cannot be seen"), True
    if is_setting(module, name):
        return f"asks for torch's or Pyro's {name}", False
    if root == "importlib" and name in ("import_module", "reload"):
        return "imports a module by its name", False
    if root == "inspect" and name in ("stack", "trace", "getouterframes", "getinnerframes"):
        return "looks at the frames around it", False
    return None, False


def opens(why: str, name: str) -> bool:
    """Whether a compiled function is to be refused where a library calls it for the program."""
    return why in (FILES, _BUILTINS["open"]) and name in _FILES


def verdict(owner: Any, name: str) -> str | None:
    """Why a compiled function is not to be captured, if so; `ANY` if it looks attributes up by any name."""
    if owner is torch.Generator:
        return "seeds a random generator" if name in ("seed", "manual_seed", "set_state") else None
    if isinstance(owner, types.ModuleType):
        module = owner.__name__
    else:
        module = owner.__module__
        if module == "datetime" and name not in ("now", "utcnow", "today"):
            return None
    if module == "builtins" and isinstance(owner, types.ModuleType):
        return ANY if name in _ANY_NAME else _BUILTINS.get(name)
    if module == "_weakref" and name.startswith("getweakref"):
        return "counts weak references"
    if module == "_pickle":
        return FILES if name in ("dump", "load") else ANY
    if root_of(module) in LIBRARIES and name in _FILES:
        return FILES
    if module.startswith("numpy.random"):
        return "draws random numbers other than torch's"
    root = root_of(module)
    if module == "sys" and name not in _OF_SYS:
        return f"calls sys.{name}"
    if is_setting(module, name):
        return f"asks for torch's {name}"
    if module in WHY or root in WHY:
        return WHY.get(module) or WHY[root]
    if root in LIBRARIES or root in COMPILED_PURE:
        return None
    return f"calls {module}.{name}, compiled code whose effects cannot be seen"
