"""What a datum of a pair looks like, so that `generate` can make up a batch of the right kind."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch

from pyro_vae.errors import InputError
from pyro_vae.pair.hooks import KnowsItsData, num_conditions
from pyro_vae.pair.programs import Batch, ModelAndGuide, as_batch, device_of

# The shapes of the last batch that a pair met, so that `generate` can make up a batch of the right kind.
_met: weakref.WeakKeyDictionary[Any, tuple[tuple[torch.Size, torch.dtype], ...]] = weakref.WeakKeyDictionary()


def remember(pair: ModelAndGuide, batch: Batch) -> None:
    """Notes what one datum of this pair looks like."""
    with contextlib.suppress(TypeError):  # a pair that can't be weakly referenced
        _met[pair] = tuple((tensor.shape[1:], tensor.dtype) for tensor in batch)


def blank_batch(pair: ModelAndGuide, size: int, like: Any = None, condition: Any = None) -> Batch:
    """A batch of `size` zeros in the shape of the pair's data, with `condition` as its further tensors.

    Raises:
        InputError: if nothing says what a datum looks like, or conditions are missing.
    """
    if like is not None:
        shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in as_batch(like))
    elif isinstance(pair, KnowsItsData):
        further = ((torch.Size([]), torch.long),) * num_conditions(pair)
        shapes = ((torch.Size(pair.event_shape), torch.get_default_dtype()), *further)
    elif pair in _met:
        shapes = _met[pair]
    else:
        raise InputError("What x looks like is not known before the pair has been fitted; pass like=x[:1].")
    device = device_of(pair, "cpu" if like is None else as_batch(like)[0].device)
    extra = as_batch(condition) if condition is not None else ()
    if len(shapes) - 1 > len(extra):
        raise InputError(f"The model takes {len(shapes)} tensors; pass the {len(shapes) - 1} after x as condition=.")
    for tensor in extra:
        if len(tensor) != size:
            raise InputError(f"condition has {len(tensor)} rows, but num_samples={size} are asked for.")
    blank, dtype = shapes[0]
    return (torch.zeros(size, *blank, dtype=dtype, device=device), *(tensor.to(device) for tensor in extra))
