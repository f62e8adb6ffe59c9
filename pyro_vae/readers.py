"""Arrays in files: .npy, .npz, .pt, .csv, .parquet, with their parts and labels found by name."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.checks import InputError, first_sentence
from pyro_vae.examples import Examples
from pyro_vae.streams import from_tensors

PARTS = {"train": "train", "training": "train", "test": "test"}


PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")


_X = {"x", "images", "image", "data", "inputs", "samples", "arr", ""}


_Y = {"y", "label", "labels", "target", "targets", "class", "classes"}


_LENGTHS = {"length", "lengths"}


def read_file(path: Path) -> dict[str, Examples]:
    """The parts that a file holds, by the names of its arrays or columns."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(
            f"{path} is no kind of file known here; wanted: {', '.join(READERS)}, or a folder of pictures."
        )
    try:
        named = READERS[suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader has exceptions of its own
        raise InputError(f"{path} can't be read as {suffix}: {first_sentence(error)}.") from error
    parts: dict[str, dict[str, Any]] = {}
    for name, (part, kind) in _roles(named, path).items():
        if kind in parts.setdefault(part, {}):
            raise InputError(f"{path} holds {', '.join(named)}: two of them could be {kind} of the {part} part.")
        parts[part][kind] = named[name]
    return {
        part: from_tensors([arrays[kind] for kind in ("x", "lengths") if kind in arrays], arrays.get("y"))
        for part, arrays in parts.items()
        if "x" in arrays
    }


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
        part, kind = PARTS.get(word, part), "y" if word in _Y else "lengths" if word in _LENGTHS else kind
        if word not in {*PARTS, *_X, *_Y, *_LENGTHS}:
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


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
