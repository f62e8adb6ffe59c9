"""Tells between calls whether anything that a program can reach has changed."""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import operator
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro_vae.engine import compat
from pyro_vae.engine.observe import Executed
from pyro_vae.engine.reach import Kind, Place, Reach
from pyro_vae.engine.things import MARKS, MISSING, contents


class Watch:
    """What programs reach, as it was when the watch was made.

    Each call asks, so places are compared by identity in columns, without Python running place by place. Where something is
    not the same object, everything is looked at again and compared by value.

    Args:
        roots: gives programs, and other things that a call depends on.
        executed: what calls have executed.

    Attributes:
        moved: pairs of tensors, of which the second took the place of the first.
        written: the tensors that a call in this state writes to, once one has been observed.

    Raises:
        Unseen: if something is reached whose changes cannot be seen.
    """

    def __init__(self, roots: Callable[[], Sequence[Any]], executed: Executed):
        self._roots, self._executed = roots, executed
        self._further: list[Place] = []
        self.moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.written: list[torch.Tensor] = []
        self._rooted = tuple(roots())
        self._set(Reach(self._rooted, executed).places)

    def add(self, params: Mapping[str, torch.Tensor]) -> None:
        """Watches Pyro's parameters too: that the store holds the same, and that none is frozen or gets a hook."""
        stored, constraints, _ = compat.store_parts()
        holder, key = compat.store_place()
        self._further.append(Place(Kind.ENTRY, holder, key, stored, "Pyro's param store", True))
        for name, tensor in params.items():
            if name in stored:
                self._further.append(Place(Kind.ENTRY, stored, name, tensor, f"the parameter {name!r}", True))
                constraint = constraints.get(name, MISSING)
                self._further.append(Place(Kind.ENTRY, constraints, name, constraint, f"{name!r}'s constraint", True))
            for mark in MARKS if id(tensor) not in self._ordinals else ():
                value = getattr(tensor, mark)
                self._further.append(Place(Kind.ATTRIBUTE, tensor, mark, value, f"{mark} of {name!r}", True))
        self._set(self.places)

    def changed(self, follow: bool = False) -> str | None:
        """Where something is not what it was, for a message; None if all is as it was.

        Args:
            follow: let a constant tensor be replaced by another one like it, and note the two in `moved`.

        Raises:
            Unseen: if something has come whose changes cannot be seen.
        """
        if self._as_it_was():
            return None
        for place in self._further:
            read = dict.get if place.kind is Kind.ENTRY else getattr
            if read(place.holder, place.key, MISSING) is not place.value:
                return place.path
        roots = tuple(self._roots())
        now = Reach(roots, self._executed).places
        moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for old, new in itertools.zip_longest(self.places, now):
            if old is None or new is None or not _same(old, new, moved if follow else None):
                return (new or old).path
        moves = [(old, new) for old, new in moved.values() if old is not new]
        if len({id(new) for _, new in moved.values()}) < len(moved) and moves:
            return "a tensor that is reached in several ways"
        self.moved += moves
        self._rooted = roots
        self._set(now)
        return None

    def aliases(self, tensors: Sequence[torch.Tensor]) -> tuple[int | None, ...]:
        """Which of these tensors are ones that the programs reach anyway, by their place among those."""
        return tuple(map(self._ordinals.get, map(id, tensors)))

    def tensors(self) -> Iterator[torch.Tensor]:
        """The watched tensors."""
        return (place.value for place in self.places if issubclass(type(place.value), torch.Tensor))

    def _set(self, places: list[Place]) -> None:
        self.places = places
        parted: dict[Any, list[Place]] = {}
        for place in [*places, *self._further]:
            if place.kind is Kind.PART:
                continue
            kind = (place.kind, issubclass(type(place.holder), list)) if place.kind is Kind.ITEM else place.kind
            parted.setdefault(kind, []).append(place)
        self._ordinals = {id(tensor): i for i, tensor in enumerate(self.tensors())}
        self._columns = [
            (_COLUMNS[kind], *([place[i] for place in part] for i in (1, 2, 3)))
            for kind, part in sorted(parted.items(), key=lambda pair: pair[0] is not Kind.LENGTH)  # items after lengths
        ]

    def _as_it_was(self) -> bool:
        roots = self._roots()
        if len(roots) != len(self._rooted) or not all(map(operator.is_, roots, self._rooted)):
            return False
        return all(same(holders, keys, values) for same, holders, keys, values in self._columns)


def _by_identity(read: Callable[..., Any], *further: Any) -> Callable[..., bool]:
    def same(holders: list[Any], keys: list[Any], values: list[Any]) -> bool:
        return all(map(operator.is_, map(read, holders, keys, *map(itertools.repeat, further)), values))

    return same


def _by_value(read: Callable[[Any], Any]) -> Callable[..., bool]:
    return lambda holders, keys, values: all(map(operator.eq, map(read, holders), values))


_COLUMNS: dict[Any, Callable[..., bool]] = {
    Kind.ENTRY: _by_identity(dict.get, MISSING),
    Kind.OF_CLASS: _by_identity(types.MappingProxyType.get, MISSING),
    (Kind.ITEM, True): _by_identity(list.__getitem__),
    (Kind.ITEM, False): _by_identity(collections.deque.__getitem__),
    Kind.ATTRIBUTE: _by_identity(getattr, MISSING),
    Kind.CELL: lambda cells, keys, values: all(map(operator.is_, map(contents, cells), values)),
    Kind.SIZE: _by_value(len),
    Kind.LENGTH: _by_value(len),
    Kind.KEYS: _by_value(list),
    Kind.VALUES: _by_value(frozenset),
    Kind.TYPE: lambda holders, keys, values: all(map(operator.is_, map(type, holders), values)),
    Kind.REFERENT: lambda holders, keys, values: all(h() is v for h, v in zip(holders, values, strict=True)),
    Kind.CONTENT: lambda holders, reads, values: all(
        read(holder) == value for holder, read, value in zip(holders, reads, values, strict=True)
    ),
}


_BY_PARTS = frozenset(
    [
        *(dict, list, tuple, set, frozenset, collections.deque, collections.OrderedDict, collections.defaultdict),
        *(types.MappingProxyType, np.ndarray, bytearray, weakref.ref, types.SimpleNamespace, argparse.Namespace),
        *(types.FunctionType, types.MethodType, functools.partial),
    ]
)


def _same(old: Place, new: Place, moved: dict[int, tuple[torch.Tensor, torch.Tensor]] | None) -> bool:
    """Whether two places hold the same for a graph; of what is not a leaf, the parts are compared by themselves."""
    if (old.kind, old.path, old.leaf) != (new.kind, new.path, new.leaf) or type(old.value) is not type(new.value):
        return False
    if old.kind is Kind.SIZE:
        return True
    if issubclass(type(old.value), torch.Tensor):
        if old.value is not new.value and (moved is None or not _alike(old.value, new.value)):
            return False
        return moved is None or moved.setdefault(id(old.value), (old.value, new.value))[1] is new.value
    if old.value is new.value:
        return True
    if not old.leaf:
        return type(old.value) in _BY_PARTS  # others may be told apart by identity
    if old.value != old.value and new.value != new.value:  # not a number
        return True
    try:
        return bool(old.value == new.value) and repr(old.value) == repr(new.value)
    except Exception:  # a comparison of the user's
        return False


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are constant tensors that a graph can take for each other."""
    tensors = type(a) is torch.Tensor and type(b) is torch.Tensor and not a.requires_grad and not b.requires_grad
    return tensors and (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
