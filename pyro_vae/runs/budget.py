"""A bound on the memory that building a model may take, so that a config with a huge size is told and not tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pyro_vae.data.opening import MIB, size_said
from pyro_vae.errors import InputError

#: What a tensor costs beside its numbers, with its module: many tiny ones count too.
_OVERHEAD = 16 * 1024
#: Functions of torch that make a tensor from sizes alone.
_SIZED = {
    getattr(torch, name)
    for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "eye", "linspace")
}


class Budget(TorchFunctionMode):
    """Refuses tensors, before they are made, once all that were made take more than `limit` bytes.

    Args:
        limit: bytes, of all tensors made within, whether they live on or not.
        what: is being built, for messages.
    """

    def __init__(self, limit: int, what: str):
        super().__init__()
        self.limit, self.what, self.used = limit, what, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sized = func in _SIZED
        if sized:
            self._take(_claimed(func, args, kwargs))
        made = func(*args, **kwargs)
        in_place = getattr(func, "__name__", "_").endswith("_")  # and attributes, whose getters end so too
        if isinstance(made, torch.Tensor) and not sized and not in_place and not made._is_view():
            self._take(made.numel() * made.element_size())
        return made

    def _take(self, count: int) -> None:
        if self.used + count > self.limit:
            raise InputError(
                f"{self.what} would take more than {size_said(self.limit)} of memory as the config describes it; its sizes "
                "must be smaller."
            )
        self.used += count


def _claimed(func: Any, args: Any, kwargs: Any) -> int:
    """Bytes of the tensor that a function of sizes is about to make, from its arguments."""
    sizes = kwargs.get("size", args[0] if args and isinstance(args[0], (list, tuple)) else args)
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    numbers = [abs(float(size)) for size in sizes if isinstance(size, (int, float))]
    if func in (torch.arange, torch.linspace):  # start, end and step or number
        count = max(numbers, default=0.0)
    elif func is torch.eye and len(numbers) == 1:
        count = numbers[0] ** 2
    else:
        count = math.prod(numbers)
    size = dtype.itemsize if isinstance(dtype, torch.dtype) else 8  # torch takes Python's bool, int and float too
    return _OVERHEAD + int(min(count, 1e18) * size)


@contextmanager
def bounded(limit: int | None, what: str) -> Iterator[None]:
    """Within, tensors of more than `limit` bytes in all are refused; None sets no bound.

    Args:
        limit: bytes.
        what: is being built, for messages.

    Raises:
        InputError: before the tensor that would be too much is made.
    """
    if limit is None:
        yield
        return
    with Budget(max(limit, 256 * MIB), what):
        yield
