"""What tensors and Python's own containers hold, place by place."""

from __future__ import annotations

import collections
import types
from collections.abc import Iterator
from typing import Any

import torch

from pyro_vae.engine.places import FAMILIES, Kind, Place, family_of, layout_of
from pyro_vae.engine.things import MARKS, MISSING, is_value

CONTAINERS = (*FAMILIES, tuple, frozenset)
#: Of other types, the attributes count too.
PLAIN_CONTAINERS = (*CONTAINERS, collections.defaultdict)

Part = tuple[Kind, Any, Any, Any, str]  # of a place, but for whether it is a leaf


def parts_of(thing: Any, path: str) -> Iterator[Part]:
    """The parts of a container."""
    family = family_of(thing)
    if family in (list, collections.deque):
        yield Kind.LENGTH, thing, None, family.__len__(thing), path
        for i, value in enumerate(family.__iter__(thing)):
            yield Kind.ITEM, thing, i, value, f"{path}[{i}]"
    elif family is None:  # a tuple or a frozen set
        for i, value in enumerate(thing):
            yield Kind.PART, thing, i, value, f"{path}[{i}]"
    else:
        keys = list(family.__iter__(thing))
        yield Kind.KEYS, thing, None, keys, path
        if family is not set:
            kind = Kind.OF_CLASS if family is types.MappingProxyType else Kind.ENTRY
            for key, value in family.items(thing):
                yield kind, thing, key, value, f"{path}[{key!r}]" if type(key) in (str, int) else path
        yield from ((Kind.PART, thing, None, key, path) for key in keys if not is_value(key))


def places_of_tensor(tensor: torch.Tensor, path: str) -> list[Place]:
    """What counts of a tensor besides its numbers."""
    places = [
        Place(Kind.ATTRIBUTE, tensor, name, getattr(tensor, name, MISSING), f"{name} of {path}", True)
        for name in (MARKS if tensor.requires_grad else MARKS[:1])
    ]
    if not tensor.is_nested:
        places.append(Place(Kind.LAYOUT, tensor, None, layout_of(tensor), f"the shape of {path}", True))
        if tensor.layout is torch.strided:
            places.append(Place(Kind.STRIDE, tensor, None, tensor.stride(), f"the strides of {path}", True))
    return places
