"""Data: named sets, files and folders, held as tensors on the device or streamed past it, and binarised.

Examples:
    >>> x = torch.tensor([[0, 255], [255, 0], [51, 204]], dtype=torch.uint8)
    >>> [tuple(batch.shape) for _, (batch,) in Examples(x, levels=255).batches(2)]
    [(2, 2), (1, 2)]
    >>> as_examples(x, binarize="threshold").batch(slice(2, 3))
    (tensor([[0., 1.]]),)
"""

from __future__ import annotations

import copy
import csv
import functools
import inspect
import itertools
import logging
import numbers
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from pyro_vae.checks import InputError, nearest, one_of, positive, positive_int

Binarization = Literal["none", "threshold", "static", "dynamic"]
Batch = tuple[Tensor, ...]
Index = Tensor | slice | Sequence[int]
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
log = logging.getLogger("pyro_vae")


# --- held as tensors ---------------------------------------------------------------------------------------


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
            raise InputError(f"x must be a tensor (N, *event_shape) of real numbers, not {_kind(x)}.")
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
        index = _index(index)
        return self._mapped(lambda t: t[index if isinstance(index, slice) else index.to(t.device)])

    def with_binarize(self, binarize: Binarization, seed: int = 0) -> Examples:
        """The same data, binarised otherwise; the tensors are shared."""
        new = copy.copy(self)
        new._binarise(binarize, seed)
        return new

    def batch(self, index: Index) -> Batch:
        """The data at `index`: (x, *extras), scaled and binarised, x in a floating dtype.

        The dtype is x's own if that is floating and `levels` is 1, otherwise torch's default.
        """
        index = _index(index)
        if not isinstance(index, slice):
            index = index.to(self.device, non_blocking=True)
        x, *extras = (
            t[index] if isinstance(index, slice) else t.index_select(0, index)
            for t in (self.x if self._bits is None else self._bits, *self.extras)
        )
        if self._bits is not None:
            return x.to(_float_dtype(self.x, self.levels)), *extras
        return _binary(_scaled(x, self.levels), self.binarize), *extras

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

    def check_finite(self) -> None:
        """Raises an InputError that names the first datum holding NaN or infinity, and where in it."""
        for name, values in [("x", self.x), *((f"extras[{i}]", t) for i, t in enumerate(self.extras))]:
            for part in _slices(values):
                _refuse_infinite(values[part], range(part.start, part.stop), name)

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
        for part in _slices(self.x):
            _refuse_outside_unit(self.x[part], self.levels, range(part.start, part.stop), binarize)
            if binarize == "static":
                bits[part] = _static(_scaled(self.x[part], self.levels), self._ids[part].tolist(), seed)
        self._bits = bits.to(self.device) if binarize == "static" else None


def _index(index: Any) -> Any:
    """A slice as it is; anything else as a tensor of positions."""
    if isinstance(index, slice):
        return index
    index = torch.as_tensor(index)
    return index.nonzero().flatten() if index.dtype == torch.bool else index.long().reshape(-1)


def _slices(x: Tensor) -> Iterator[slice]:
    """Slices of a few megabytes, so that checks need no second copy of the data."""
    rows = max(1, 2**22 // max(1, x[0].numel()))
    return (slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows))


def _float_dtype(x: Tensor, levels: float) -> torch.dtype:
    return x.dtype if x.is_floating_point() and levels == 1 else torch.get_default_dtype()


def _scaled(x: Tensor, levels: float) -> Tensor:
    x = x.to(_float_dtype(x, levels))
    return x if levels == 1 else x / levels


def _binary(x: Tensor, binarize: str) -> Tensor:
    if binarize == "threshold":
        return (x > 0.5).to(x.dtype)
    if binarize == "dynamic":
        return torch.rand_like(x).lt_(x)  # a fifth of the time of torch.bernoulli on a CPU
    return x


def _static(x: Tensor, ids: Sequence[int], seed: int) -> Tensor:
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


def _refuse_infinite(x: Tensor, ids: Sequence[int], name: str = "x") -> None:
    if x.is_floating_point() and not (finite := torch.isfinite(x)).all():
        raise InputError(f"{name} holds {_first(~finite, x, ids)}; wanted: finite numbers.")


def _refuse_outside_unit(x: Tensor, levels: float, ids: Sequence[int], binarize: str) -> None:
    if x.dtype == torch.bool or (x.dtype == torch.uint8 and levels >= 255):
        return
    bad = ~((x >= 0) & (x <= levels))  # catches NaN as well
    if bad.any():
        scaled = "" if levels == 1 else f" (before it is divided by levels={levels:g})"
        raise InputError(
            f"binarize={binarize!r} wants values in [0, {levels:g}], but x holds "
            f"{_first(bad, x, ids)}{scaled}; scale the data, or leave them as they are with binarize='none'."
        )


# --- streamed ----------------------------------------------------------------------------------------------


class _Items(Dataset):
    """A map-style data set's items as (tensors of the batch, label or None), checked to be alike."""

    def __init__(self, dataset: Dataset, keep: int | None):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(f"{_kind(dataset)} has no index or no length; wrap it in a DataLoader.")
        if len(dataset) == 0:
            raise InputError(f"{_kind(dataset)} is empty.")
        self.dataset, self.keep, self.ids = dataset, keep, torch.arange(len(dataset))
        spread = torch.linspace(0, len(dataset) - 1, min(len(dataset), 16)).long().tolist()
        probes = [_item(dataset[i], keep)[0] for i in spread]
        self.first, self.levels = probes[0], max(_levels(probe[0]) for probe in probes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[Batch, int | None]:
        i = int(self.ids[position])
        tensors, label = _item(self.dataset[i], self.keep)
        for t, first in zip(tensors, self.first, strict=True):
            if (t.shape, t.dtype) != (first.shape, first.dtype):
                raise InputError(
                    f"Datum {i} is {tuple(t.shape)} of {t.dtype}, but datum 0 is {tuple(first.shape)} of "
                    f"{first.dtype}; wanted: one shape and dtype throughout."
                )
        return tensors, label


class Stream:
    """A data set too large to hold, read anew in each pass by worker processes; batches as from `Examples`.

    Args:
        source: a map-style Dataset, or a DataLoader of yours. A loader is iterated as it is, with its own
            batch size, order and workers, whatever `batches` is asked for.
        levels: a batch holds x / levels; None: 255 for bytes (1 if they are just 0 and 1), else 1.
        binarize: as in `Examples`; "static" has the same bits there and here.
        seed: of the static draw.
        device: where batches go.
        num_workers: processes that read a Dataset; None: one less than the CPUs, at most 4.
        keep: how many leading elements of an item make the batch; None: the first, as labels usually follow.

    Raises:
        InputError: if the source is empty or has no length, or if binarize is "static" and a loader shuffles.
    """

    def __init__(
        self,
        source: Dataset | DataLoader,
        *,
        levels: float | None = None,
        binarize: Binarization = "none",
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_workers: int | None = None,
        keep: int | None = None,
    ):
        self.source, self.keep = source, None if keep is None else positive_int("keep", keep)
        self.device, self.binarize, self.seed = torch.device(device), "none", seed
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = min(4, cpus - 1) if num_workers is None else num_workers
        self._items = None if isinstance(source, DataLoader) else _Items(source, self.keep)
        first = self._first_of_loader() if self._items is None else self._items.first[0][None]
        guess = _levels(first) if self._items is None else self._items.levels
        self.levels, self.event_shape = (
            positive("levels", guess if levels is None else levels),
            first.shape[1:],
        )
        if len(self) == 0:
            raise InputError(f"The DataLoader over {_kind(source.dataset)} yields no data.")
        self._binarise(binarize, seed)

    def __len__(self) -> int:
        if self._items is not None:
            return len(self._items)
        loader = self.source
        try:
            if type(loader.batch_sampler) is not BatchSampler:
                return len(loader.dataset)
            size = len(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler)
        except TypeError:
            raise InputError(f"{_kind(loader.dataset)} has no length; give it a __len__.") from None
        return size - size % loader.batch_size if loader.drop_last else size

    def __repr__(self) -> str:
        shape = f"{len(self)} x {tuple(self.event_shape)}"
        return f"Stream({shape}, binarize={self.binarize!r}, device='{self.device}')"

    def to(self, device: torch.device | str) -> Stream:
        """The same stream, to another device."""
        new = copy.copy(self)
        new.device = torch.device(device)
        return new

    def take(self, index: Index) -> Stream:
        """A stream of the data at `index`; static bits stay with their datum."""
        if self._items is None:
            raise InputError("Data can't be taken out of a DataLoader by index; pass its Dataset.")
        new, new_items = copy.copy(self), copy.copy(self._items)
        new_items.ids = new_items.ids[_index(index)]
        new._items = new_items
        if len(new) == 0:
            raise InputError("The index takes no datum: there are no data left.")
        return new

    def with_binarize(self, binarize: Binarization, seed: int = 0) -> Stream:
        """The same stream, binarised otherwise."""
        new = copy.copy(self)
        new._binarise(binarize, seed)
        return new

    def batches(self, batch_size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Batch]]:
        """Pairs of index and batch as from `Examples.batches`; from a DataLoader the index just counts on."""
        positive_int("batch_size", batch_size)
        pairs = self._from_loader() if self._items is None else self._from_items(batch_size, order)
        for index, (x, *extras) in pairs:
            extras = (t.to(self.device, non_blocking=True) for t in extras)
            yield index, (self._ready(x, index), *extras)

    def _from_items(self, batch_size: int, order: Tensor | None) -> Iterator[tuple[Tensor, Batch]]:
        order = torch.arange(len(self)) if order is None else order.cpu()
        if len(order):
            loader = DataLoader(
                self._items,
                batch_size,
                sampler=order.tolist(),
                num_workers=self.num_workers,
                collate_fn=_stacked,
                pin_memory=self.device.type == "cuda",
            )
            for batch, index in zip(loader, order.split(batch_size), strict=True):
                yield index, batch

    def _from_loader(self) -> Iterator[tuple[Tensor, Batch]]:
        start = 0
        for item in self.source:
            batch, _ = _item(item, self.keep)
            yield torch.arange(start, start + len(batch[0])), batch
            start += len(batch[0])

    def _ready(self, x: Tensor, index: Tensor) -> Tensor:
        ids = index if self._items is None else self._items.ids[index]
        _refuse_infinite(x, ids)
        if self.binarize != "none":
            _refuse_outside_unit(x, self.levels, ids, self.binarize)
        if self.binarize == "static":
            bits = _static(_scaled(x, self.levels), ids.tolist(), self.seed)
            return bits.to(self.device, _float_dtype(x, self.levels))
        return _binary(_scaled(x.to(self.device, non_blocking=True), self.levels), self.binarize)

    def _binarise(self, binarize: str, seed: int) -> None:
        one_of("binarize", binarize, BINARIZATIONS)
        if binarize == "static" and self._items is None:
            loader = self.source
            fixed = type(loader.sampler) is SequentialSampler and type(loader.batch_sampler) is BatchSampler
            if not fixed:
                raise InputError(
                    "binarize='static' needs to know which datum is which, but this DataLoader has "
                    "an order of its own; pass its Dataset, a DataLoader with shuffle=False, or "
                    "binarize='dynamic'."
                )
        self.binarize, self.seed = binarize, seed

    def _first_of_loader(self) -> Tensor:
        """The first data, read past the loader's workers and sampler, which leaves the random state alone."""
        loader = self.source
        if loader.batch_sampler is None:
            raise InputError("The DataLoader has batch_size=None; wanted: a loader that makes batches.")
        if isinstance(loader.dataset, IterableDataset):
            few = list(itertools.islice(loader.dataset, 16))
        else:
            few = [loader.dataset[i] for i in range(min(16, len(loader.dataset)))]
        if not few:
            raise InputError(f"{_kind(loader.dataset)} is empty.")
        return _item(loader.collate_fn(few), self.keep)[0][0]


def _stacked(items: list[tuple[Batch, int | None]]) -> Batch:
    return tuple(torch.stack(column) for column in zip(*(tensors for tensors, _ in items), strict=True))


def _item(item: Any, keep: int | None) -> tuple[Batch, int | None]:
    """The tensors among an item's leading elements, and its label if the second is a whole number."""
    parts = item if isinstance(item, (tuple, list)) else (item,)
    if len(parts) < (keep or 1):
        raise InputError(f"keep={keep}, but an item of the data set has {len(parts)} elements.")
    label = parts[1] if len(parts) > 1 and (keep or 1) == 1 else None
    if isinstance(label, Tensor) and label.dim() == 0 and not label.is_floating_point():
        label = int(label)
    return tuple(map(_tensor, parts[: keep or 1])), int(label) if isinstance(label, numbers.Integral) else None


def _tensor(value: Any) -> Tensor:
    """A tensor from a tensor, a picture (uint8, channels first), a NumPy array or a number."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "getbands"):  # a PIL image; PIL need not be imported to know
        return _pixels(value)
    if not hasattr(value, "__array__") and not isinstance(value, numbers.Real):
        raise InputError(f"{_kind(value)} is no datum; wanted: a tensor, a NumPy array or a PIL image.")
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise InputError(f"An array of dtype {array.dtype} holds no real numbers.")
    if array.dtype.kind == "f" and array.itemsize >= 8:  # NumPy's default, which nobody chose: becomes torch's
        return torch.from_numpy(np.require(array, np.float64, "CW")).to(torch.get_default_dtype())
    wide = array.dtype.kind == "u" and array.itemsize > 1  # torch hardly computes with these
    dtype = np.int64 if wide else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, "CW"))


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "") + shape


def _levels(x: Tensor) -> float:
    """255 for bytes, unless they are 0 and 1 alone, as binarised data are kept."""
    return 255.0 if x.dtype == torch.uint8 and x.numel() and x.max() > 1 else 1.0


# --- whatever came, as data --------------------------------------------------------------------------------


def as_examples(
    x: Any,
    *,
    binarize: Binarization | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    keep: int | None = None,
    max_bytes: int | None = None,
) -> Examples | Stream:
    """Data in any of the usual forms, ready to be batched on `device`.

    Bytes are taken for pixels and scaled to [0, 1] (unless they are 0 and 1 already); NumPy's float64 becomes
    torch's default dtype; other values stay as they are.

    Args:
        x: a tensor or NumPy array (N, *event_shape); a tuple or list of them, for model(x, c, ...); a
            map-style Dataset, which is read once and held if it fits, and streamed otherwise; a DataLoader,
            which is streamed; a name, file or folder for `load`, of which the training part is taken;
            Examples or a Stream.
        binarize: as in `Examples`; None leaves Examples and Streams as they are, otherwise it means "none".
        seed: of the static binarisation.
        device: where batches are wanted.
        keep: how many leading elements of an item make the batch; None: the first of a Dataset or DataLoader,
            whose second is usually a label, and all of a tuple.
        max_bytes: memory that a Dataset may take; None: half of what is free.

    Raises:
        InputError: if x is nothing of the kind, is empty, or is not of one shape.
    """
    if isinstance(x, (str, Path)):
        x = load(x).train
    elif isinstance(x, DataLoader):
        x = Stream(x, keep=keep)
    elif isinstance(x, TensorDataset):
        labels = x.tensors[1] if len(x.tensors) > 1 and (keep or 1) == 1 else None
        x = _from_tensors(x.tensors[: keep or 1], labels)
    elif isinstance(x, Dataset):
        x = _from_dataset(x, keep, device, max_bytes)
    elif not isinstance(x, (Examples, Stream)):
        x = _from_tensors((x if isinstance(x, (tuple, list)) else (x,))[:keep])
    return (x if binarize is None else x.with_binarize(binarize, seed)).to(device)


def _from_tensors(values: Sequence[Any], y: Any = None) -> Examples:
    for value in values:
        if not hasattr(value, "__array__") or hasattr(value, "getbands"):
            raise InputError(
                f"Data can't be {_kind(value)}; wanted: a tensor, a NumPy array, a tuple of those, "
                "a Dataset, a DataLoader, data.Examples, or the name of a data set, file or folder."
            )
    if not values:
        raise InputError("Data can't be an empty tuple; wanted: (x,) or (x, c, ...).")
    x, *extras = map(_tensor, values)
    return Examples(x, _labels(y), levels=_levels(x), extras=extras)


def _labels(values: Any) -> Tensor | None:
    """Labels (N,) as whole numbers, words being numbered alphabetically; None for targets of other kinds."""
    if values is None:
        return None
    import numpy as np

    values = np.asarray(values)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1:
        return None
    if values.dtype.kind in "OSU":
        values = np.unique(values.astype(str), return_inverse=True)[1]
    whole = values.dtype.kind in "biu" or (np.isfinite(values).all() and (values % 1 == 0).all())
    return torch.from_numpy(values.astype(np.int64)) if whole else None


def _from_dataset(
    dataset: Dataset, keep: int | None, device: Any = "cpu", max_bytes: int | None = None, threads: int = 0
) -> Examples | Stream:
    """The data set read into memory if it fits, otherwise streamed."""
    items = _Items(dataset, keep)
    size, room = len(items) * sum(t.nbytes for t in items.first), max_bytes
    if room is None:
        room = _free_bytes(torch.device(device)) // 2
    asked = f"{size / 2**20:.1f} of {room / 2**20:.1f} MiB"
    what = f"{type(dataset).__name__} of {len(items)} data would take {asked}"
    if size > room:
        log.warning("%s: streamed, and so read anew in each pass.", what)
        return Stream(dataset, levels=items.levels, keep=keep)
    log.info("%s: read once and held, so that random transforms are drawn once.", what)
    (x, *extras), y = _read(items, threads)
    return Examples(x, y, levels=items.levels, extras=extras)


def _read(items: _Items, threads: int) -> tuple[list[Tensor], Tensor | None]:
    """All items in one tensor for each element, and the labels if every item has one."""
    held = [torch.empty((len(items), *t.shape), dtype=t.dtype) for t in items.first]
    labels: list[int | None] = [None] * len(items)

    def put(i: int) -> None:
        tensors, labels[i] = items[i]
        for whole, t in zip(held, tensors, strict=True):
            whole[i] = t

    if threads:
        _in_threads(put, range(len(items)), threads)
    else:  # a user's Dataset may hold what only this thread may touch
        for i in range(len(items)):
            put(i)
    return held, None if None in labels else torch.tensor(labels)


def _in_threads(function: Callable[[Any], Any], values: Sequence[Any], threads: int = 8) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, values))


def _free_bytes(device: torch.device) -> int:
    """Memory that is free, in bytes: the host's, and the device's if that is less."""
    try:
        meminfo = Path("/proc/meminfo").read_text()  # counts what the page cache can give back; sysconf does not
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024
        group = Path("/sys/fs/cgroup")  # a container's own limit
        limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            cached = int(re.search(r"inactive_file (\d+)", (group / "memory.stat").read_text())[1])
            free = min(free, int(limit) - int((group / "memory.current").read_text()) + cached)
    except (OSError, TypeError, ValueError):
        known = {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ()))
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 4 * 2**30
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free


# --- named sets, files and folders -------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """A data set in its three parts.

    Args:
        name: the source as it was given to `load`.
        train: the data to fit.
        validation: the data to choose by.
        test: the data to report on.
    """

    name: str
    train: Examples | Stream
    validation: Examples | Stream
    test: Examples | Stream

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one datum."""
        return self.train.event_shape


_TRAIN_TEST = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})
# name: torchvision's class, arguments that ask for its training and test part, how its pictures are prepared
_TORCHVISION: dict[str, tuple[str, tuple[dict, ...], dict]] = {
    "mnist": ("MNIST", _TRAIN_TEST, {}),
    "fashion_mnist": ("FashionMNIST", _TRAIN_TEST, {}),
    "kmnist": ("KMNIST", _TRAIN_TEST, {}),
    "qmnist": ("QMNIST", _TRAIN_TEST, {}),
    "emnist": ("EMNIST", tuple({"split": "balanced", **part} for part in _TRAIN_TEST), {}),
    "usps": ("USPS", _TRAIN_TEST, {}),
    "cifar10": ("CIFAR10", _TRAIN_TEST, {}),
    "cifar100": ("CIFAR100", _TRAIN_TEST, {}),
    "svhn": ("SVHN", _SPLIT, {}),
    "stl10": ("STL10", _SPLIT, {}),
    "omniglot": ("Omniglot", ({"background": True}, {"background": False}), {"size": 28, "invert": True}),
    "celeba": ("CelebA", (*_SPLIT, {"split": "valid"}), {"crop": 148, "size": 64}),
}
NAMES = ("digits", *_TORCHVISION)


def load(
    source: str | Path = "digits",
    *,
    root: str | Path | None = None,
    binarize: Binarization = "none",
    seed: int = 0,
    pixels: Literal["unit", "integer"] = "unit",
    size: int | None = None,
    download: bool = True,
) -> Splits:
    """A data set by name or path, in three parts that are the same in every run.

    "digits" comes with scikit-learn: 1,797 scans of 8 x 8, which have no split of their own and are cut here
    into 1,293 to train, 144 to validate and 360 to test. The other names are torchvision's, with their own
    test part (CelebA: validation part too); any class of `torchvision.datasets` that has both parts can be
    named. A file is .npy, .npz, .pt, .csv or .parquet, whose arrays or columns may be named x, y, x_train,
    test_labels ... A folder holds pictures: in subfolders that are classes, or in train/ and test/, or
    neither. A part that is missing is a tenth of the training data (at most 10,000 where the set has a
    test part).

    Args:
        source: one of `NAMES`, or the path of a file or folder.
        root: folder with the files of torchvision's sets; None: the environment variable PYRO_VAE_DATA, or
            ~/.cache/pyro_vae.
        binarize: as in `Examples`.
        seed: of the static binarisation; the split does not depend on it.
        pixels: "unit" scales bytes to [0, 1], "integer" leaves them; other data are left alone.
        size: height and width that pictures are brought to, from the square in their middle.
        download: whether torchvision may fetch what is not in `root`.

    Raises:
        InputError: if the source is unknown or can't be read, with the file and the reason.
    """
    one_of("binarize", binarize, BINARIZATIONS)
    one_of("pixels", pixels, ("unit", "integer"))
    size = None if size is None else positive_int("size", size)
    parts = _parts(str(source), root, size, download)
    if len({part.event_shape for part in parts.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(part.event_shape)}" for name, part in parts.items())
        raise InputError(f"The parts of {source} differ in shape: {shapes}.")
    levels = max(part.levels for part in parts.values())
    for part in parts.values():
        part.levels = 1.0 if pixels == "integer" else levels
    parts = _split(parts, str(source))
    three = (parts[name].with_binarize(binarize, seed) for name in ("train", "validation", "test"))
    return Splits(str(source), *three)


def _parts(name: str, root: Any, size: int | None, download: bool) -> dict[str, Examples | Stream]:
    """Those parts that the source has, "train" always among them."""
    known = name.lower().replace("-", "_")
    path = Path(name).expanduser()
    if known == "digits":
        return _digits(size)
    if known in _TORCHVISION:
        return _torchvision(known, *_TORCHVISION[known], root, size, download)
    if path.is_dir():
        return _folder(path, size)
    if path.is_file():
        return {part: _sized(examples, size) for part, examples in _file(path).items()}
    if path.suffix.lower() in _READERS or len(path.parts) > 1:
        raise InputError(f"There is no file or folder {path}.")
    if found := _other_torchvision(known):
        return _torchvision(known, *found, root, size, download)
    raise InputError(
        f"{name!r} is no data set known here.{nearest(name, NAMES)} Wanted: one of "
        f"{', '.join(NAMES)}, another class of torchvision.datasets with a training and a test part, or the "
        "path of a file or folder."
    )


def _split(parts: dict[str, Any], source: str, sizes: dict[str, int] | None = None) -> dict[str, Any]:
    """The parts, with those that are missing cut off a fixed permutation of the training part."""
    if "train" not in parts:
        raise InputError(f"{source} has no training data, just {' and '.join(parts)}.")
    n = len(parts["train"])
    tenth = min(max(1, n // 10), 10_000 if "test" in parts else n)
    sizes = sizes or {name: tenth for name in ("validation", "test") if name not in parts}
    if not sizes:
        return parts
    if n <= sum(sizes.values()):
        raise InputError(f"{source} holds {n} data; wanted: one at least for each of train, {', '.join(sizes)}.")
    pieces = torch.randperm(n, generator=torch.Generator().manual_seed(0)).split(
        [n - sum(sizes.values()), *sizes.values()]
    )
    cut = {
        name: parts["train"].take(piece.sort().values) for name, piece in zip(("train", *sizes), pieces, strict=True)
    }
    return parts | cut


def _digits(size: int | None) -> dict[str, Examples]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    whole = _sized(Examples(x, torch.from_numpy(digits.target).long(), levels=16), size)
    return _split({"train": whole}, "digits", {"validation": 144, "test": 360})


# --- torchvision's -----------------------------------------------------------------------------------------


def _torchvision(
    name: str, kind: str, options: Sequence[dict], prepare: dict, root: Any, size: int | None, download: bool
) -> dict[str, Any]:
    root = Path(root or os.environ.get("PYRO_VAE_DATA") or "~/.cache/pyro_vae").expanduser()
    transform = functools.partial(_prepared, **(prepare | ({"size": size} if size else {})))
    parts = {}
    for part, chosen in zip(("train", "test", "validation"), options, strict=False):
        dataset = _opened(name, getattr(_datasets(), kind), root, chosen | {"transform": transform}, download)
        x, y = _arrays(dataset)
        if x is None:
            parts[part] = _from_dataset(dataset, None, threads=8)
        else:  # at once, not picture by picture
            x = x.mT.contiguous() if name == "emnist" else x  # which torchvision stores lying on its side
            parts[part] = _sized(Examples(x, y, levels=255), size)
    return parts


def _opened(name: str, kind: type, root: Path, options: dict, download: bool) -> Dataset:
    """torchvision's data set from `root`; downloaded only if it isn't there."""
    accepted = inspect.signature(kind).parameters
    can_fetch = "download" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    reasons = []
    for fetch in (False, True) if download and can_fetch else (False,):
        try:
            return kind(str(root), **options, **({"download": fetch} if can_fetch else {}))
        except Exception as error:  # torchvision's classes agree on no exception
            reasons.append(("its download failed: " if fetch else "") + _reason(error))
    more = "" if download else ", pass download=True"
    raise InputError(
        f"{name} can't be read from {root} ({'; '.join(reasons)}): put torchvision's files there{more}, or "
        "name the folder that has them with root= or the environment variable PYRO_VAE_DATA."
    )


def _datasets() -> Any:
    try:
        from torchvision import datasets
    except Exception as error:  # built for another torch, it raises a RuntimeError
        raise InputError(
            f"This data set needs torchvision, which can't be imported ({_reason(error)}): run `pip install "
            f"torchvision` for the release that goes with torch {torch.__version__}."
        ) from error
    return datasets


def _other_torchvision(name: str) -> tuple[str, tuple[dict, ...], dict] | None:
    """Any other class with the usual arguments: root, transform, and train=True or split="train"."""
    try:
        datasets = _datasets()
    except InputError:
        return None
    for kind in datasets.__all__:
        if kind.lower() == name.replace("_", ""):
            accepted = inspect.signature(getattr(datasets, kind)).parameters
            options = _TRAIN_TEST if "train" in accepted else _SPLIT if "split" in accepted else None
            return (kind, options, {}) if options and "transform" in accepted else None
    return None


def _arrays(dataset: Dataset) -> tuple[Tensor | None, Tensor | None]:
    """The pictures (N, C, H, W) and labels of a data set that holds them as one array."""
    data = getattr(dataset, "data", None)
    if getattr(data, "ndim", 0) not in (3, 4) or str(data.dtype).removeprefix("torch.") != "uint8":
        return None, None
    x = _tensor(data)
    if x.dim() == 3:
        x = x[:, None]
    elif x.shape[-1] == 3 and x.shape[1] != 3:
        x = x.permute(0, 3, 1, 2).contiguous()
    y = getattr(dataset, "targets", getattr(dataset, "labels", None))
    y = y[:, 0] if getattr(y, "ndim", 1) == 2 else y  # QMNIST's further columns say who wrote it
    return x, _labels(y)


# --- pictures ----------------------------------------------------------------------------------------------

_MODES = {mode: mode for mode in ("L", "RGB", "RGBA")} | {"1": "L", "LA": "L"}
_MODES |= dict.fromkeys(("P", "CMYK", "YCbCr"), "RGB")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


def _pixels(image: Any, mode: str | None = None) -> Tensor:
    """A PIL image as bytes (C, H, W)."""
    import numpy as np

    if image.mode not in _MODES:
        raise InputError(f"A picture of mode {image.mode!r} has no bytes for pixels; save it with 8 bits a channel.")
    pixels = torch.from_numpy(np.array(image.convert(mode or _MODES[image.mode])))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def _prepared(image: Any, size: int | None = None, crop: int | None = None, invert: bool = False) -> Tensor:
    """The `crop` in the middle, brought to `size`, as bytes (C, H, W); `invert` makes strokes light."""
    if crop:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    pixels = _pixels(image) if size is None else _resized(_pixels(image)[None], size)[0]
    return 255 - pixels if invert else pixels


def _resized(x: Tensor, size: int) -> Tensor:
    """Pictures (N, C, H, W) cut to the square in their middle and brought to (N, C, size, size)."""
    side = min(x.shape[-2:])
    top, left = ((n - side) // 2 for n in x.shape[-2:])
    square = x[..., top : top + side, left : left + side].to(torch.get_default_dtype())
    if side != size:
        square = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return (square if x.is_floating_point() else square.round()).to(x.dtype)


def _sized(examples: Examples, size: int | None) -> Examples:
    if size is None:
        return examples
    if examples.x.dim() != 4:
        raise InputError(f"size={size} is for pictures (C, H, W), but a datum is {tuple(examples.event_shape)}.")
    x = torch.cat([_resized(examples.x[part], size) for part in _slices(examples.x)])
    return Examples(x, examples.y, levels=examples.levels)


class _Pictures(Dataset):
    """Picture files with their labels, if they have any; their headers are read at once."""

    def __init__(self, files: list[Path], labels: list[int] | None, size: int | None):
        self.files, self.labels, self.size = files, labels, size
        headers = _in_threads(lambda file: self._open(file, lambda i: (_MODES.get(i.mode, i.mode), i.size)), files)
        odd = next((i for i, header in enumerate(headers) if header != headers[0]), None)
        if odd is not None and size is None:
            one, other = (f"{files[i]} is {headers[i][0]} {headers[i][1]}" for i in (odd, 0))
            raise InputError(f"{one}, but {other}; pass size= to bring all pictures to one size and mode.")
        modes = {mode for mode, _ in headers}
        self.mode = modes.pop() if len(modes) == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        pixels = self._open(self.files[i], lambda image: _pixels(image, self.mode))
        if self.size is not None:
            pixels = _resized(pixels[None], self.size)[0]
        return pixels, None if self.labels is None else self.labels[i]

    @staticmethod
    def _open(file: Path, use: Callable[[Any], Any]) -> Any:
        from PIL import Image

        try:
            with Image.open(file) as image:
                return use(image)
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises all three on a broken file
            raise InputError(f"{file} can't be read as a picture: {_reason(error)}.") from error


def _folder(path: Path, size: int | None) -> dict[str, Any]:
    """A folder of pictures, in train/, test/ ... if those are its subfolders."""
    inside = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    named = {_PARTS[child.name.lower()]: child for child in inside if child.is_dir() and child.name.lower() in _PARTS}
    if len(named) == len(inside) and "train" in named:
        return {part: _pictures(child, size) for part, child in named.items()}
    return {"train": _pictures(path, size)}


def _pictures(path: Path, size: int | None) -> Examples | Stream:
    files = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.suffix.lower() in _PICTURES]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    if not files:
        raise InputError(f"The folder {path} holds no pictures ({', '.join(sorted(_PICTURES))}).")
    classes = sorted({file.parts[0] for file in files})
    in_classes = all(len(file.parts) > 1 for file in files)
    labels = [classes.index(file.parts[0]) for file in files] if in_classes else None
    return _from_dataset(_Pictures([path / file for file in files], labels, size), None, threads=8)


# --- files -------------------------------------------------------------------------------------------------

_PARTS = {"train": "train", "training": "train", "test": "test"}
_PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
_X = {"x", "images", "image", "data", "inputs", "samples", "arr", ""}
_Y = {"y", "label", "labels", "target", "targets", "class", "classes"}


def _file(path: Path) -> dict[str, Examples]:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(
            f"{path} is no kind of file known here; wanted: {', '.join(_READERS)}, or a folder of pictures."
        )
    try:
        named = _READERS[suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader has exceptions of its own
        raise InputError(f"{path} can't be read as {suffix}: {_reason(error)}.") from error
    parts: dict[str, dict[str, Any]] = {}
    for name, (part, kind) in _roles(named, path).items():
        if kind in parts.setdefault(part, {}):
            raise InputError(f"{path} holds {', '.join(named)}: two of them could be {kind} of the {part} part.")
        parts[part][kind] = named[name]
    return {part: _from_tensors((arrays["x"],), arrays.get("y")) for part, arrays in parts.items() if "x" in arrays}


def _roles(named: dict[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    """Part and kind of each array, read off its name: test_labels is y of the test part."""
    roles = {name: role for name in named if (role := _role(name))}
    if "x" not in {kind for _, kind in roles.values()}:
        if len(named) != 1:
            raise InputError(
                f"{path} holds {', '.join(list(named)[:8]) or 'no arrays'}; wanted: one named x or images."
            )
        return {name: ("train", "x") for name in named}
    return roles


def _role(name: str) -> tuple[str, str] | None:
    part, kind = "train", "x"
    for word in re.split(r"[^a-z]+", name.lower()):
        part, kind = _PARTS.get(word, part), "y" if word in _Y else kind
        if word not in {*_PARTS, *_X, *_Y}:
            return None
    return part, kind


def _read_numpy(path: Path) -> dict[str, Any]:
    import numpy as np

    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"x": loaded}
    with loaded:
        return dict(loaded)


def _read_torch(path: Path) -> dict[str, Any]:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, (tuple, list)) and len(loaded) <= 2:
        loaded = dict(zip("xy", loaded, strict=False))
    named = loaded if isinstance(loaded, dict) else {"x": loaded}
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}


def _read_csv(path: Path) -> dict[str, Any]:
    import numpy as np

    with open(path, newline="", encoding="utf-8-sig") as file:
        first = next(csv.reader(file), None)
    if first is None:
        raise InputError(f"{path} is empty.")
    # columns numbered 0, 1, 2 ... are a header too, as pandas writes it for an array
    header = not all(map(_is_number, first)) or (len(first) > 1 and first == [str(i) for i in range(len(first))])
    names = first if header else [""] * len(first)
    label = next((i for i, name in enumerate(names) if name.strip().lower() in _Y), None)
    columns = [i for i, name in enumerate(names) if i != label and (name or not header)]  # no name: pandas' index

    def read(columns: Any, **options: Any) -> Any:
        options |= {"delimiter": ",", "comments": None, "quotechar": '"', "encoding": "utf-8-sig"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # there is just a warning where nothing follows the header
            return np.loadtxt(path, skiprows=int(header), usecols=columns, **options)

    return {"x": read(columns, ndmin=2)} | ({} if label is None else {"y": _numbers(read(label, ndmin=1, dtype=str))})


def _numbers(words: Any) -> Any:
    """An array of words as numbers, if all of them are."""
    return words.astype(float) if all(map(_is_number, words)) else words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow to be read: run `pip install pyarrow`.") from error
    table = pyarrow.parquet.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in table.column_names if not name.startswith("__index_")}
    label = next((name for name in columns if name.lower() in _Y), None)
    labels = {} if label is None else {"y": columns.pop(label)}
    for name, values in columns.items():
        if values.dtype.kind not in "buif":
            raise InputError(f"{path} holds {values.dtype} in column {name!r}; wanted: numbers.")
    return {"x": np.stack(list(columns.values()), axis=1)} | labels


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reason(error: BaseException) -> str:
    """The error's first sentence in one line; torch's run to a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z])\. ", text)[0][:200].rstrip(". ")
