"""Tensors, arrays and map-style data sets as `Examples`: read once where they fit in memory, streamed otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
)

from pyro_vae.data.items import Items, as_tensor, levels_of
from pyro_vae.data.resident import (
    Examples,
)
from pyro_vae.data.streams import Stream, log
from pyro_vae.errors import InputError, kind_of


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
    return Examples(x, as_labels(y), levels=levels_of(x), extras=extras)


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
    dataset: Dataset[Any], keep: int | None, device: Any = "cpu", max_bytes: int | None = None, threads: int = 0
) -> Examples | Stream:
    """The data set read into memory if it fits, otherwise streamed."""
    items = Items(dataset, keep)
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


def _read(items: Items, threads: int) -> tuple[list[Tensor], Tensor | None]:
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


def _first_number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in the text")
    return int(found[1])


def _free_bytes(device: torch.device) -> int:
    """Memory that is free, in bytes: the host's, and the device's if that is less."""
    try:
        meminfo = Path("/proc/meminfo").read_text()  # counts what the page cache can give back; sysconf does not
        free = _first_number(r"MemAvailable:\s+(\d+) kB", meminfo) * 1024
        group = Path("/sys/fs/cgroup")  # a container's own limit
        limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            cached = _first_number(r"inactive_file (\d+)", (group / "memory.stat").read_text())
            free = min(free, int(limit) - int((group / "memory.current").read_text()) + cached)
    except (OSError, TypeError, ValueError):
        known = {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ()))
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 4 * 2**30
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free
