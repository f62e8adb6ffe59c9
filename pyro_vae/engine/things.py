"""What kinds of things Python holds: which are values to be compared, which have parts, which are libraries' own."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import dis
import enum
import fractions
import functools
import operator
import pathlib
import random
import re
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyro_vae.engine.known import LIBRARIES, PURE, root_of, words

#: Types whose values are compared; a graph has such values burnt in.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
FIXED = (
    *PLAIN,
    *(torch.Size, torch.layout, torch.memory_format, range, slice, type(Ellipsis), type(NotImplemented)),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction),
    *(pathlib.PurePath, re.Pattern, uuid.UUID, enum.Enum, np.generic, np.dtype),
)
OPAQUE = (
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.CodeType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.ClassMethodDescriptorType),
    *(
        type(collections.namedtuple("_", "field").field),
        torch._ops.OpOverload,
        torch._ops.OpOverloadPacket,
        types.GenericAlias,
    ),
)
MISSING = object()
#: What else than its values counts of a tensor: hooks are for those alone that require gradients.
MARKS = ("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")
#: Attributes that all functions and classes have: they count where the user's code names them.
COMMON = ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__")
LOCKS = (type(threading.Lock()), type(threading.RLock()))
OF_MODULES = frozenset(
    ["__builtins__", "__loader__", "__spec__", "__cached__", "__file__", "__path__", "__doc__", "__package__"]
)
DUNDERS = words(
    """
    __module__ __doc__ __dict__ __weakref__ __annotations__ __qualname__ __firstlineno__ __static_attributes__
    __abstractmethods__ __orig_bases__ __parameters__ __slots__ __hash__ __annotate_func__ __signature__
    __annotations_cache__
    """
)
CONTENTS = (
    bytearray,
    array.array,
    random.Random,
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
)
CACHE = type(functools.lru_cache(str))
PARTS = (
    *(
        types.MethodType,
        types.BuiltinFunctionType,
        types.MethodWrapperType,
        functools.partial,
        functools.partialmethod,
        property,
        staticmethod,
        classmethod,
    ),
    *(functools.cached_property, functools.singledispatchmethod, CACHE),
)
#: Of these, the ones whose parts never change.
UNCHANGING = (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType, property)


def is_leaf(value: Any) -> bool:
    """Whether a value has no parts of its own: it is compared, or is one of a library's."""
    kind = type(value)  # isinstance would ask a class of the user's
    if value is MISSING or issubclass(kind, (*OPAQUE, operator.itemgetter)):
        return True
    if issubclass(kind, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (types.ModuleType, type))
    if issubclass(kind, enum.Enum):
        return not is_own(kind)
    if issubclass(kind, np.void):  # a row of a structured array, which is written to with it
        return False
    if issubclass(kind, FIXED):
        library = not hasattr(value, "__dict__") or issubclass(kind, (pathlib.PurePath, datetime.tzinfo))
        return library and not is_own(kind)
    return issubclass(kind, type) and not is_own(value)


def is_value(key: Any) -> bool:
    """Whether a key of a dictionary is compared by its value alone."""
    return is_leaf(key) or (type(key) is tuple and all(map(is_value, key)))


def content_of(thing: Any) -> Any:
    """What an array or a random generator holds, to be compared."""
    if isinstance(thing, (bytearray, array.array)):
        return bytes(thing)
    if isinstance(thing, (random.Random, CACHE)):
        return thing.getstate() if isinstance(thing, random.Random) else thing.cache_info()
    if isinstance(thing, np.ndarray):
        return thing.shape, thing.dtype, thing.tobytes()
    if isinstance(thing, np.void):
        return thing.dtype, thing.tobytes()
    if isinstance(thing, torch.Generator):
        return thing.get_state().numpy().tobytes()
    if isinstance(thing, np.random.RandomState):
        return repr(thing.get_state(legacy=False))
    return repr(getattr(thing, "bit_generator", thing).state)


def contents(cell: types.CellType) -> Any:
    """What a closure's cell holds; MISSING where it is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def name_of(thing: Any, otherwise: str = "") -> str:
    """How a thing is called in a message."""
    kinds = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
    return thing.__qualname__ if issubclass(type(thing), kinds) else otherwise or type(thing).__qualname__


def is_code(thing: Any) -> bool:
    """Whether something is code."""
    return isinstance(thing, types.CodeType)


@functools.lru_cache(4096)
def globals_of(code: types.CodeType) -> frozenset[str]:
    """The global names that code, and the functions inside it, look up."""
    found = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opcode in dis.hasname
        and not instruction.opname.endswith(("_ATTR", "_METHOD"))
        and instruction.opname not in ("IMPORT_NAME", "IMPORT_FROM")
    }
    return frozenset(found.union(*(globals_of(part) for part in code.co_consts if is_code(part))))


def is_function_of(thing: Any, codes: Sequence[types.CodeType]) -> bool:
    """Whether a thing is a function of one of these codes."""
    return type(thing) is types.FunctionType and any(thing.__code__ is code for code in codes)


def is_own(kind: type) -> bool:
    """Whether a class is neither a library's nor Python's."""
    root = root_of(kind.__module__)
    if root in LIBRARIES or kind.__module__ == "__main__":
        return root not in LIBRARIES
    if root != "builtins" and root not in sys.stdlib_module_names:
        return True
    return is_python(kind) and "<locals>" not in kind.__qualname__ and _named(kind) is not kind


def _named(kind: type) -> Any:
    """What has a class's name in its module; `dataclasses.make_dataclass` and the like give their own module's name."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found


def is_code_of_class(value: Any) -> bool:
    """Whether an attribute of a class is code, as methods and properties are."""
    return issubclass(type(value), (types.FunctionType, *OPAQUE, *PARTS))


def is_held_elsewhere(referent: Any) -> bool:
    """Whether a weak reference to something is no way of asking whether it is still there, as libraries have them."""
    if type(referent) is collections.OrderedDict:  # of a module's hooks
        return True
    if isinstance(referent, torch.Tensor):
        return referent.requires_grad and referent.is_leaf  # such as an LSTM's weights
    return isinstance(referent, (type, torch.distributions.Transform))


def has_callback(thing: Any) -> bool:
    """Whether something is called at a thing's end."""
    return any(reference.__callback__ is not None for reference in weakref.getweakrefs(thing))


def is_own_module(module: types.ModuleType) -> bool:
    """Whether a module is neither a library's nor Python's."""
    root = root_of(module.__name__)
    return root not in LIBRARIES and root not in sys.stdlib_module_names


def is_own_attribute(thing: Any, name: str) -> bool:
    """Whether an attribute may be the user's; torch's transforms keep their last value under such a name."""
    return name != "_cached_x_y" or not isinstance(thing, torch.distributions.Transform)


def is_pure(module: str) -> bool:
    """Whether a module of Python's asks nothing of the world outside."""
    return root_of(module) in PURE or module in ("builtins", "_collections", "_functools", "__main__")


def is_python(kind: type) -> bool:
    """Whether a class is written in Python, so that all that it holds can be seen."""
    heap, immutable = 1 << 9, 1 << 8
    if not kind.__flags__ & heap or kind.__flags__ & immutable or type(kind).__name__ == "pybind11_type":
        return False
    return "__slots__" in vars(kind) or any("__dict__" in vars(base) for base in kind.__mro__)
