"""Other people's data sets: read once into `Examples` where they fit, streamed past the device where they don't."""

from __future__ import annotations

import copy
import itertools
import logging
import numbers
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)

from pyro_vae.checks import InputError, kind_of, one_of, positive, positive_int
from pyro_vae.examples import (
    BINARIZATIONS,
    Batch,
    Binarization,
    Examples,
    Index,
    as_index,
    binarised,
    float_dtype,
    refuse_infinite,
    refuse_outside_unit,
    scaled,
    static_bits,
)

log = logging.getLogger("pyro_vae")


class _Items(Dataset):
    """A map-style data set's items as (tensors of the batch, label or None), checked to be alike."""

    def __init__(self, dataset: Dataset, keep: int | None):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(f"{kind_of(dataset)} has no index or no length; wrap it in a DataLoader.")
        if len(dataset) == 0:
            raise InputError(f"{kind_of(dataset)} is empty.")
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
            raise InputError(f"The DataLoader over {kind_of(source.dataset)} yields no data.")
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
            raise InputError(f"{kind_of(loader.dataset)} has no length; give it a __len__.") from None
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
        new_items.ids = new_items.ids[as_index(index)]
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
        refuse_infinite(x, ids)
        if self.binarize != "none":
            refuse_outside_unit(x, self.levels, ids, self.binarize)
        if self.binarize == "static":
            bits = static_bits(scaled(x, self.levels), ids.tolist(), self.seed)
            return bits.to(self.device, float_dtype(x, self.levels))
        return binarised(scaled(x.to(self.device, non_blocking=True), self.levels), self.binarize)

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
            raise InputError(f"{kind_of(loader.dataset)} is empty.")
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
    return tuple(map(as_tensor, parts[: keep or 1])), int(label) if isinstance(label, numbers.Integral) else None


def as_tensor(value: Any) -> Tensor:
    """A tensor from a tensor, a picture (uint8, channels first), a NumPy array or a number."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "getbands"):  # a PIL image; PIL need not be imported to know
        return pixels_of(value)
    if not hasattr(value, "__array__") and not isinstance(value, numbers.Real):
        raise InputError(f"{kind_of(value)} is no datum; wanted: a tensor, a NumPy array or a PIL image.")
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise InputError(f"An array of dtype {array.dtype} holds no real numbers.")
    if array.dtype.kind == "f" and array.itemsize >= 8:  # NumPy's default, which nobody chose: becomes torch's
        return torch.from_numpy(np.require(array, np.float64, "CW")).to(torch.get_default_dtype())
    wide = array.dtype.kind == "u" and array.itemsize > 1  # torch hardly computes with these
    dtype = np.int64 if wide else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, "CW"))


def _levels(x: Tensor) -> float:
    """255 for bytes, unless they are 0 and 1 alone, as binarised data are kept."""
    return 255.0 if x.dtype == torch.uint8 and x.numel() and x.max() > 1 else 1.0


def from_tensors(values: Sequence[Any], y: Any = None) -> Examples:
    """Examples from tensors or arrays: the data, further tensors of the batch, and labels."""
    for value in values:
        if not hasattr(value, "__array__") or hasattr(value, "getbands"):
            raise InputError(
                f"Data can't be {kind_of(value)}; wanted: a tensor, a NumPy array, a tuple of those, "
                "a Dataset, a DataLoader, data.Examples, or the name of a data set, file or folder."
            )
    if not values:
        raise InputError("Data can't be an empty tuple; wanted: (x,) or (x, c, ...).")
    x, *extras = map(as_tensor, values)
    return Examples(x, as_labels(y), levels=_levels(x), extras=extras)


def as_labels(values: Any) -> Tensor | None:
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


def from_dataset(
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
        in_threads(put, range(len(items)), threads)
    else:  # a user's Dataset may hold what only this thread may touch
        for i in range(len(items)):
            put(i)
    return held, None if None in labels else torch.tensor(labels)


def in_threads(function: Callable[[Any], Any], values: Sequence[Any], threads: int = 8) -> list[Any]:
    """`function` of each value, in order, by several threads."""
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


MODES = {mode: mode for mode in ("L", "RGB", "RGBA")} | {"1": "L", "LA": "L"}


MODES |= dict.fromkeys(("P", "CMYK", "YCbCr"), "RGB")


def pixels_of(image: Any, mode: str | None = None) -> Tensor:
    """A PIL image as bytes (C, H, W)."""
    import numpy as np

    if image.mode not in MODES:
        raise InputError(f"A picture of mode {image.mode!r} has no bytes for pixels; save it with 8 bits a channel.")
    pixels = torch.from_numpy(np.array(image.convert(mode or MODES[image.mode])))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
