"""Figures of results: calibration, predictive checks, use of latents. Each returns a `matplotlib.figure.Figure`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.inference.canvas import BLUE, CLASS_COLOURS, FAINT, INK, ORANGE, new_panels, whole_ticks
from pyro_vae.inference.quantities import DENSITY, TARP
from pyro_vae.inference.ranks import ecdf_bands, ecdf_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_vae.inference.calibration import Calibration
    from pyro_vae.inference.latents import LatentUse
    from pyro_vae.inference.predictive import PredictiveCheck

MOST_PANELS = 9


def calibration_chart(result: Calibration) -> Figure:
    """Each rank's distribution function less the uniform one with its 95 % band, and the expected coverage.

    Inside the band for a calibrated guide with a chance of 95 %, for each curve alone.
    """
    with new_panels(10.0, 4.4, 2) as (figure, (left, right)):
        share = torch.arange(1, result.num_draws + 1) / (result.num_draws + 1)
        low, high = ecdf_bands(result.num_datasets, result.num_draws)
        left.fill_between(share, low - share, high - share, color=FAINT, linewidth=0, label="95 % band, of each curve")
        for number, ranks in enumerate(result.ranks.values()):
            flat = ranks.reshape(len(ranks), -1)
            curves = ecdf_counts(flat, result.num_draws).double() / result.num_datasets - share[:, None]
            label = f"{flat.shape[1]} latents" if not number else None
            left.plot(share, curves[:, :1], color=BLUE, linewidth=0.8, alpha=0.7, label=label)
            left.plot(share, curves[:, 1:], color=BLUE, linewidth=0.8, alpha=0.7 if flat.shape[1] < 10 else 0.3)
        colours = (ORANGE, *CLASS_COLOURS[2:])
        shown = {name: ranks for name, ranks in result.function_ranks.items() if ranks.dim() == 1}
        for (name, ranks), colour in zip(shown.items(), colours, strict=False):
            curve = ecdf_counts(ranks[:, None], result.num_draws)[:, 0].double() / result.num_datasets - share
            left.plot(share, curve, color=colour, linewidth=1.4, label=name)
        left.axhline(0, color=INK, linewidth=0.6)
        left.set(xlabel="share of draws below the truth", ylabel="distribution function − uniform")
        left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        _coverage(right, result, share, low, high)
    return figure


def _coverage(ax: Axes, result: Calibration, share: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    ax.fill_between(share, low, high, color=FAINT, linewidth=0)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
    for name, label, colour in (
        (DENSITY, "regions of highest density", ORANGE),
        (TARP, "regions around random points (TARP)", BLUE),
    ):
        if name in result.function_ranks:
            ranks = result.function_ranks[name]
            inside = result.num_draws - ranks if name == DENSITY else ranks
            curve = ecdf_counts(inside[:, None], result.num_draws)[:, 0].double() / result.num_datasets
            ax.plot(share, curve, color=colour, linewidth=1.4, label=label)
    ax.set(xlabel="nominal content of the region", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def predictive_chart(result: PredictiveCheck) -> Figure:
    """A histogram of each statistic over replicates; the line is the data's value. At most nine are shown."""
    names = list(result.observed)[:MOST_PANELS]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with new_panels(3.3 * columns, 2.5 * rows, columns, rows) as (figure, axes):
        for name, ax in zip(names, axes, strict=False):
            values = result.replicated[name]
            ax.hist(values.numpy(), bins=min(30, max(5, len(values) // 10)), color=BLUE, alpha=0.7)
            ax.axvline(result.observed[name], color=ORANGE, linewidth=2)
            ax.set_title(f"{name}, p = {result.pvalues[name]:.2g}", fontsize=9)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.tick_params(labelsize=8)
            ax.locator_params(axis="x", nbins=4)
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        figure.supxlabel("statistic: replicates (bars), data (line)", fontsize=9)
    return figure


def latents_chart(result: LatentUse) -> Figure:
    """The KL of each dimension in falling order, active ones filled; the activity where KLs are not known."""
    rows: list[tuple[float, bool]] = []
    known = bool(result.kl)
    for site, on in result.active.items():
        heights = result.kl.get(site) if known else result.activity[site]
        if heights is not None:
            rows += list(zip(heights.flatten().tolist(), on.flatten().tolist(), strict=True))
    rows.sort(reverse=True)
    with new_panels(6.0, 3.4, 1) as (figure, (ax,)):
        places: Any = range(1, len(rows) + 1)
        for wanted, colour, label in ((True, BLUE, "active"), (False, ORANGE, "not active")):
            chosen = [(place, height) for place, (height, on) in zip(places, rows, strict=True) if on == wanted]
            if chosen:
                ax.bar(*zip(*chosen, strict=True), color=colour, label=f"{label}: {len(chosen)}")
        ax.set(
            xlabel="latent dimension, in falling order",
            ylabel="KL (nats)" if known else "variance of the posterior mean",
        )
        whole_ticks(ax)
        ax.legend()
    return figure
