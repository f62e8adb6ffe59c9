"""A data set held as tensors on one device, batched by index there, and binarised.

Example:
    >>> x = torch.tensor([[0, 255], [255, 0], [51, 204]], dtype=torch.uint8)
    >>> [tuple(batch.shape) for _, (batch,) in Examples(x, levels=255).batches(2)]
    [(2, 2), (1, 2)]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.errors import InputError, kind_of, one_of, positive, positive_int

Binarization = Literal["none", "threshold", "static", "dynamic"]


Batch = tuple[Tensor, ...]


Index = Tensor | slice | Sequence[int]


BINARIZATIONS = ("none", "threshold", "static", "dynamic")


class Examples:
    """A data set held as tensors on one device, batched by index there.

    Args:
        x: (N, *event_shape), of any dtype; bytes stay bytes until they are batched, to save memory.
        y: (N,) labels, for pictures and metrics only: they are no part of a batch.
        levels: a batch holds x / levels; 255 brings bytes into [0, 1], 1 leaves values as they are.
        binarize: "none"; "threshold", x > 0.5; "static", one Bernoulli draw per value, the same in every run;
            or "dynamic", a fresh draw at each access, from torch's global random state on the device.
        seed: of the static draw, whose bits depend on it and on the datum's place in this set, nothing else.
        extras: further tensors (N, ...) of a tuple batch, model(x, c, ...); they are passed on as they are.

    Raises:
        InputError: if the set is empty, lengths differ, or values to be binarised lie outside [0, 1].
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        levels: float = 1.0,
        binarize: Binarization = "none",
        seed: int = 0,
        extras: Sequence[Tensor] = (),
    ):
        if not isinstance(x, Tensor) or x.is_complex():
            raise InputError(f"x must be a tensor (N, *event_shape) of real numbers, not {kind_of(x)}.")
        if x.layout is not torch.strided or x.device.type == "meta" or x.requires_grad:
            raise InputError(
                f"x is a {x.layout} tensor on {x.device}{' that requires grad' if x.requires_grad else ''}; wanted: a dense "
                "tensor of data alone, as .to_dense() and .detach() give it."
            )
        if x.dim() == 0 or x.numel() == 0:
            raise InputError(f"x has shape {tuple(x.shape)}: there are no data in it.")
        for name, other in [("y", y), *((f"extras[{i}]", extra) for i, extra in enumerate(extras))]:
            if other is not None and (other.dim() == 0 or len(other) != len(x)):
                raise InputError(f"{name} has shape {tuple(other.shape)}, but x holds {len(x)} data.")
        self.x, self.y, self.levels = x, y, positive("levels", levels)
        self.extras = tuple(extra.to(x.device) for extra in extras)
        self._ids = torch.arange(len(x))
        self._binarise(binarize, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        shape = f"{len(self)} x {tuple(self.event_shape)}"
        return f"Examples({shape}, binarize={self.binarize!r}, device='{self.device}')"

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one datum."""
        return self.x.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the data lie and batches are made."""
        return self.x.device

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        held = [self.x, self.y, self._bits, *self.extras]
        return sum(t.nbytes for t in held if t is not None)

    def to(self, device: torch.device | str) -> Examples:
        """The same data on another device."""
        return self._mapped(lambda t: t.to(device))

    def take(self, index: Index) -> Examples:
        """The data at `index`, in that order; static bits stay with their datum."""
        at = as_index(index)
        return self._mapped(lambda t: t[at if isinstance(at, slice) else at.to(t.device)])

    def with_binarize(self, binarize: Binarization, seed: int = 0) -> Examples:
        """The same data, binarised otherwise; the tensors are shared."""
        new = copy.copy(self)
        new._binarise(binarize, seed)
        return new

    def with_labels(self, kept: int | None = None) -> Examples:
        """The same data with batches (x, y), y the labels.

        Args:
            kept: how many labels stay, as many of each class as can be, the first of each; the others become −1. None
                keeps all, 0 hides all.

        Raises:
            InputError: if the data have no labels, or fewer of some class than are to stay.
        """
        if self.y is None:
            raise InputError("The model reads labels, but the data have none.")
        y = self.y.long()
        if kept is not None:
            classes, place = y.unique(return_inverse=True)
            share, over = divmod(kept, len(classes))
            order = (place[:, None] == torch.arange(len(classes), device=y.device)).cumsum(0)  # (N, classes), from 1
            rank = order.gather(1, place[:, None])[:, 0]
            stays = rank <= share + (place < over).long()
            if int(stays.sum()) != kept:
                raise InputError(f"{kept} labels are to be kept, {share} of each class, but some class has fewer.")
            y = y.where(stays, -1)
        new = copy.copy(self)
        new.extras = (y.to(self.device),)
        return new

    def batch(self, index: Index) -> Batch:
        """The data at `index`: (x, *extras), scaled and binarised, x in a floating dtype.

        The dtype is x's own if that is floating and `levels` is 1, otherwise torch's default.
        """
        at = as_index(index)
        if not isinstance(at, slice):
            at = at.to(self.device, non_blocking=True)
        x, *extras = (
            t[at] if isinstance(at, slice) else t.index_select(0, at)
            for t in (self.x if self._bits is None else self._bits, *self.extras)
        )
        if self._bits is not None:
            return x.to(float_dtype(self.x, self.levels)), *extras
        return binarised(scaled(x, self.levels), self.binarize), *extras

    def batches(self, batch_size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Batch]]:
        """Pairs of index and batch: each datum of `order` (None: 0 to N-1) once; the last may be short."""
        positive_int("batch_size", batch_size)
        if order is None:
            for start in range(0, len(self), batch_size):
                index = torch.arange(start, min(start + batch_size, len(self)))
                yield index, self.batch(slice(start, start + batch_size))
        elif len(order):
            there = order.to(self.device, non_blocking=True)  # once, not once a batch
            for index, local in zip(order.split(batch_size), there.split(batch_size), strict=True):
                yield index, self.batch(local)

    def check_finite(self, missing_allowed: bool = False) -> None:
        """Raises an InputError that names the first datum holding NaN or infinity, and where in it.

        Args:
            missing_allowed: whether NaN in x stands for what is missing.
        """
        for name, values in [("x", self.x), *((f"extras[{i}]", t) for i, t in enumerate(self.extras))]:
            for part in slices(values):
                refuse_infinite(values[part], range(part.start, part.stop), name, missing_allowed and name == "x")

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Examples:
        new = copy.copy(self)
        new.x, new._ids, new.extras = change(self.x), change(self._ids), tuple(map(change, self.extras))
        new.y, new._bits = (None if t is None else change(t) for t in (self.y, self._bits))
        if len(new) == 0:
            raise InputError("The index takes no datum: there are no data left.")
        return new

    def _binarise(self, binarize: str, seed: int) -> None:
        self.binarize, self.seed, self._bits = one_of("binarize", binarize, BINARIZATIONS), seed, None
        if binarize == "none":
            return
        bits = torch.empty(self.x.shape if binarize == "static" else 0, dtype=torch.uint8)
        for part in slices(self.x):
            refuse_outside_unit(self.x[part], self.levels, range(part.start, part.stop), binarize)
            if binarize == "static":
                bits[part] = static_bits(scaled(self.x[part], self.levels), self._ids[part].tolist(), seed)
        self._bits = bits.to(self.device) if binarize == "static" else None


def as_index(index: Any) -> Any:
    """A slice as it is; anything else as a tensor of positions."""
    if isinstance(index, slice):
        return index
    index = torch.as_tensor(index)
    return index.nonzero().flatten() if index.dtype == torch.bool else index.long().reshape(-1)


def slices(x: Tensor) -> Iterator[slice]:
    """Slices of a few megabytes, so that checks need no second copy of the data."""
    rows = max(1, 2**22 // max(1, x[0].numel()))
    return (slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows))


def float_dtype(x: Tensor, levels: float) -> torch.dtype:
    """The dtype of a batch: x's own if it is floating and not to be scaled, otherwise torch's default."""
    return x.dtype if x.is_floating_point() and levels == 1 else torch.get_default_dtype()


def scaled(x: Tensor, levels: float) -> Tensor:
    """x / levels in the dtype of a batch."""
    x = x.to(float_dtype(x, levels))
    return x if levels == 1 else x / levels


def binarised(x: Tensor, binarize: str) -> Tensor:
    """x by "threshold" or "dynamic"; otherwise as it is."""
    if binarize == "threshold":
        return (x > 0.5).to(x.dtype)
    if binarize == "dynamic":
        return torch.rand_like(x).lt_(x)  # a fifth of the time of torch.bernoulli on a CPU
    return x


def static_bits(x: Tensor, ids: Sequence[int], seed: int) -> Tensor:
    """Draws of Bernoulli(x), x (B, *event_shape): each datum has its own generator, so order can't matter."""
    generator, noise = torch.Generator("cpu"), torch.empty(x.shape, dtype=torch.float32, device="cpu")
    for row, i in zip(noise, ids, strict=True):
        # the odd factor keeps apart the 32-bit states that seed and seed + 1 give to a set's data
        row.uniform_(generator=generator.manual_seed((seed * 0x9E3779B1 + i) % 2**32))
    return noise < x.cpu()


def _first(bad: Tensor, x: Tensor, ids: Sequence[int]) -> str:
    row, *position = bad.nonzero()[0].tolist()
    place = f" at position {tuple(position)}" if position else ""
    return f"{x[(row, *position)].item():g}{place} of datum {int(ids[row])}"


def refuse_infinite(x: Tensor, ids: Sequence[int], name: str = "x", missing_allowed: bool = False) -> None:
    """Raises an InputError that names the first datum, by `ids`, with a number that is not finite."""
    if x.is_floating_point() and (bad := x.isinf() if missing_allowed else ~x.isfinite()).any():
        raise InputError(f"{name} holds {_first(bad, x, ids)}; wanted: finite numbers.")


def refuse_outside_unit(x: Tensor, levels: float, ids: Sequence[int], binarize: str) -> None:
    """Raises an InputError that names the first datum with a value outside [0, levels]."""
    if x.dtype == torch.bool or (x.dtype == torch.uint8 and levels >= 255):
        return
    bad = ~((x >= 0) & (x <= levels))  # catches NaN as well
    if bad.any():
        scaled = "" if levels == 1 else f" (before it is divided by levels={levels:g})"
        raise InputError(
            f"binarize={binarize!r} wants values in [0, {levels:g}], but x holds "
            f"{_first(bad, x, ids)}{scaled}; scale the data, or leave them as they are with binarize='none'."
        )
