"""Data by name or path, in three parts; and whatever the caller has, as data to train on or to score."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    TensorDataset,
)

from pyro_vae.data.items import as_tensor
from pyro_vae.data.opening import given_path, path_said, regular_file
from pyro_vae.data.pictures import prepared, read_folder, sized
from pyro_vae.data.readers import READERS, read_file
from pyro_vae.data.reading import as_labels, from_dataset, from_tensors
from pyro_vae.data.resident import BINARIZATIONS, Binarization, Examples
from pyro_vae.data.streams import Stream
from pyro_vae.data.table_files import is_table_file
from pyro_vae.data.tables import table_or_array
from pyro_vae.errors import InputError, first_sentence, nearest, one_of, positive_int


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
        x = from_tensors(x.tensors[: keep or 1], labels)
    elif isinstance(x, Dataset):
        x = from_dataset(x, keep, device, max_bytes)
    elif not isinstance(x, (Examples, Stream)):
        x = from_tensors((x if isinstance(x, (tuple, list)) else (x,))[:keep])
    return (x if binarize is None else x.with_binarize(binarize, seed)).to(device)


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
_TORCHVISION: dict[str, tuple[str, tuple[dict[str, Any], ...], dict[str, Any]]] = {
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
    kinds: Mapping[Any, str] | None = None,
    label: Any = None,
) -> Splits:
    """A data set by name or path, in three parts that are the same in every run.

    "digits" comes with scikit-learn: 1,797 scans of 8 x 8, which have no split of their own and are cut here
    into 1,293 to train, 144 to validate and 360 to test. The other names are torchvision's, with their own
    test part (CelebA: validation part too); any class of `torchvision.datasets` that has both parts can be
    named. A file is .npy, .npz or .pt, whose arrays may be named x, y, x_train, test_labels ...; where it holds
    lengths too, x are sequences and batches (x, lengths). Or it is a table, .csv, .tsv or .parquet: one of numbers
    alone without a missing cell is an array, any other a `Table`. A folder holds pictures: in subfolders that
    are classes, or in train/ and test/, or neither. A part that is missing
    is a tenth of the training data (at most 10,000 where the set has a test part).

    Args:
        source: one of `NAMES`, or the path of a file or folder.
        root: folder with the files of torchvision's sets; None: the environment variable PYRO_VAE_DATA, or
            ~/.cache/pyro_vae.
        binarize: as in `Examples`.
        seed: of the static binarisation; the split does not depend on it.
        pixels: "unit" scales bytes to [0, 1], "integer" leaves them; other data are left alone.
        size: height and width that pictures are brought to, from the square in their middle.
        download: whether torchvision may fetch what is not in `root`.
        kinds: of a table's columns, by name, as in `Table`; {} reads an array of numbers as a `Table` too.
        label: the column of a table that is its label; none is by default, whatever its name.

    Raises:
        InputError: if the source is unknown or can't be read, with the file and the reason.
    """
    one_of("binarize", binarize, BINARIZATIONS)
    one_of("pixels", pixels, ("unit", "integer"))
    if size is not None and positive_int("size", size) > 2**15:
        raise InputError(f"size={size} must be the side of pictures, at most {2**15:,}.")
    if root is not None:
        given_path("root", root)
    parts = _parts(str(given_path("source", source)), root, size, download, kinds, label)
    if len({part.event_shape for part in parts.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(part.event_shape)}" for name, part in parts.items())
        raise InputError(f"The parts of {source} differ in shape: {shapes}.")
    levels = max(part.levels for part in parts.values())
    for part in parts.values():
        part.levels = 1.0 if pixels == "integer" else levels
    parts = _split(parts, str(source))
    three = (parts[name].with_binarize(binarize, seed) for name in ("train", "validation", "test"))
    return Splits(str(source), *three)


def _parts(
    name: str, root: Any, size: int | None, download: bool, kinds: Mapping[Any, str] | None = None, label: Any = None
) -> dict[str, Examples | Stream]:
    """Those parts that the source has, "train" always among them."""
    known = name.lower().replace("-", "_")
    path = given_path("source", name)
    path = path.expanduser() if name.startswith("~/") else path
    if known == "digits":
        return _digits(size)
    if known in _TORCHVISION:
        return _torchvision(known, *_TORCHVISION[known], root, size, download)
    if os.path.isdir(path):
        return read_folder(path, size)
    if os.path.exists(path) and is_table_file(path):
        return {"train": sized(table_or_array(regular_file(path), kinds, label), size)}
    if os.path.exists(path):
        return {part: sized(examples, size) for part, examples in read_file(path).items()}
    if path.suffix.lower() in READERS or is_table_file(path) or len(path.parts) > 1 or len(name) > 100:
        raise InputError(f"There is no file or folder {path_said(path)}.")
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


def _digits(size: int | None) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    whole = sized(Examples(x, torch.from_numpy(digits.target).long(), levels=16), size)
    return _split({"train": whole}, "digits", {"validation": 144, "test": 360})


def _torchvision(
    name: str,
    kind: str,
    options: Sequence[dict[str, Any]],
    prepare: dict[str, Any],
    root: Any,
    size: int | None,
    download: bool,
) -> dict[str, Any]:
    root = Path(root or os.environ.get("PYRO_VAE_DATA") or "~/.cache/pyro_vae").expanduser()
    transform = functools.partial(prepared, **(prepare | ({"size": size} if size else {})))
    parts = {}
    for part, chosen in zip(("train", "test", "validation"), options, strict=False):
        dataset = _opened(name, getattr(_datasets(), kind), root, chosen | {"transform": transform}, download)
        x, y = _arrays(dataset)
        if x is None:
            parts[part] = from_dataset(dataset, None, threads=8)
        else:  # at once, not picture by picture
            x = x.mT.contiguous() if name == "emnist" else x  # which torchvision stores lying on its side
            parts[part] = sized(Examples(x, y, levels=255), size)
    return parts


def _opened(name: str, kind: type, root: Path, options: dict[str, Any], download: bool) -> Dataset[Any]:
    """torchvision's data set from `root`; downloaded only if it isn't there."""
    accepted = inspect.signature(kind).parameters
    can_fetch = "download" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    reasons = []
    for fetch in (False, True) if download and can_fetch else (False,):
        try:
            return kind(str(root), **options, **({"download": fetch} if can_fetch else {}))
        except Exception as error:  # torchvision's classes agree on no exception
            reasons.append(("its download failed: " if fetch else "") + first_sentence(error))
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
            f"This data set needs torchvision, which can't be imported ({first_sentence(error)}): run `pip install "
            f"torchvision` for the release that goes with torch {torch.__version__}."
        ) from error
    return datasets


def _other_torchvision(name: str) -> tuple[str, tuple[dict[str, Any], ...], dict[str, Any]] | None:
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


def _arrays(dataset: Dataset[Any]) -> tuple[Tensor | None, Tensor | None]:
    """The pictures (N, C, H, W) and labels of a data set that holds them as one array."""
    data: Any = getattr(dataset, "data", None)
    if getattr(data, "ndim", 0) not in (3, 4) or str(data.dtype).removeprefix("torch.") != "uint8":
        return None, None
    x = as_tensor(data)
    if x.dim() == 3:
        x = x[:, None]
    elif x.shape[-1] == 3 and x.shape[1] != 3:
        x = x.permute(0, 3, 1, 2).contiguous()
    y: Any = getattr(dataset, "targets", getattr(dataset, "labels", None))
    y = y[:, 0] if getattr(y, "ndim", 1) == 2 else y  # QMNIST's further columns say who wrote it
    return x, as_labels(y)
