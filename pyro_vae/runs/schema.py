"""What the files of a run folder hold: the schemas of config.yaml and of the checkpoint, each with its version.

Both files say their version as `format`; files of version 0.1 of the package say none, and count as 0. A file of a
later version than this module knows is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.data.opening import path_said
from pyro_vae.errors import InputError, kind_of

#: Versions that are written, and the latest that are read.
CONFIG_FORMAT, CHECKPOINT_FORMAT = 1, 1


@dataclass(frozen=True)
class Entry:
    """An entry of a file.

    Attributes:
        wanted: its values in words.
        fits: whether a value is one.
        needed: whether it must be there; otherwise it is None.
    """

    wanted: str
    fits: Callable[[Any], bool]
    needed: bool = True


def _whole(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096 and "\0" not in value


def _tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, torch.Tensor) for part in value.values())


def _tensor_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, torch.Tensor) for part in value)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _among(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words if isinstance(value, str) else False


def _history(value: Any) -> bool:
    """Rows of one epoch each, in order, with numbers alone."""
    if not isinstance(value, list) or not all(isinstance(row, dict) and row for row in value):
        return False
    rows = all(all(map(_number, row.values())) and {"loss", "seconds"} <= row.keys() for row in value)
    return rows and [row.get("epoch") for row in value] == list(range(1, len(value) + 1))


def _optimizer(value: Any) -> bool:
    if (
        not isinstance(value, dict)
        or not _mapping(value.get("state"))
        or not isinstance(value.get("param_groups"), list)
    ):
        return False
    places = all(place.isdecimal() and _mapping(entry) for place, entry in value["state"].items())
    groups = value["param_groups"]
    return places and all(_mapping(g) and isinstance(g.get("params"), list) and _number(g.get("lr")) for g in groups)


def _random(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("torch"), torch.Tensor):
        return False
    python = value.get("python")
    return (
        isinstance(python, list)
        and len(python) == 3
        and _or_none(lambda t: isinstance(t, torch.Tensor))(value.get("device"))
    )


def _within(value: Any) -> bool:
    """Where a run stands inside an epoch."""
    if not isinstance(value, dict) or not isinstance(value.get("total"), torch.Tensor):
        return False
    counts = all(_whole(0)(value.get(name)) for name in ("step", "skipped", "left_out"))
    return counts and _number(value.get("seconds")) and _number(value.get("norm")) and _random(value.get("random"))


#: What a command needs to score a run or to draw from it again.
CONFIG_ENTRIES: dict[str, Entry] = {
    "data": Entry("the name or path of a data set", _word),
    "data_root": Entry("a folder, or null", _or_none(_word), needed=False),
    "pixels": Entry("unit or integer", _among("unit", "integer")),
    "size": Entry("a whole number from 1 to 100,000, or null", _or_none(_whole(1, 100_000)), needed=False),
    "labels": Entry("a whole number, or null", _or_none(_whole(0)), needed=False),
    "epochs": Entry("a whole number of at least 1", _or_none(_whole(1)), needed=False),
    "seed": Entry("a whole number from 0 to 2**32 - 1", _whole(0, 2**32 - 1)),
    "samples": Entry("a whole number from 0 to 2**31", _or_none(_whole(0, 2**31)), needed=False),
    "binarize": Entry("none, threshold, static or dynamic", _among("none", "threshold", "static", "dynamic")),
    "objective": Entry("a class with its arguments, or null", _or_none(_mapping), needed=False),
    "fit": Entry("arguments of fit by name", _or_none(_mapping), needed=False),
}

#: A class and its arguments.
MODEL_ENTRIES: dict[str, Entry] = {
    "class_path": Entry("the dotted name of a class", _word),
    "init_args": Entry(
        "arguments by name, or 'given in Python'", _or_none(lambda v: _mapping(v) or isinstance(v, str)), needed=False
    ),
}

#: All that the rest of a run depends on.
CHECKPOINT_ENTRIES: dict[str, Entry] = {
    "settings": Entry("plain values by name", lambda value: _mapping(value) and all(map(_plain, value.values()))),
    "history": Entry("one mapping of numbers for each epoch from 1 on", _history),
    "best_epoch": Entry("a whole number, or null", _or_none(_whole(1))),
    "best_weights": Entry("tensors by name, or null", _or_none(_tensors)),
    "stopped_because": Entry("a word", lambda value: isinstance(value, str)),
    "order_seed": Entry("a whole number", _whole(0, 2**63)),
    "weights": Entry("tensors by name", _tensors),
    "average": Entry("tensors by place, or null", _or_none(_tensors)),
    "optimizer": Entry("an optimizer's state", _optimizer),
    "random": Entry("random states", _random),
    "ranks": Entry("torch's random state in each of several processes, or null", _or_none(_tensor_list), needed=False),
    "within": Entry("the place inside an epoch, or null", _or_none(_within), needed=False),
}


def checked(content: Any, schema: Mapping[str, Entry], where: str) -> dict[str, Any]:
    """The entries of a schema in `content`, None for those that may be missing; further entries are left out.

    Raises:
        InputError: naming the entry that is missing or has another value.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must hold entries by name, but holds {kind_of(content)}.")
    for name, entry in schema.items():
        if name not in content and entry.needed:
            raise InputError(f"{where} has no entry {name!r}; wanted: {entry.wanted}.")
        if name in content and not entry.fits(content[name]) and not (content[name] is None and not entry.needed):
            raise InputError(f"{where}: {name} is {value_said(content[name])}; wanted: {entry.wanted}.")
    return {name: content.get(name) for name in schema}


def check_format(content: Mapping[str, Any], latest: int, where: str) -> int:
    """The version of a file's schema.

    Raises:
        InputError: if it is later than what is known here, or no version.
    """
    found = content.get("format", 0)
    if not _whole(0)(found):
        raise InputError(f"{where}: format is {value_said(found)}; wanted: a whole number.")
    if found > latest:
        raise InputError(
            f"{where} has format {value_said(found)}, written by a later pyro_vae; upgrade this one, which reads {latest}."
        )
    return found


def value_said(value: Any) -> str:
    """A value for a message, in few words."""
    if isinstance(value, (Mapping, list, tuple, set, torch.Tensor)):
        return kind_of(value)
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    return path_said(text if len(text) <= 60 else text[:57] + "...")
