"""Figures, axes and colours that all plots share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, FAINT, BLUE, ORANGE = "#333333", "#dddddd", "#2f6fab", "#d9730d"


# Tol's "muted" scheme, told apart with any colour vision; from the eleventh class on they repeat with another marker.
CLASS_COLOURS = (
    *("#332288", "#88ccee", "#117733", "#ddaa33", "#cc6677"),
    *("#44aa99", "#882255", "#999933", "#aa4499", "#777777"),
)


MARKERS = "o^"


STYLE: Any = {
    "font.size": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


@contextlib.contextmanager
def new_axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of that many inches with one set of axes; the style holds inside the block only."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


@contextlib.contextmanager
def new_panels(width: float, height: float, columns: int, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of that many inches with several sets of axes, row by row; the style holds inside the block only."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def as_data(name: str, x: Any) -> torch.Tensor:
    """`x` as a float tensor on the CPU with at least one datum."""
    if not isinstance(x, torch.Tensor) or not x.dim() or not x.numel():
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise InputError(f"{name} must be a tensor that holds at least one datum, but is {shape}.")
    return x.detach().to("cpu", torch.float64)


def whole_ticks(ax: Axes) -> None:
    """Puts the ticks of the x axis at whole numbers."""
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(integer=True)
