"""Bad input meets one sentence that names the argument, what came and what is wanted."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch


class InputError(ValueError):
    """The caller's input can't be used; the message says which argument, what came and what is wanted."""

    def __init__(self, message: object = ""):
        # Pyro adds a table of all sites and parameters to an error that passes through a trace.
        text = re.split(r"\n *Trace Shapes:", str(message))[0]
        super().__init__(text if len(text) <= 2000 else f"{text[:1200]} ... {text[-400:]}")


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'mnist'?` for the closest of `choices`; empty when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """`value` if it is among `choices`; otherwise an InputError that suggests the nearest."""
    choices = list(choices)
    if value in choices:
        return value
    hint = nearest(str(value), [str(c) for c in choices])
    raise InputError(f"{name}={value!r} is not known.{hint} Choose one of {', '.join(map(str, choices))}.")


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
    return value


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{name}={value!r} must be a positive number.")
    return float(value)


def shape(name: str, value: Any) -> torch.Size:
    """`value` as a shape: at least one size, each at least 1."""
    sizes = [value] if isinstance(value, int) else value
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not sizes:
        raise InputError(f"{name}={value!r} must be a sequence of sizes such as (1, 28, 28) or (784,).")
    return torch.Size(_whole(name, sizes))


def widths(name: str, value: Any) -> list[int]:
    """`value` as a list of layer widths, possibly empty."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"{name}={value!r} must be a list of layer widths such as [400] or [].")
    return _whole(name, value)


def _whole(name: str, values: Sequence[Any]) -> list[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={values!r} must hold whole numbers of at least 1, but holds {value!r}.")
    return list(values)


def whole_seed(name: str, value: Any) -> int:
    """`value` as a seed that torch, NumPy and Python all take."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise InputError(f"{name}={value!r} must be a whole number from 0 to 2**32 - 1.")
    return value


def kind_of(value: Any) -> str:
    """What came, for a message: its class, and a tensor's shape and dtype."""
    shape = f" of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, torch.Tensor) else ""
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "") + shape


def first_sentence(error: BaseException) -> str:
    """The error's first sentence in one line; torch's run to a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z])\. ", text)[0][:200].rstrip(". ")


def check_lengths(lengths: torch.Tensor, num_data: int, longest: int) -> None:
    """Refuses lengths that are not whole numbers from 1 to `longest`, one for each of `num_data` sequences.

    Raises:
        InputError: naming the first such entry.
    """
    if lengths.shape != (num_data,):
        raise InputError(f"lengths has shape {tuple(lengths.shape)}, but x holds {num_data} sequences: ({num_data},).")
    bad = ((lengths < 1) | (lengths > longest) | (lengths != lengths.round())).nonzero()
    if len(bad):
        n = int(bad[0])
        raise InputError(f"lengths[{n}] = {lengths[n].item():g} must be a whole number from 1 to T={longest}.")
