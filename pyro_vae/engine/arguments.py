"""The kind of a call: the tensors in its arguments, the plain values around them, and settings of torch and Pyro."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pyro_vae.engine.observe import ambient
from pyro_vae.engine.policy import MOST_VALUES
from pyro_vae.engine.things import PLAIN

_QUICK = {torch.Tensor, torch.nn.Parameter, *PLAIN}
_RECORDS = (argparse.Namespace, types.SimpleNamespace)


class Unkeyed(Exception):
    """An argument's changes cannot be seen; the message says which."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call, taken apart.

    Attributes:
        key: hashable; calls with equal keys run the same graph.
        leaves: tensors and plain values in the arguments.
        spec: how they are nested.
        places: which leaves are inputs of a graph: tensors, and numbers that are known to change.
        tensors: these leaves as tensors.
        objects: arguments that are watched, such as modules and functions.
    """

    key: Any
    leaves: Sequence[Any]
    spec: Any
    places: list[int]
    tensors: list[torch.Tensor]
    objects: tuple[Any, ...]

    def filled(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other tensors in the places of its own."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=True):
            leaves[i] = tensor
        return (tuple(leaves), {}) if isinstance(self.spec, int) else unflatten(self.spec, iter(leaves))

    @property
    def is_of_tensors(self) -> bool:
        """Whether the inputs are the arguments themselves, no number among them made a tensor."""
        return all(self.leaves[i] is tensor for i, tensor in zip(self.places, self.tensors, strict=True))

    @property
    def device(self) -> torch.device:
        """Where its first tensor lies."""
        return self.tensors[0].device if self.tensors else torch.device("cpu")


class Arguments:
    """Takes calls apart, and learns which plain arguments change from call to call."""

    def __init__(self) -> None:
        self._floats: dict[Any, dict[int, float | None]] = {}
        self._values: dict[Any, set[Any]] = {}

    def sort(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call, taken apart.

        Raises:
            Unkeyed: if an argument's changes cannot be seen, or a whole number or text keeps changing.
        """
        if not kwargs and all(map(_QUICK.__contains__, map(type, args))):
            leaves, spec = args, len(args)
        else:
            leaves = []
            spec = flatten((args, kwargs), leaves)
        parts: list[Any] = []
        places: list[int] = []
        objects: list[Any] = [] if isinstance(spec, int) else list(_kinds(spec))
        floats = self._floats.setdefault((len(leaves), spec), {})
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                places.append(i)
                if leaf.layout is not torch.strided or leaf.is_nested:
                    raise Unkeyed(f"argument {i + 1} is a sparse or nested tensor")
                same = next(k for k, other in enumerate(leaves) if other is leaf)
                parts.append((type(leaf), leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad, same))
                if getattr(leaf, "__dict__", None):
                    raise Unkeyed(f"argument {i + 1} is a tensor with attributes of its own ({', '.join(vars(leaf))})")
            elif type(leaf) is float:
                if repr(floats.setdefault(i, leaf)) != repr(leaf):  # which tells 0.0 from -0.0
                    floats[i] = None  # it changes
                parts.append(("number", repr(floats[i])))
                if floats[i] is None:
                    places.append(i)
            elif isinstance(leaf, PLAIN):
                self._note(i, leaf, len(leaves))
                if type(leaf) not in _QUICK:  # which may have attributes and properties
                    objects += (leaf, type(leaf)) if hasattr(leaf, "__dict__") else (type(leaf),)
                parts.append((type(leaf), repr(leaf) if isinstance(leaf, complex) else leaf))
            elif isinstance(leaf, torch.nn.Module) or (callable(leaf) and hasattr(leaf, "__code__")):
                objects.append(leaf)
                parts.append(_Identity(leaf))
                self._note(i, _Identity(leaf), len(leaves))
            else:
                raise Unkeyed(f"an argument is a {type(leaf).__name__}, whose changes cannot be seen")
        tensors = _as_tensors(leaves, places)
        return Call((tuple(parts), spec, ambient()), leaves, spec, places, tensors, tuple(objects))

    def _note(self, place: int, value: Any, count: int) -> None:
        if isinstance(value, (bool, type(None), torch.dtype, torch.device)):
            return
        values = self._values.setdefault((count, place), set())
        values.add(value)
        if len(values) > MOST_VALUES:
            value = getattr(value, "thing", value)
            what = {int: "a whole number", str: "a text"}.get(type(value), f"a {type(value).__name__}")
            raise Unkeyed(
                f"argument {place + 1}, {what}, has had {len(values)} values, and each would need a graph of its own; "
                "pass a tensor or a float"
            )


def _as_tensors(leaves: Sequence[Any], places: list[int]) -> list[torch.Tensor]:
    """The leaves at these places, numbers as tensors."""
    like = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    dtype = torch.float64 if any(t.dtype is torch.float64 for t in like) else torch.get_default_dtype()
    device = like[0].device if like else None
    return [
        leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf, dtype=dtype, device=device)
        for leaf in map(leaves.__getitem__, places)
    ]


class _Identity:
    """A thing as a key: itself and no other, which lives as long as the key."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


# --- nesting --------------------------------------------------------------------------------------------------------

_LEAF = ("leaf",)


def flatten(thing: Any, leaves: list[Any]) -> Any:
    """Appends the leaves of nested lists, tuples, dicts, namespaces and dataclasses; returns how they are nested."""
    kind = type(thing)
    if kind in (list, tuple) or (isinstance(thing, tuple) and hasattr(thing, "_fields")):
        return kind, None, tuple(flatten(part, leaves) for part in thing)
    if kind is functools.partial:
        return kind, (), tuple(flatten(part, leaves) for part in (thing.func, thing.args, thing.keywords))
    if kind in (dict, collections.OrderedDict):
        return kind, tuple(thing), tuple(flatten(part, leaves) for part in thing.values())
    if kind in _RECORDS or (
        dataclasses.is_dataclass(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__")
    ):
        return kind, tuple(vars(thing)), tuple(flatten(part, leaves) for part in vars(thing).values())
    leaves.append(thing)
    return _LEAF


def _kinds(spec: Any) -> Iterator[type]:
    """The classes of what was taken apart, but for Python's own."""
    if spec is not _LEAF:
        if spec[0].__module__ != "builtins":
            yield spec[0]
        for inner in spec[2]:
            yield from _kinds(inner)


def unflatten(spec: Any, leaves: Iterator[Any]) -> Any:
    """The thing that `flatten` took apart, of other leaves."""
    if spec is _LEAF:
        return next(leaves)
    kind, names, inner = spec
    parts = [unflatten(part, leaves) for part in inner]
    if names is None:
        return kind._make(parts) if hasattr(kind, "_make") else kind(parts)
    if kind is functools.partial:
        return kind(parts[0], *parts[1], **parts[2])
    if issubclass(kind, dict):
        return kind(zip(names, parts, strict=True))
    new = kind.__new__(kind)
    vars(new).update(zip(names, parts, strict=True))
    return new
