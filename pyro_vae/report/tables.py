"""Figures of tables: each column's distribution, and the correlations between columns, of sampled beside real rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.data.kinds import CODED, Column
from pyro_vae.errors import InputError
from pyro_vae.inference.canvas import BLUE, INK, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 24  # columns shown at most


def marginals(real: torch.Tensor, sampled: torch.Tensor, columns: Sequence[Column]) -> Figure:
    """The distribution of each column in real rows (bars) and in sampled ones (line, or narrow bars).

    Args:
        real, sampled: (N, C) and (M, C) cells; NaN is left out.
        columns: the C columns; the first 24 are shown.

    Raises:
        InputError: if the cells are not of these columns.
    """
    import matplotlib
    from matplotlib.figure import Figure

    _check(real, sampled, columns)
    shown = columns[:MOST]
    wide = min(4, len(shown))
    high = math.ceil(len(shown) / wide)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * wide, 1.9 * high + 0.4), layout="constrained")
        axes = figure.subplots(high, wide, squeeze=False).ravel()
        for j, (ax, column) in enumerate(zip(axes, shown, strict=False)):
            pair = [values[:, j][~values[:, j].isnan()].double().cpu() for values in (real, sampled)]
            (_bars if column.kind in CODED else _histogram)(ax, column, *pair)
            ax.set_title(f"{column.name}"[:28])
            ax.set_yticks([])
            ax.tick_params(labelsize=7)
        for ax in axes[len(shown) :]:
            ax.set_axis_off()
        handles = [matplotlib.patches.Patch(color=BLUE, alpha=0.45), matplotlib.lines.Line2D([], [], color=ORANGE)]
        figure.legend(handles, ["real rows", "sampled rows"], loc="outside lower center", ncols=2)
    return figure


def _histogram(ax: Axes, column: Column, real: torch.Tensor, sampled: torch.Tensor) -> None:
    import numpy as np

    if not len(real) or not len(sampled):
        return
    ends = real.numpy()
    low, high = (float(end) for end in np.quantile(ends, (0.005, 0.995)))
    if high <= low:
        low, high = float(ends.min()) - 0.5, float(ends.max()) + 0.5
    edges = np.linspace(low, high, 31)
    style: Any = {"bins": edges, "density": True}
    ax.hist(np.clip(ends, low, high), color=BLUE, alpha=0.45, **style)
    ax.hist(np.clip(sampled.numpy(), low, high), color=ORANGE, histtype="step", linewidth=1.4, **style)
    if column.kind == "date":
        ax.set_xlabel("days", fontsize=7)


def _bars(ax: Axes, column: Column, real: torch.Tensor, sampled: torch.Tensor) -> None:
    size = len(column.categories)
    shares = [
        torch.bincount(values.long(), minlength=size).double() / max(1, len(values)) for values in (real, sampled)
    ]
    places = torch.arange(size).numpy()
    ax.bar(places, shares[0].numpy(), color=BLUE, alpha=0.45, width=0.85)
    ax.bar(places, shares[1].numpy(), color="none", edgecolor=ORANGE, linewidth=1.4, width=0.5)
    if size <= 8:
        ax.set_xticks(places, [str(category)[:10] for category in column.categories], rotation=30 if size > 3 else 0)


def correlations(real: torch.Tensor, sampled: torch.Tensor, columns: Sequence[Column]) -> Figure:
    """Spearman's rank correlations between columns, of real rows, of sampled ones, and their difference.

    A column of classes counts by the number of its category, so that of one without an order only the agreement means
    anything.

    Args:
        real, sampled: (N, C) and (M, C) cells; a pair of columns is compared over rows that have both.
        columns: the C columns; the first 24 are shown.
    """
    import matplotlib
    from matplotlib.figure import Figure

    _check(real, sampled, columns)
    names = [str(column.name)[:14] for column in columns[:MOST]]
    tables = [rank_correlations(values[:, : len(names)]) for values in (real, sampled)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * 3 + 1, 3.4 + 0.05 * len(names)), layout="constrained")
        axes = figure.subplots(1, 3)
        titles = ("real rows", "sampled rows", "sampled − real")
        image: Any = None
        for ax, title, values in zip(axes, titles, [*tables, tables[1] - tables[0]], strict=True):
            image = ax.imshow(values.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.set_title(title)
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names), fontsize=7)
        figure.colorbar(image, ax=list(axes), shrink=0.8).ax.tick_params(labelsize=7, colors=INK)
    return figure


def rank_correlations(x: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of each pair of columns over the rows that have both, (C, C); 0 where undefined."""
    import pandas as pd

    found = pd.DataFrame(x.double().cpu().numpy()).corr(method="spearman", min_periods=3)
    return torch.from_numpy(found.to_numpy().copy()).nan_to_num(0.0)


def _check(real: torch.Tensor, sampled: torch.Tensor, columns: Sequence[Column]) -> None:
    for name, values in (("real", real), ("sampled", sampled)):
        if values.dim() != 2 or values.shape[1] != len(columns) or not len(values):
            raise InputError(f"{name} has shape {tuple(values.shape)}, but (N, {len(columns)}) is wanted.")
