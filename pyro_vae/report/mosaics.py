"""Pictures in a grid, and data above their reconstructions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pyro_vae.errors import InputError, positive, positive_int
from pyro_vae.inference.canvas import BLUE, INK, ORANGE, STYLE, as_data, new_axes, whole_ticks

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SMALLEST_PICTURE = 4  # vectors of fewer than 4 × 4 entries, such as the four of iris, are no pictures


def images(
    x: torch.Tensor, *, columns: int | None = None, title: str | None = None, vmax: float | None = None
) -> Figure:
    """A grid of pictures, one per datum, row by row; data that are no pictures are drawn as lines.

    Args:
        x: pictures of shape (N, H, W), (N, C, H, W) with C = 1 or 3, or (N, D) with D a square number of at least 16.
            Values are shown from 0 (black) to 1. Any other shape is drawn as one line per datum over its entries.
        columns: pictures per row; about as many as rows by default.
        title: a line above the grid.
        vmax: the value shown as white, where data go beyond 1.

    Raises:
        InputError: if there is no datum.
    """
    x = as_data("x", x)
    columns = min(len(x), positive_int("columns", columns or math.ceil(math.sqrt(len(x)))))
    pictures = _pictures(x, vmax)
    if pictures is None:
        with new_axes(6.0, 3.2) as (figure, ax):
            _draw_lines(ax, x, alpha=max(0.25, 1 / len(x) ** 0.5))
            ax.set(xlabel="entry", ylabel="value", title=title or "")
        return figure
    gap = _gap(pictures)
    rows = [_row(pictures[start : start + columns], columns, gap) for start in range(0, len(x), columns)]
    with _mosaic(rows, [gap] * len(rows), 0.65 * columns) as (figure, ax):
        ax.set(title=title or "", xticks=[], yticks=[])
    return figure


def reconstructions(
    x: torch.Tensor,
    again: torch.Tensor,
    *,
    columns: int = 10,
    title: str | None = None,
    vmax: float | None = None,
) -> Figure:
    """Data above their reconstructions; data that are no pictures are drawn as lines.

    Args:
        x: the data, in any shape that `images` takes.
        again: their reconstructions, of the same shape.
        columns: data per row.
        title: a line above.
        vmax: the value shown as white, where data go beyond 1.

    Raises:
        InputError: if the shapes differ or there is no datum.
    """
    x, again = as_data("x", x), as_data("again", again)
    if x.shape != again.shape:
        raise InputError(f"again has shape {tuple(again.shape)}, but x has {tuple(x.shape)}; they must be the same.")
    columns = min(len(x), positive_int("columns", columns))
    above, beneath = _pictures(x, vmax), _pictures(again, vmax)
    if above is None or beneath is None:
        return _line_pairs(x, again, columns, title)
    gap = _gap(above)
    rows, gaps = [], []
    for start in range(0, len(x), columns):
        rows += [_row(kind[start : start + columns], columns, gap) for kind in (above, beneath)]
        gaps += [gap, 4 * gap]
    with _mosaic(rows, gaps, 0.72 * columns) as (figure, ax):
        height = above.shape[1]
        tops = [sum(gaps[:r]) + r * height for r in range(len(rows))]
        ax.set_title(title or "")
        ax.set_xticks([])
        ax.set_yticks([top + height / 2 - 0.5 for top in tops], ["data", "reconstruction"] * (len(rows) // 2))
        ax.tick_params(length=0, labelcolor=INK)
    return figure


def _pictures(x: torch.Tensor, vmax: float | None) -> np.ndarray | None:
    """(N, H, W, C) with values in [0, 1]; None if `x` has no pictorial shape."""
    if x.dim() == 2:
        side = math.isqrt(x.shape[1])
        if side < SMALLEST_PICTURE or side * side != x.shape[1]:
            return None
        x = x.unflatten(1, (side, side))
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return None
    scaled = x / positive("vmax", 1.0 if vmax is None else vmax)
    return scaled.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _gap(pictures: np.ndarray) -> int:
    """Pixels of white between pictures."""
    return max(1, round(max(pictures.shape[1:3]) / 14))


def _row(pictures: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Pictures side by side, (H, columns · W + gaps, 3), white where there are fewer than columns."""
    import numpy as np

    _, height, width, _ = pictures.shape
    row = np.ones((height, columns * (width + gap) - gap, 3))
    for column, picture in enumerate(pictures):
        row[:, column * (width + gap) : column * (width + gap) + width] = picture
    return row


@contextlib.contextmanager
def _mosaic(rows: list[np.ndarray], gaps: list[int], width: float) -> Iterator[tuple[Figure, Axes]]:
    """Rows of pictures one under the other as one image, with `gaps` beneath each but the last."""
    import numpy as np

    parts = []
    for row, gap in zip(rows, gaps, strict=True):
        parts += [row, np.ones((gap, *row.shape[1:]))]
    whole = np.concatenate(parts[:-1])
    width = min(max(width, 2.0), 8.0)
    with new_axes(width, min(max(width * whole.shape[0] / whole.shape[1], 0.5), 60.0)) as (figure, ax):
        ax.imshow(whole, interpolation="nearest", vmin=0, vmax=1)
        ax.spines[:].set_visible(False)
        yield figure, ax


def _draw_lines(ax: Axes, x: torch.Tensor, alpha: float = 1.0, colour: str = BLUE) -> None:
    entries = x.reshape(len(x), -1).T.numpy()
    marker = "o" if len(entries) <= 12 else None
    ax.plot(range(1, len(entries) + 1), entries, color=colour, alpha=alpha, linewidth=1, marker=marker, markersize=2.5)
    whole_ticks(ax)


def _line_pairs(x: torch.Tensor, again: torch.Tensor, columns: int, title: str | None) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    blocks = math.ceil(len(x) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(min(max(0.9 * columns, 3.0), 9.0), 1.8 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, columns, sharex=True, sharey=True, squeeze=False)
        for ax in grid.flat:
            ax.set_axis_off()
        for number, pair in enumerate(zip(x, again, strict=True)):
            block, column = divmod(number, columns)
            kinds = ("data", "reconstruction")
            for row, (datum, kind, colour) in enumerate(zip(pair, kinds, (BLUE, ORANGE), strict=True)):
                ax = grid[2 * block + row, column]
                ax.set_axis_on()
                _draw_lines(ax, datum[None], colour=colour)
                ax.spines[["top", "right"]].set_visible(False)
                if column == 0:
                    ax.set_ylabel(kind)
                ax.label_outer()
        if title:
            figure.suptitle(title)
    return figure
