"""Figures from tensors: training curves, pictures, reconstructions and latent space.

Each function returns a `matplotlib.figure.Figure` made without pyplot, writes no file and leaves matplotlib's settings
as they are. Show one in a notebook by returning it, or write it with `figure.savefig("name.png", dpi=150)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from pyro_vae.errors import InputError, one_of
from pyro_vae.inference.canvas import BLUE, CLASS_COLOURS, FAINT, MARKERS, ORANGE, as_data, new_axes, whole_ticks
from pyro_vae.report.mosaics import images, reconstructions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["curves", "images", "latent", "reconstructions"]


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
    with new_axes(6.0, 3.6) as (figure, ax):
        for (name, points), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
            if points:
                last = f"{points[-1][1]:.2f}".replace("-", "−")
                marker = "o" if len(points) <= 20 else None
                xs, ys = zip(*points, strict=True)
                ax.plot(xs, ys, color=colour, marker=marker, markersize=3.5, label=f"{name}, {last} at the end")
        whole_ticks(ax)
        ax.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
        _set_limits(ax, list(lines.values()))
        ax.grid(axis="y", color=FAINT, linewidth=0.6)
        ax.legend(loc="lower right")
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
    codes = as_data("codes", codes)
    if codes.dim() != 2 or codes.shape[1] not in (1, 2):
        raise InputError(f"codes have shape {tuple(codes.shape)}; (N, 2) or (N, 1) is wanted.")
    if labels is not None and tuple(labels.shape) != (len(codes),):
        raise InputError(f"labels have shape {tuple(labels.shape)}, but there are {len(codes)} codes.")
    names = _axis_names(codes.shape[1], explained, method)
    classes, member = _classes(labels)
    if codes.shape[1] == 1:
        return _line_of_codes(codes[:, 0], classes, member, names[0])
    with new_axes(5.6 if classes else 4.8, 4.4) as (figure, ax):
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
    with new_axes(6.0, max(2.2, 0.8 + 0.32 * len(classes))) as (figure, ax):
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
