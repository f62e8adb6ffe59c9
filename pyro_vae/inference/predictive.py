"""Does the model fit data? Statistics of data beside those of replicates that the model draws."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pyro import poutine

from pyro_vae.data import Binarization
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.inference.checked import held_data
from pyro_vae.inference.results import Result, Rows, chance, few
from pyro_vae.inference.simulation import Places, simulate
from pyro_vae.pair import (
    Batch,
    ModelAndGuide,
    PairLike,
    as_pair,
    evaluating,
    kept_random_state,
    sample_sites,
    trace_pair,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Statistic = Callable[[torch.Tensor], Any]
Latents = Literal["posterior", "prior"]

_HOW = {
    "posterior": "z from the guide, which stands in for the posterior, and x anew from p(x | z): p-values lie nearer to 0.5 "
    "than uniform ones, since replicates have seen the data",
    "prior": "z from the prior, x from p(x | z): p-values are valid for data that the model was not trained on",
}


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Result):
    """Statistics of a data set and of replicates of it.

    Attributes:
        observed: T(x), by name of the statistic.
        replicated: (R,) T of each replicate, by name.
        pvalues: two-sided, 2 min(P(T' ≥ T), P(T' ≤ T)) with the data counted as one of R + 1, by name: a replicate's p is at
            most α with a chance of at most α.
        latents: "posterior" or "prior".
        num_data: N.
        num_replicates: R.
        notes: what the reader must know.
    """

    title: ClassVar[str] = "predictive check of the model"
    derived: ClassVar[tuple[str, ...]] = ("pvalue", "rejected")

    observed: dict[str, float]
    replicated: dict[str, torch.Tensor]
    pvalues: dict[str, float]
    latents: str
    num_data: int
    num_replicates: int
    notes: tuple[str, ...] = ()

    @property
    def corrected(self) -> dict[str, float]:
        """p-values corrected for their number, by name: the share of all R + 1 data sets of which some statistic lies as far
        from its mean, in standard deviations over the R + 1 (Westfall & Young 1993, single step).

        Like the data, each replicate is one of the R + 1, so this holds for any number and dependence of statistics.
        """
        table = torch.stack(
            [torch.cat([torch.tensor([v]).double(), self.replicated[n]]) for n, v in self.observed.items()]
        )
        distance = (table - table.mean(1, keepdim=True)).abs() / table.std(1, keepdim=True).clamp_min(1e-300)
        furthest = distance.max(0).values
        shares = ((furthest >= own).double().mean().item() for own in distance[:, 0])
        return dict(zip(self.observed, shares, strict=True))

    @property
    def pvalue(self) -> float:
        """For all statistics together: the smallest of the corrected p-values."""
        return min(self.corrected.values())

    @property
    def rejected(self) -> tuple[str, ...]:
        """Statistics that the model does not reproduce: a corrected p-value of at most 0.05."""
        return tuple(name for name, p in self.corrected.items() if p <= 0.05)

    def rows(self) -> Rows:
        """The verdict, then each statistic with the replicates' middle 90 %."""
        said = f"not reproduced: {few(self.rejected)}" if self.rejected else "all statistics are reproduced"
        rows = [
            ("verdict", f"{said} ({chance(self.pvalue)} for all)"),
            ("replicates", f"{self.num_replicates} of {self.num_data} data, latents from the {self.latents}"),
        ]
        ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
        for name, value in self.observed.items():
            low, high = self.replicated[name].double().quantile(ends).tolist()
            rows.append((name, f"{value:.4g}, replicates {low:.4g} to {high:.4g}, {chance(self.pvalues[name])}"))
        return rows

    def plot(self) -> Figure:
        """A histogram of each statistic over replicates, with the data's value."""
        from pyro_vae.inference.charts import predictive_chart

        return predictive_chart(self)


def posterior_predictive(
    pair: PairLike,
    x: Any,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    num_replicates: int = 199,
    latents: Latents = "posterior",
    binarize: Binarization | None = None,
    seed: int = 0,
    batch_size: int = 2048,
) -> PredictiveCheck:
    """Tests the model against data: statistics of x beside those of replicates (Rubin 1984; Gelman et al. 1996, section 2).

    The spread over replicates is that of N data, so that small misfits of large data sets are found. Missing values (NaN)
    are missing from replicates too.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes; best data that the pair was not trained on.
        statistics: functions T of a data set, (N, *event_shape), to one number, by name; by default mean and standard
            deviation of all values, spread and extremes of the datum means, and the smallest and the largest value or the
            share of data that they make up.
        num_replicates: R; the smallest p-value that can come out is 2 / (R + 1).
        latents: "posterior", z of each datum from the guide; or "prior", z from the model.
        binarize: as in `log_likelihood`.
        seed: of all draws; torch's random state is left as it was.
        batch_size: how many data at once.

    Raises:
        InputError: if the model can't be simulated, or a statistic does not return one number.
    """
    pair = as_pair(pair)
    positive_int("num_replicates", num_replicates)
    positive_int("batch_size", batch_size)
    one_of("latents", latents, ["posterior", "prior"])
    examples = held_data(pair, x, binarize, seed)
    with evaluating(pair), kept_random_state(examples.device, seed):
        batches = [batch for _, batch in examples.batches(batch_size)]
        whole = torch.cat([batch[0] for batch in batches])
        asked = dict(statistics) if statistics is not None else default_statistics(whole)
        if not asked:
            raise InputError("statistics is empty: there is nothing to compare.")
        observed = {name: _number(name, statistic, whole) for name, statistic in asked.items()}
        missing = whole.isnan() if whole.is_floating_point() else None
        replicated: dict[str, list[float]] = {name: [] for name in asked}
        parts = [_Replicates(pair, batch, latents) for batch in batches]
        for _ in range(num_replicates):
            again = torch.cat([part.draw() for part in parts])
            if missing is not None and missing.any():
                again = again.masked_fill(missing, torch.nan)
            for name, statistic in asked.items():
                replicated[name].append(_number(name, statistic, again))
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in replicated.items()}
    firsts = {name: torch.cat([values.new_tensor([observed[name]]), values]) for name, values in tensors.items()}
    pvalues = {name: _two_sided(values)[0].item() for name, values in firsts.items()}
    return PredictiveCheck(observed, tensors, pvalues, latents, len(whole), num_replicates, (_HOW[latents],))


def default_statistics(x: torch.Tensor) -> dict[str, Statistic]:
    """Statistics that make sense for any numbers: of values, of datum means, and of the ends of their range."""
    low, high = float(x[~x.isnan()].min()), float(x[~x.isnan()].max())
    chosen: dict[str, Statistic] = {
        "mean": lambda x: x.nanmean(),
        "standard deviation": lambda x: x[~x.isnan()].std(),
    }
    if x[0].numel() > 1:
        chosen |= {
            "spread of datum means": lambda x: _datum_means(x).std(),
            "largest datum mean": lambda x: _datum_means(x).max(),
            "smallest datum mean": lambda x: _datum_means(x).min(),
        }
    for end, value in (("smallest", low), ("largest", high)):
        # An end that is met often is a part of what data are, such as 0 of counts; else it is an outlier.
        if (x == value).double().mean() > 0.01:
            chosen[f"share of {value:g}"] = functools.partial(_share, value)
        else:
            chosen[f"{end} value"] = _smallest if end == "smallest" else _largest
    if low == 0 and high == 1 and bool(((x == 0) | (x == 1)).all()):
        chosen = {
            name: s for name, s in chosen.items() if name not in ("standard deviation", "share of 0", "share of 1")
        }
    return chosen


def _datum_means(x: torch.Tensor) -> torch.Tensor:
    means = x.flatten(1).nanmean(1)
    return means[~means.isnan()]


def _share(value: float, x: torch.Tensor) -> torch.Tensor:
    return (x == value).double().sum() / (~x.isnan()).sum()


def _smallest(x: torch.Tensor) -> torch.Tensor:
    return x[~x.isnan()].min()


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x[~x.isnan()].max()


class _Replicates:
    """Draws of x for one batch, at latents from the guide or from the model."""

    def __init__(self, pair: ModelAndGuide, batch: Batch, latents: Latents):
        self.pair, self.batch, self.latents = pair, batch, latents
        self.places: Places | None = None
        self.names: tuple[str, ...] = ()
        if latents == "posterior":
            _, model_trace = trace_pair(pair, batch)
            self.names = tuple(sample_sites(model_trace, observed=False))  # without the guide's auxiliary variables

    def draw(self) -> torch.Tensor:
        values = None
        if self.names:
            sites: Any = poutine.trace(self.pair.guide).get_trace(*self.batch).nodes
            values = {name: sites[name]["value"] for name in self.names}
        drawn = simulate(self.pair, self.batch, values, places=self.places)
        self.places = drawn.places
        return drawn.batch[0]


def _number(name: str, statistic: Statistic, x: torch.Tensor) -> float:
    out = statistic(x)
    if isinstance(out, torch.Tensor) and out.numel() != 1:
        raise InputError(
            f"statistics[{name!r}] returned shape {tuple(out.shape)}; one number for the data set is wanted."
        )
    value = float(out)
    if value != value:
        raise InputError(f"statistics[{name!r}] is not a number for data of shape {tuple(x.shape)}.")
    return value


def _two_sided(values: torch.Tensor) -> torch.Tensor:
    """2 min(share at least as large, share at most as large) of each value among all, (R + 1,)."""
    above = (values >= values[:, None]).double().mean(1)
    below = (values <= values[:, None]).double().mean(1)
    return (2 * torch.minimum(above, below)).clamp_max(1.0)
