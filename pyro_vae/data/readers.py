"""Arrays in files: .npy, .npz, .pt, .csv, .parquet, with their parts and labels found by name."""

from __future__ import annotations

import csv
import re
import warnings
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
from pyro_vae.errors import InputError, check_lengths, first_sentence

PARTS = {"train": "train", "training": "train", "test": "test"}


PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")


_X = {"x", "images", "image", "data", "inputs", "samples", "arr", ""}


_Y = {"y", "label", "labels", "target", "targets", "class", "classes"}


_LENGTHS = {"lengths"}


def read_file(path: Path) -> dict[str, Examples]:
    """The parts that a file holds, by the names of its arrays or columns."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(
            f"{path_said(path)} is no kind of file known here; wanted: {', '.join(READERS)}, or a folder of pictures."
        )
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


def _read_csv(path: Path) -> dict[str, Any]:
    import numpy as np

    if path.stat().st_size == 0:  # and what the system makes up as it is read, maybe without end
        raise InputError(f"{path_said(path)} is empty.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = next(csv.reader(file), None)
    if first is None:
        raise InputError(f"{path_said(path)} is empty.")
    if len(first) == 1 and ";" in first[0]:
        raise InputError(
            f"{path_said(path)} has semicolons between its columns; wanted: commas, and points in decimals. In pandas: "
            "read_csv(..., sep=';', decimal=',').to_csv(...)."
        )
    # columns numbered 0, 1, 2 ... are a header too, as pandas writes it for an array
    header = not all(map(_is_number, first)) or (len(first) > 1 and first == [str(i) for i in range(len(first))])
    names = first if header else [""] * len(first)
    label = next((i for i, name in enumerate(names) if name.strip().lower() in _Y), None)
    columns = [i for i, name in enumerate(names) if i != label and (name or not header)]  # no name: pandas' index

    def read(columns: Any, **options: Any) -> Any:
        options |= {"delimiter": ",", "comments": None, "quotechar": '"', "encoding": "utf-8-sig"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # there is just a warning where nothing follows the header
            try:
                return np.loadtxt(path, skiprows=int(header), usecols=columns, **options)
            except ValueError as error:
                raise _ragged(path, len(names)) or error from None

    return {"x": read(columns, ndmin=2)} | ({} if label is None else {"y": _numbers(read(label, ndmin=1, dtype=str))})


def _ragged(path: Path, wanted: int) -> InputError | None:
    """What to say of a file whose rows differ in length; None if they do not."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            if row and len(row) != wanted:
                return InputError(
                    f"{path_said(path)} can't be read: a row has {len(row)} columns, but the first has {wanted}."
                )
    return None


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
    with pyarrow.parquet.ParquetFile(path) as file:
        check_unpacked(path, 8 * file.metadata.num_rows * max(1, file.metadata.num_columns))
    table = pyarrow.parquet.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in table.column_names if not name.startswith("__index_")}
    label = next((name for name in columns if name.lower() in _Y), None)
    labels = {} if label is None else {"y": columns.pop(label)}
    for name, values in columns.items():
        if values.dtype.kind not in "buif":
            raise InputError(f"{path} holds {values.dtype} in column {name!r}; wanted: numbers.")
    return {"x": np.stack(list(columns.values()), axis=1)} | labels


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
