"""Figures from tensors: training curves, pictures, reconstructions and latent space.

Each function returns a `matplotlib.figure.Figure` made without pyplot, writes no file and leaves matplotlib's settings
as they are. Show one in a notebook by returning it, or write it with `figure.savefig("name.png", dpi=150)`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from pyro_vae.checks import InputError, one_of, positive, positive_int

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BLUE, ORANGE = "#333333", "#dddddd", "#2f6fab", "#d9730d"
# Tol's "muted" scheme, told apart with any colour vision; from the eleventh class on they repeat with another marker.
CLASS_COLOURS = (
    *("#332288", "#88ccee", "#117733", "#ddaa33", "#cc6677"),
    *("#44aa99", "#882255", "#999933", "#aa4499", "#777777"),
)
MARKERS = "o^"
SMALLEST_PICTURE = 4  # vectors of fewer than 4 × 4 entries, such as the four of iris, are no pictures
_STYLE = {
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


def curves(history: Sequence[dict[str, Any]]) -> Figure:
    """ELBO on the training and the validation data after each epoch, in nats per datum (higher is better).

    The first tenth of the epochs does not set the y limits, so that the climb at the start leaves room for the rest.

    Args:
        history: one dict per epoch with "epoch" and "loss" (the negative ELBO), and "validation_elbo" where known.

    Raises:
        InputError: if there is no epoch.
    """
    if not history:
        raise InputError("history is empty: there is no epoch to draw.")
    lines = {
        "training": [(row["epoch"], -row["loss"]) for row in history],
        "validation": [(row["epoch"], row["validation_elbo"]) for row in history if _known(row)],
    }
    with _axes(6.0, 3.6) as (figure, ax):
        for (name, points), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
            if points:
                last = f"{points[-1][1]:.2f}".replace("-", "−")
                marker = "o" if len(points) <= 20 else None
                xs, ys = zip(*points, strict=True)
                ax.plot(xs, ys, color=colour, marker=marker, markersize=3.5, label=f"{name}, {last} at the end")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
        _set_limits(ax, list(lines.values()))
        ax.grid(axis="y", color=FAINT, linewidth=0.6)
        ax.legend(loc="lower right")
    return figure


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
    x = _data("x", x)
    columns = min(len(x), positive_int("columns", columns or math.ceil(math.sqrt(len(x)))))
    pictures = _pictures(x, vmax)
    if pictures is None:
        with _axes(6.0, 3.2) as (figure, ax):
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
    x, again = _data("x", x), _data("again", again)
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


def latent(
    codes: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    explained: Sequence[float] | None = None,
    method: Literal["latent", "pca"] = "latent",
) -> Figure:
    """Where data lie in latent space, one point each, coloured by class.

    Args:
        codes: (N, 2) a scatter plot; (N, 1) a strip per class, or a histogram without classes.
        labels: (N,) a class per datum; one colour for all if there are more than 20 classes.
        explained: each principal component's share of the variance, 0 to 1.
        method: what the axes are, "latent" dimensions z_1 and z_2 or principal components ("pca").

    Raises:
        InputError: if codes have neither one nor two columns, or labels don't match them.
    """
    one_of("method", method, ["latent", "pca"])
    codes = _data("codes", codes)
    if codes.dim() != 2 or codes.shape[1] not in (1, 2):
        raise InputError(f"codes have shape {tuple(codes.shape)}; (N, 2) or (N, 1) is wanted.")
    if labels is not None and tuple(labels.shape) != (len(codes),):
        raise InputError(f"labels have shape {tuple(labels.shape)}, but there are {len(codes)} codes.")
    names = _axis_names(codes.shape[1], explained, method)
    classes, member = _classes(labels)
    if codes.shape[1] == 1:
        return _line_of_codes(codes[:, 0], classes, member, names[0])
    with _axes(5.6 if classes else 4.8, 4.4) as (figure, ax):
        points: dict[str, Any] = {"s": 9, "linewidths": 0, "alpha": 0.8}
        if not classes:
            ax.scatter(*codes.T.numpy(), color=BLUE, **points)
        for half, marker in enumerate(MARKERS):  # all colours at once, so that no class is drawn over the others
            mine = (member // len(CLASS_COLOURS) == half) & (member >= 0)
            if mine.any():
                colours = [_look(number)[0] for number in member[mine].tolist()]
                ax.scatter(*codes[mine].T.numpy(), color=colours, marker=marker, **points)
        ax.set(xlabel=names[0], ylabel=names[1])
        ax.set_aspect("equal", adjustable="datalim")
        if classes:
            _add_legend(figure, classes)
    return figure


# --- a figure and its axes -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of that many inches with one set of axes; the style holds inside the block only."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _data(name: str, x: Any) -> torch.Tensor:
    """`x` as a float tensor on the CPU with at least one datum."""
    if not isinstance(x, torch.Tensor) or not x.dim() or not x.numel():
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise InputError(f"{name} must be a tensor that holds at least one datum, but is {shape}.")
    return x.detach().to("cpu", torch.float64)


# --- curves ---------------------------------------------------------------------------------------------------------


def _known(row: dict[str, Any]) -> bool:
    value = row.get("validation_elbo")
    return isinstance(value, (int, float)) and math.isfinite(value)


def _set_limits(ax: Axes, lines: list[list[tuple[float, float]]]) -> None:
    longest = max(len(points) for points in lines)
    skipped = math.ceil(longest / 10) if longest >= 5 else 0
    shown = [y for points in lines for _, y in points[min(skipped, len(points) - 1) :] if points and math.isfinite(y)]
    if shown:
        top = max(y for points in lines for _, y in points if math.isfinite(y))
        room = 0.08 * ((top - min(shown)) or max(1.0, abs(top)))
        ax.set_ylim(min(shown) - room, top + room)


# --- pictures -------------------------------------------------------------------------------------------------------


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
    with _axes(width, min(max(width * whole.shape[0] / whole.shape[1], 0.5), 60.0)) as (figure, ax):
        ax.imshow(whole, interpolation="nearest", vmin=0, vmax=1)
        ax.spines[:].set_visible(False)
        yield figure, ax


# --- lines ----------------------------------------------------------------------------------------------------------


def _draw_lines(ax: Axes, x: torch.Tensor, alpha: float = 1.0, colour: str = BLUE) -> None:
    entries = x.reshape(len(x), -1).T.numpy()
    marker = "o" if len(entries) <= 12 else None
    ax.plot(range(1, len(entries) + 1), entries, color=colour, alpha=alpha, linewidth=1, marker=marker, markersize=2.5)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _line_pairs(x: torch.Tensor, again: torch.Tensor, columns: int, title: str | None) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    blocks = math.ceil(len(x) / columns)
    with matplotlib.rc_context(_STYLE):
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


# --- latent space ---------------------------------------------------------------------------------------------------


def _axis_names(dims: int, explained: Sequence[float] | None, method: str) -> list[str]:
    if method == "latent":
        return [f"$z_{d}$" for d in range(1, dims + 1)]
    shares = [""] * dims if explained is None else [f" ({100 * share:.0f} % of variance)" for share in explained]
    return [f"principal component {d}{share}" for d, share in enumerate(shares[:dims], 1)]


def _classes(labels: torch.Tensor | None) -> tuple[list[str], torch.Tensor]:
    """Names of the classes and each datum's number among them; no names if they are too many to tell apart."""
    if labels is not None:
        values, member = labels.detach().cpu().unique(return_inverse=True)
        if len(values) <= len(CLASS_COLOURS) * len(MARKERS):
            return [f"{value:g}" for value in values.tolist()], member
    return [], torch.tensor([-1])


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a class."""
    half, colour = divmod(number, len(CLASS_COLOURS))
    return CLASS_COLOURS[colour], MARKERS[half]


def _add_legend(figure: Figure, classes: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, name in enumerate(classes):
        colour, marker = _look(number)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=name))
    figure.legend(handles=handles, title="class", loc="outside right center", handletextpad=0.1)


def _line_of_codes(codes: torch.Tensor, classes: list[str], member: torch.Tensor, name: str) -> Figure:
    with _axes(6.0, max(2.2, 0.8 + 0.32 * len(classes))) as (figure, ax):
        ax.set_xlabel(name)
        if classes:
            jitter = 0.6 * (0.618034 * torch.arange(len(codes))).frac() - 0.3  # even, and no random state is touched
            colours = [_look(number)[0] for number in member.tolist()]
            ax.scatter(codes.numpy(), (member + jitter).numpy(), color=colours, s=9, linewidths=0, alpha=0.8)
            ax.set_yticks(range(len(classes)), classes)
            ax.set(ylabel="class", ylim=(len(classes) - 0.5, -0.5))
        else:
            ax.hist(codes.numpy(), bins=min(60, max(5, len(codes) // 10)), color=BLUE)
            ax.set_ylabel("number of data")
    return figure
