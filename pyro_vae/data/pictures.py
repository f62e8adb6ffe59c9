"""Pictures: from PIL to bytes, brought to one size, read from a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
)

from pyro_vae.data.items import MODES, pixels_of
from pyro_vae.data.opening import path_said, regular_file
from pyro_vae.data.readers import PARTS
from pyro_vae.data.reading import from_dataset, in_threads
from pyro_vae.data.resident import Examples, slices
from pyro_vae.data.streams import Stream
from pyro_vae.errors import InputError, first_sentence

#: Files below a folder of pictures that are none, before it is taken for something else.
MOST_OTHERS = 10_000
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


def prepared(image: Any, size: int | None = None, crop: int | None = None, invert: bool = False) -> Tensor:
    """The `crop` in the middle, brought to `size`, as bytes (C, H, W); `invert` makes strokes light."""
    if crop:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    pixels = pixels_of(image) if size is None else _resized(pixels_of(image)[None], size)[0]
    return 255 - pixels if invert else pixels


def _resized(x: Tensor, size: int) -> Tensor:
    """Pictures (N, C, H, W) cut to the square in their middle and brought to (N, C, size, size)."""
    side = min(x.shape[-2:])
    top, left = ((n - side) // 2 for n in x.shape[-2:])
    square = x[..., top : top + side, left : left + side].to(torch.get_default_dtype())
    if side != size:
        square = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return (square if x.is_floating_point() else square.round()).to(x.dtype)


def sized(examples: Examples, size: int | None) -> Examples:
    """The same examples with pictures of `size` × `size`; unchanged for None."""
    if size is None:
        return examples
    if examples.x.dim() != 4:
        raise InputError(f"size={size} is for pictures (C, H, W), but a datum is {tuple(examples.event_shape)}.")
    x = torch.cat([_resized(examples.x[part], size) for part in slices(examples.x)])
    return Examples(x, examples.y, levels=examples.levels)


class _Pictures(Dataset[Any]):
    """Picture files with their labels, if they have any; their headers are read at once."""

    def __init__(self, files: list[Path], labels: list[int] | None, size: int | None):
        self.files, self.labels, self.size = files, labels, size
        headers = in_threads(lambda file: self._open(file, lambda i: (MODES.get(i.mode, i.mode), i.size)), files)
        odd = next((i for i, header in enumerate(headers) if header != headers[0]), None)
        if odd is not None and size is None:
            one, other = (f"{files[i]} is {headers[i][0]} {headers[i][1]}" for i in (odd, 0))
            raise InputError(f"{one}, but {other}; pass size= to bring all pictures to one size and mode.")
        modes = {mode for mode, _ in headers}
        self.mode = modes.pop() if len(modes) == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        pixels = self._open(self.files[i], lambda image: pixels_of(image, self.mode))
        if self.size is not None:
            pixels = _resized(pixels[None], self.size)[0]
        return pixels, None if self.labels is None else self.labels[i]

    @staticmethod
    def _open(file: Path, use: Callable[[Any], Any]) -> Any:
        from PIL import Image

        try:
            with Image.open(regular_file(file, 2**30)) as image:
                return use(image)
        except InputError:
            raise
        except Exception as error:  # PIL raises a dozen kinds on broken files and on pictures that are too large
            raise InputError(f"{path_said(file)} can't be read as a picture: {first_sentence(error)}.") from error


def read_folder(path: Path, size: int | None) -> dict[str, Any]:
    """A folder of pictures, in train/, test/ ... if those are its subfolders."""
    try:
        inside = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    except OSError as error:
        raise InputError(f"The folder {path_said(path)} can't be read: {error.strerror}.") from error
    named = {PARTS[child.name.lower()]: child for child in inside if child.is_dir() and child.name.lower() in PARTS}
    if len(named) == len(inside) and "train" in named:
        return {part: _pictures(child, size) for part, child in named.items()}
    return {"train": _pictures(path, size)}


def _walked(path: Path) -> Iterator[Path]:
    """The pictures below a folder, relative to it; what is hidden is left out.

    Raises:
        InputError: if `MOST_OTHERS` other files were met, and fewer pictures: this is no folder of pictures.
    """
    pictures = others = 0
    for folder, inside, names in os.walk(path):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower() in _PICTURES and not name.startswith("."):
                pictures += 1
                yield file.relative_to(path)
            else:
                others += 1
        if others > MOST_OTHERS and others > pictures:
            raise InputError(
                f"The folder {path_said(path)} holds {pictures:,} pictures among the first {pictures + others:,} files that "
                "were found below it; name the folder that holds the pictures."
            )


def _pictures(path: Path, size: int | None) -> Examples | Stream:
    files = sorted(_walked(path))
    if not files:
        raise InputError(f"The folder {path_said(path)} holds no pictures ({', '.join(sorted(_PICTURES))}).")
    classes = sorted({file.parts[0] for file in files})
    in_classes = all(len(file.parts) > 1 for file in files)
    labels = [classes.index(file.parts[0]) for file in files] if in_classes else None
    return from_dataset(_Pictures([path / file for file in files], labels, size), None, threads=8)
