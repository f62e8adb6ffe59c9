"""Arrays in files: .npy, .npz, .pt, with their parts and labels found by name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.items import as_tensor, check_held
from pyro_vae.data.opening import check_unpacked, path_said, regular_file
from pyro_vae.data.reading import from_tensors
from pyro_vae.data.resident import Examples
from pyro_vae.data.table_files import PARQUET, TEXT
from pyro_vae.errors import InputError, check_lengths, first_sentence

PARTS = {"train": "train", "training": "train", "test": "test"}


PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")


_X = {"x", "images", "image", "data", "inputs", "samples", "arr", ""}


_Y = {"y", "label", "labels", "target", "targets", "class", "classes"}


_LENGTHS = {"lengths"}


def read_file(path: Path) -> dict[str, Examples]:
    """The parts that a file holds, by the names of its arrays."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join([*READERS, *TEXT, *PARQUET])
        raise InputError(f"{path_said(path)} is no kind of file known here; wanted: {known}, or a folder of pictures.")
    try:
        named = READERS[suffix](regular_file(path))
    except InputError:
        raise
    except Exception as error:  # each reader has exceptions of its own
        raise InputError(f"{path_said(path)} can't be read as {suffix}: {first_sentence(error)}.") from error
    parts: dict[str, dict[str, Any]] = {}
    for name, (part, kind) in _roles(named, path).items():
        if kind in parts.setdefault(part, {}):
            raise InputError(f"{path} holds {', '.join(named)}: two of them could be {kind} of the {part} part.")
        parts[part][kind] = named[name]
    parts = {part: arrays for part, arrays in parts.items() if "x" in arrays}
    if len({"lengths" in arrays for arrays in parts.values()}) > 1:
        lacking = ", ".join(part for part, arrays in parts.items() if "lengths" not in arrays)
        raise InputError(f"{path} holds lengths, but none for the {lacking} part.")
    return {
        part: from_tensors(_sequences(**arrays) if "lengths" in arrays else [arrays["x"]], arrays.get("y"))
        for part, arrays in parts.items()
    }


def _sequences(x: Any, lengths: Any, y: Any = None) -> tuple[Tensor, Tensor]:
    """x (N, T, ...) and lengths (N,), whatever stood beyond a sequence's end replaced by its first step."""
    x, lengths = as_tensor(x), as_tensor(lengths)
    if x.dim() < 2:
        raise InputError(f"x has shape {tuple(x.shape)}, but with lengths it must hold sequences, (N, T, ...).")
    check_lengths(lengths, *x.shape[:2])
    there = torch.arange(1, x.shape[1] + 1) <= lengths[:, None]
    return x.where(there.reshape(*there.shape, *(1,) * (x.dim() - 2)), x[:, :1]), lengths.long()


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
    words = re.split(r"[^a-z]+", name.lower())
    if not {*PARTS, *_X, *_Y, *_LENGTHS}.issuperset(words):
        return None
    part = [PARTS[word] for word in words if word in PARTS]
    kinds = [kind for kind, known in (("y", _Y), ("lengths", _LENGTHS)) if not known.isdisjoint(words)]
    return None if len(kinds) > 1 else (part[-1] if part else "train", kinds[0] if kinds else "x")


def _read_numpy(path: Path) -> dict[str, Any]:
    import numpy as np

    if not zipfile.is_zipfile(path):
        # Mapped, so that a header that claims more than the file holds is refused before memory is taken.
        return {"x": np.array(np.load(path, mmap_mode="r", allow_pickle=False))}
    with zipfile.ZipFile(path) as archive:
        check_unpacked(path, sum(entry.file_size for entry in archive.infolist()))
    with np.load(path, allow_pickle=False) as loaded:
        return dict(loaded)


def _read_torch(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, sum(entry.file_size for entry in archive.infolist()))
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, (tuple, list)) and len(loaded) <= 2:
        loaded = dict(zip("xy", loaded, strict=False))
    named = loaded if isinstance(loaded, dict) else {"x": loaded}
    named = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    for name, value in named.items():
        check_held(name, value)
        check_unpacked(path, value.numel() * value.element_size())
    return named


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
