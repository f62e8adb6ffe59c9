"""A table's model judged on rows it has not seen: scores, imputation of cells hidden anew, coverage of intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.data.kinds import CODED, Column
from pyro_vae.data.tables import Table
from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.estimates import LogLikelihood
from pyro_vae.inference.imputation import LEVELS, Imputation, Sampler
from pyro_vae.inference.likelihood import log_likelihood
from pyro_vae.inference.rows import rows_for
from pyro_vae.pair import PairLike, as_pair, device_of


@dataclass(frozen=True)
class TableReport:
    """What `evaluate_table` found.

    Attributes:
        log_likelihood: log p of each row's observed cells, nats in the table's units.
        columns: a DataFrame with a row for each column: "kind", "hidden" (cells), "log_p" (mean log p of a hidden cell given
            the row's other cells, nats), "nrmse" (root mean squared error over the column's standard deviation, numbers
            alone), "accuracy" (classes alone), "distance" (mean distance in levels over the number of levels less one,
            ordinal alone), "baseline" (the same error of the mean, or accuracy of the mode), "coverage_50" and
            "coverage_90" (share of hidden numbers inside the interval).
        khat: (N,) of the rows with hidden cells, from the imputation.
        hide: share of the observed cells that were hidden.
    """

    log_likelihood: LogLikelihood
    columns: Any
    khat: torch.Tensor
    hide: float

    def summary(self) -> dict[str, float]:
        """Means over the columns of each figure, and the share of rows with k-hat above 0.7."""
        names = ("nrmse", "accuracy", "distance", "coverage_50", "coverage_90", "log_p")
        means = {name: float(self.columns[name].mean()) for name in names}
        known = {name: value for name, value in means.items() if not math.isnan(value)}
        return known | {"khat_above_0.7": (self.khat > 0.7).double().mean().item()}

    def __str__(self) -> str:
        table = self.columns.round(3).to_string(na_rep="")
        return f"log p of a row: {self.log_likelihood}\nof {self.hide:.0%} of the observed cells, hidden anew:\n{table}"


def evaluate_table(
    pair: PairLike, rows: Any, *, hide: float = 0.2, num_samples: int = 500, seed: int = 0
) -> TableReport:
    """Scores rows, hides some of their observed cells at random, and compares what is imputed with what was there.

    Args:
        pair: of a table.
        rows: data.Table, DataFrame or file, not seen in training.
        hide: share of the observed cells to hide, between 0 and 1.
        num_samples: importance samples per row.
        seed: of the cells that are hidden, and of the draws.

    Raises:
        InputError: if the pair models no table, or no cell is left to hide.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    if isinstance(hide, bool) or not 0 < hide < 1:
        raise InputError(f"hide={hide!r} must be a share between 0 and 1.")
    table = rows_for(pair, rows)
    if not isinstance(table, Table):
        raise InputError("evaluate_table wants a pair of a table, such as VAE.for_table makes, and rows.")
    truth = table.x.to(device_of(pair))
    chosen = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)).to(truth.device) < hide
    hidden = chosen & ~truth.isnan()
    if not hidden.any():
        raise InputError("No cell is hidden: there are too few rows, or hide is too small.")
    holed = truth.masked_fill(hidden, torch.nan)
    sampler = Sampler(pair, (holed,), hidden, num_samples, seed, 2**28)
    imputation, log_p = sampler.imputation(), sampler.log_p_of(truth)
    score = log_likelihood(pair, table, num_samples, seed=seed)
    return TableReport(score, _by_column(table.columns, truth, hidden, imputation, log_p), imputation.khat, hide)


def _by_column(
    columns: tuple[Column, ...], truth: torch.Tensor, hidden: torch.Tensor, imputation: Imputation, log_p: torch.Tensor
) -> Any:
    import pandas as pd

    figures = {}
    for j, column in enumerate(columns):
        at = hidden[:, j]
        row: dict[str, Any] = {"kind": column.kind, "hidden": int(at.sum())}
        if at.any():
            x, seen = truth[at, j].double(), truth[~at & ~truth[:, j].isnan(), j].double()
            row["log_p"] = log_p[at, j].mean().item()
            guess = imputation.values if column.kind in CODED else imputation.mean
            row |= (_of_classes if column.kind in CODED else _of_numbers)(column, x, seen, guess[at, j].double())
            if column.kind not in CODED:
                for level in LEVELS:
                    low, high = (end[at, j].double() for end in imputation.interval(level))
                    row[f"coverage_{100 * level:.0f}"] = ((low <= x) & (x <= high)).double().mean().item()
        figures[column.name] = row
    names = ("kind", "hidden", "log_p", "nrmse", "accuracy", "distance", "baseline", "coverage_50", "coverage_90")
    return pd.DataFrame.from_dict(figures, orient="index").reindex(columns=list(names))


def _of_numbers(column: Column, x: torch.Tensor, seen: torch.Tensor, guess: torch.Tensor) -> dict[str, float]:
    spread = torch.cat([x, seen]).std(correction=0)
    mean = seen.mean() if len(seen) else x.mean()
    return {"nrmse": _rms(guess - x, spread), "baseline": _rms(mean - x, spread)}


def _rms(error: torch.Tensor, spread: torch.Tensor) -> float:
    return (error.square().mean().sqrt() / spread).item() if spread > 0 else math.nan


def _of_classes(column: Column, x: torch.Tensor, seen: torch.Tensor, guess: torch.Tensor) -> dict[str, float]:
    mode = (seen if len(seen) else x).mode().values
    row = {"accuracy": (guess == x).double().mean().item(), "baseline": (mode == x).double().mean().item()}
    if column.kind == "ordinal":
        row["distance"] = ((guess - x).abs().mean() / (len(column.categories) - 1)).item()
    return row
