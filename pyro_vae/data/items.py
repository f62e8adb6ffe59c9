"""One datum as tensors: from pictures, arrays and numbers; and the items of a map-style data set, checked to be alike."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
    IterableDataset,
)

from pyro_vae.data.resident import (
    Batch,
)
from pyro_vae.errors import InputError, kind_of


class Items(Dataset[Any]):
    """A map-style data set's items as (tensors of the batch, label or None), checked to be alike."""

    def __init__(self, dataset: Dataset[Any], keep: int | None):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(f"{kind_of(dataset)} has no index or no length; wrap it in a DataLoader.")
        if len(dataset) == 0:
            raise InputError(f"{kind_of(dataset)} is empty.")
        self.dataset, self.keep, self.ids = dataset, keep, torch.arange(len(dataset))
        spread = torch.linspace(0, len(dataset) - 1, min(len(dataset), 16)).long().tolist()
        probes = [as_item(dataset[i], keep)[0] for i in spread]
        self.first, self.levels = probes[0], max(levels_of(probe[0]) for probe in probes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[Batch, int | None]:
        i = int(self.ids[position])
        tensors, label = as_item(self.dataset[i], self.keep)
        for t, first in zip(tensors, self.first, strict=True):
            if (t.shape, t.dtype) != (first.shape, first.dtype):
                raise InputError(
                    f"Datum {i} is {tuple(t.shape)} of {t.dtype}, but datum 0 is {tuple(first.shape)} of "
                    f"{first.dtype}; wanted: one shape and dtype throughout."
                )
        return tensors, label


def as_item(item: Any, keep: int | None) -> tuple[Batch, int | None]:
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
        return check_held("the data", value)
    if hasattr(value, "getbands"):  # a PIL image; PIL need not be imported to know
        return pixels_of(value)
    if not hasattr(value, "__array__") and not isinstance(value, numbers.Real):
        raise InputError(f"{kind_of(value)} is no datum; wanted: a tensor, a NumPy array or a PIL image.")
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise InputError(f"An array of dtype {array.dtype} holds no real numbers.")
    if array.dtype.kind == "f" and array.itemsize >= 8:  # NumPy's default, which nobody chose: becomes torch's
        return torch.from_numpy(np.require(array, np.float64, ["C", "W"])).to(torch.get_default_dtype())
    wide = array.dtype.kind == "u" and array.itemsize > 1  # torch hardly computes with these
    dtype = np.int64 if wide else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def check_held(name: str, value: Tensor) -> Tensor:
    """`value`, after a look that it is a plain tensor of numbers that are there.

    Args:
        name: for messages.
        value: a tensor.

    Raises:
        InputError: if it is sparse, quantized, on the meta device, or has a graph behind it.
    """
    if value.layout is not torch.strided or value.is_quantized:
        raise InputError(
            f"{name} is a {value.layout} tensor; wanted: a dense one, as .to_dense() makes it.".replace("torch.", "", 1)
        )
    if value.device.type == "meta":
        raise InputError(f"{name} lies on the meta device, where there are no numbers; wanted: a tensor with data.")
    if value.requires_grad:
        raise InputError(
            f"{name} requires grad, or has a graph behind it; wanted: data alone, as .detach() gives them."
        )
    return value


def levels_of(x: Tensor) -> float:
    """255 for bytes, unless they are 0 and 1 alone, as binarised data are kept."""
    return 255.0 if x.dtype == torch.uint8 and x.numel() and x.max() > 1 else 1.0


MODES = {mode: mode for mode in ("L", "RGB", "RGBA")} | {"1": "L", "LA": "L"}


MODES |= dict.fromkeys(("P", "CMYK", "YCbCr"), "RGB")


def pixels_of(image: Any, mode: str | None = None) -> Tensor:
    """A PIL image as bytes (C, H, W)."""
    import numpy as np

    if image.mode not in MODES:
        raise InputError(f"A picture of mode {image.mode!r} has no bytes for pixels; save it with 8 bits a channel.")
    pixels = torch.from_numpy(np.array(image.convert(mode or MODES[image.mode])))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
