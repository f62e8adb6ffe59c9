"""Places where programs hold things, and how what they hold is compared: many at once in columns, or one by its value."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import itertools
import operator
import threading
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_vae.engine.things import MISSING, contents, is_value


class Unseen(Exception):
    """Something can be reached whose changes cannot be seen; the message says what and where."""


class Kind(enum.IntEnum):
    """How a place is read."""

    ENTRY, OF_CLASS, ITEM, ATTRIBUTE, CELL = range(5)
    PART = 5  #: of something that cannot change, such as a tuple: compared only where the whole was replaced
    NAMESPACE = 6  #: an instance's dictionary of attributes: that another takes its place leads to a second look
    NAMES = 7  #: of all attributes of an instance, a class or a module: a change of them leads to a second look
    SIZE = 8  #: how many these are, where they are too many
    LENGTH, KEYS, CONTENT, TYPE = range(9, 13)
    ALIVE = 13  #: whether a weak reference's referent is
    LAYOUT, STRIDE = 14, 15  #: of a tensor


#: Kinds whose values are no things that are reached.
ABOUT = frozenset(range(Kind.NAMESPACE, Kind.STRIDE + 1))
SECOND_LOOK = frozenset({Kind.NAMESPACE, Kind.NAMES, Kind.SIZE})


class Place(NamedTuple):
    """Where something is held: its value is read from the holder by a key.

    `leaf` says whether the value itself counts; of containers what they hold is compared.
    """

    kind: Kind
    holder: Any
    key: Any
    value: Any
    path: str
    leaf: bool


#: Builtin containers, by which their subclasses are read too, past what a class of the user's makes of them.
FAMILIES = (list, collections.deque, collections.OrderedDict, dict, set, types.MappingProxyType)
layout_of = operator.attrgetter("shape", "dtype", "device")


def family_of(thing: Any) -> Any:
    """The builtin container that a thing is."""
    return next((family for family in FAMILIES if issubclass(type(thing), family)), None)


def namespace_of(thing: Any) -> dict[str, Any]:
    """An instance's dictionary of attributes, past what the user's class makes of it.

    Raises:
        AttributeError: if it has none.
    """
    kind = threading.local if issubclass(type(thing), threading.local) else object
    held: dict[str, Any] = kind.__getattribute__(thing, "__dict__")
    return held


# --- many at once ---------------------------------------------------------------------------------------------------

Same = Callable[[], bool]


def columns(places: Iterable[Place]) -> list[Same]:
    """Comparisons of places of a kind each, to be asked in this order."""
    parted: dict[Any, list[Place]] = {}
    for place in places:
        if place.kind is Kind.PART:
            continue
        by_family = place.kind in (Kind.ITEM, Kind.NAMES, Kind.LENGTH, Kind.KEYS)
        by_local = place.kind is Kind.NAMESPACE and issubclass(type(place.holder), threading.local)
        key = family_of(place.holder) if by_family else threading.local if by_local else object
        parted.setdefault((place.kind, key), []).append(place)
    order = sorted(parted.items(), key=lambda pair: pair[0][0] is not Kind.LENGTH)  # items after lengths
    return [_column(kind, family, *([place[i] for place in part] for i in (1, 2, 3))) for (kind, family), part in order]


def _column(kind: Kind, family: Any, holders: list[Any], keys: list[Any], values: list[Any]) -> Same:
    count, iterate = _plain_reads(family, holders)
    if kind in (Kind.NAMES, Kind.KEYS):
        lengths, items = list(map(len, values)), list(itertools.chain.from_iterable(values))
        full = [holder for holder, length in zip(holders, lengths, strict=True) if length]
        return lambda: (
            list(map(count, holders)) == lengths
            and all(map(operator.is_, itertools.chain.from_iterable(map(iterate, full)), items))
        )
    if kind is Kind.CONTENT:
        return lambda: all(read(h) == value for h, read, value in zip(holders, keys, values, strict=True))
    if kind is Kind.ALIVE:
        return lambda: all((h() is not None) is value for h, value in zip(holders, values, strict=True))
    if kind in _BY_VALUE or kind is Kind.LENGTH:
        measure: Callable[[Any], Any] = count if kind is Kind.LENGTH else _BY_VALUE[kind]
        return lambda: all(map(operator.eq, map(measure, holders), values))
    if kind in _WITHOUT_KEY:
        part = _WITHOUT_KEY[kind]
        return lambda: all(map(operator.is_, map(part, holders), values))
    read, *further = _BY_KEY.get(kind) or _BY_KEY[kind, family]
    return lambda: all(map(operator.is_, map(read, holders, keys, *map(itertools.repeat, further)), values))


def _plain_reads(family: Any, holders: list[Any]) -> tuple[Callable[[Any], int], Callable[[Any], Any]]:
    """How containers are counted and gone through: `len` and `iter` are faster, but ask a class of the user's."""
    if all(
        type(h).__len__ is family.__len__ and type(h).__iter__ is family.__iter__ for h in holders if family in FAMILIES
    ):
        return len, iter
    return family.__len__, family.__iter__


_BY_VALUE: dict[Kind, Callable[[Any], Any]] = {
    Kind.SIZE: len,
    Kind.LAYOUT: layout_of,
    Kind.STRIDE: torch.Tensor.stride,
}
_WITHOUT_KEY: dict[Kind, Callable[[Any], Any]] = {Kind.CELL: contents, Kind.TYPE: type}
_BY_KEY: dict[Any, tuple[Any, ...]] = {
    Kind.ENTRY: (dict.get, MISSING),
    Kind.OF_CLASS: (types.MappingProxyType.get, MISSING),
    Kind.ATTRIBUTE: (getattr, MISSING),
    (Kind.ITEM, list): (list.__getitem__,),
    (Kind.ITEM, collections.deque): (collections.deque.__getitem__,),
    (Kind.NAMESPACE, object): (object.__getattribute__,),
    (Kind.NAMESPACE, threading.local): (threading.local.__getattribute__,),
}

# --- one by its value -----------------------------------------------------------------------------------------------

Moved = dict[int, tuple[torch.Tensor, torch.Tensor]]

_BY_PARTS = frozenset(
    [
        *(dict, list, tuple, set, frozenset, collections.deque, collections.OrderedDict, collections.defaultdict),
        *(types.MappingProxyType, np.ndarray, bytearray, weakref.ref, types.SimpleNamespace, argparse.Namespace),
        *(types.FunctionType, types.MethodType, functools.partial),
    ]
)


def same(old: Place, new: Place, moved: Moved | None) -> bool:
    """Whether two places hold the same for a graph; of what is not a leaf, the parts are compared by themselves.

    Args:
        moved: lets a constant tensor be replaced by another one like it, and notes the two.
    """
    if (old.kind, old.path, old.leaf) != (new.kind, new.path, new.leaf) or type(old.value) is not type(new.value):
        return False
    if old.kind in SECOND_LOOK:
        return True
    if old.kind is Kind.KEYS:
        return len(old.value) == len(new.value) and all(map(_same_key, old.value, new.value))
    if issubclass(type(old.value), torch.Tensor):
        if old.value is not new.value and (moved is None or not _alike(old.value, new.value)):
            return False
        return moved is None or moved.setdefault(id(old.value), (old.value, new.value))[1] is new.value
    if old.value is new.value:
        return True
    if not old.leaf:
        return type(old.value) in _BY_PARTS  # others may be told apart by identity
    return _equal(old.value, new.value)


def faint(place: Place) -> Place:
    """The same place, which holds nothing: things are told apart by where they lie in memory."""
    value = place.value
    if place.kind in SECOND_LOOK:
        value = None
    elif place.kind is Kind.KEYS:
        value = [key if is_value(key) else _lies_at(key) for key in value]
    elif not place.leaf or issubclass(type(value), torch.Tensor):
        value = type(value).__qualname__ if type(value) in _BY_PARTS else _lies_at(value)
    return Place(place.kind, None, None, value, place.path, True)


def _lies_at(thing: Any) -> tuple[str, int]:
    return type(thing).__qualname__, id(thing)


def _same_key(old: Any, new: Any) -> bool:
    """Whether keys are the same, as far as they have no parts that are places."""
    if old is new or not (is_value(old) or is_value(new)):
        return True
    return type(old) is type(new) and _equal(old, new)


def _equal(old: Any, new: Any) -> bool:
    try:
        if old != old and new != new:  # not a number
            return True
        return bool(old == new) and repr(old) == repr(new)
    except Exception:  # a comparison of the user's
        return False


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are constant tensors that a graph can take for each other."""
    tensors = type(a) is torch.Tensor and type(b) is torch.Tensor and not a.requires_grad and not b.requires_grad
    return tensors and (layout_of(a), a.stride()) == (layout_of(b), b.stride())
