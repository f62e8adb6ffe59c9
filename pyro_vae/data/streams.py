"""Data sets that are too large to hold: read anew in each pass."""

from __future__ import annotations

import copy
import itertools
import logging
import os
from collections.abc import Iterator
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

from pyro_vae.data.items import Items, as_item, levels_of
from pyro_vae.data.resident import (
    BINARIZATIONS,
    Batch,
    Binarization,
    Index,
    as_index,
    binarised,
    float_dtype,
    refuse_infinite,
    refuse_outside_unit,
    scaled,
    static_bits,
)
from pyro_vae.errors import InputError, kind_of, one_of, positive, positive_int

log = logging.getLogger("pyro_vae")


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
        source: Dataset[Any] | DataLoader[Any],
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
        self._items = None if isinstance(source, DataLoader) else Items(source, self.keep)
        first = self._first_of_loader() if self._items is None else self._items.first[0][None]
        guess = levels_of(first) if self._items is None else self._items.levels
        self.levels, self.event_shape = (
            positive("levels", guess if levels is None else levels),
            first.shape[1:],
        )
        if len(self) == 0:
            raise InputError(f"The DataLoader over {kind_of(source.dataset)} yields no data.")
        self._binarise(binarize, seed)

    @property
    def takes_order(self) -> bool:
        """Whether `batches` follows the order that it is given; a DataLoader has its own."""
        return self._items is not None

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
                # Of its own, so that a pass leaves torch's random state as it is, as `Examples` do.
                generator=torch.Generator().manual_seed(hash(tuple(order[:8].tolist())) % 2**63),
                pin_memory=self.device.type == "cuda",
            )
            for batch, index in zip(loader, order.split(batch_size), strict=True):
                yield index, batch

    def _from_loader(self) -> Iterator[tuple[Tensor, Batch]]:
        start = 0
        for item in self.source:
            batch, _ = as_item(item, self.keep)
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
        return as_item(loader.collate_fn(few), self.keep)[0][0]


def _stacked(items: list[tuple[Batch, int | None]]) -> Batch:
    return tuple(torch.stack(column) for column in zip(*(tensors for tensors, _ in items), strict=True))
