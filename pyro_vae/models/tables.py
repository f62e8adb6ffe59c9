"""The likelihood of a table's columns, by words: which distribution each kind of column has, in the column's own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from pyro_vae import likelihoods
from pyro_vae.data.kinds import Column
from pyro_vae.data.tables import Table
from pyro_vae.distributions.affine import transformed
from pyro_vae.errors import InputError, one_of
from pyro_vae.likelihoods import Columns, Likelihood
from pyro_vae.networks import MLP

#: Importance samples of the bound that a table's VAE is trained by, unless another objective is given.
BOUND_SAMPLES = 5

#: Floor of the standard deviation given z, in standard deviations of the column: where many rows share one value, a density
#: could grow there without bound, and drown all other columns.
MIN_SCALE = 0.05

#: Where fewer cells than this share are missing, the encoder is not shown this share of them in training.
FEW, HIDE = 0.02, 0.2

REAL = {"Normal": likelihoods.Normal, "StudentT": likelihoods.StudentT, "Laplace": likelihoods.Laplace}
COUNTS: dict[str, Callable[..., Likelihood]] = {
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "ZeroInflatedPoisson": likelihoods.ZeroInflatedPoisson,
    "ZeroInflatedNegativeBinomial": likelihoods.ZeroInflatedNegativeBinomial,
}
#: The words that each kind of column takes; the first is the default.
WORDS: dict[str, tuple[str, ...]] = {
    "real": tuple(REAL),
    "positive": ("auto", "LogNormal", "SoftplusNormal", "Gamma", *REAL),
    "count": ("RoundedLogistic", *COUNTS),
    "binary": ("Bernoulli",),
    "categorical": ("Categorical",),
    "ordinal": ("Ordinal", "Categorical"),
    "date": tuple(REAL),
}


def columns_for(
    table: Table,
    words: Mapping[str, str],
    named: Mapping[Any, str | Likelihood],
    inputs: Literal["vector", "set"] = "vector",
    hide: float | None = None,
) -> Columns:
    """`likelihoods.Columns` for a table, each column standardised by what the table holds.

    Args:
        table: the training rows.
        words: a likelihood by kind of column.
        named: a word, or a likelihood, by name of column.
        inputs: what the encoder reads, as in `Columns`.
        hide: as in `Columns`; by default 0.2 where hardly a cell is missing, else 0.

    Raises:
        InputError: on a word that its kind does not take, or a name that is no column.
    """
    for kind, word in words.items():
        one_of(kind, word, WORDS[kind])
    for name in named:
        if name not in table.kinds:
            one_of("columns", name, list(table.kinds))
    parts = []
    for j, column in enumerate(table.columns):
        chosen = named.get(column.name, words.get(column.kind, WORDS[column.kind][0]))
        if isinstance(chosen, Likelihood):
            parts.append(chosen)
        else:
            one_of(f"columns[{column.name!r}]", chosen, WORDS[column.kind])
            parts.append(_likelihood(column, chosen, table.x[:, j]))
    if hide is None:
        hide = HIDE if table.x.isnan().double().mean() < FEW else 0.0
    return Columns(parts, [column.plain() for column in table.columns], inputs, hide)


def table_network() -> MLP:
    """The network of a table's VAE, each way; what it adds to a linear map is learned beside that."""
    return MLP((128, 128), "ReLU", residual=True)


def _likelihood(column: Column, word: str, values: torch.Tensor) -> Likelihood:
    there = values[~values.isnan()].double()
    if not len(there):
        raise InputError(f"column {column.name!r} has no value in these rows; its scale can't be learned.")
    if word == "Bernoulli":
        return likelihoods.Bernoulli()
    if word == "Categorical":
        return likelihoods.Categorical(len(column.categories))
    if word == "Ordinal":
        return likelihoods.Ordinal(len(column.categories), "per datum")
    if word in COUNTS:
        return COUNTS[word]()
    loc, scale = moments(there)
    if word == "RoundedLogistic":
        return likelihoods.RoundedLogistic(loc, scale, "per datum")
    if word == "auto":
        word = "LogNormal" if _is_log_normal(there) else "SoftplusNormal"
    if word == "LogNormal":
        return likelihoods.Standardized(likelihoods.Normal("per datum", MIN_SCALE), *moments(there.log()), "log")
    if word == "SoftplusNormal":
        unit = float(f"{there.median():.6g}")
        around = transformed(there / unit, "softplus")
        return likelihoods.Standardized(likelihoods.Normal("per datum", MIN_SCALE), *moments(around), "softplus", unit)
    if word == "Gamma":
        return likelihoods.Standardized(likelihoods.Gamma("per datum"), 0.0, float(f"{there.mean():.6g}"))
    return likelihoods.Standardized(REAL[word](scale="per datum", min_scale=MIN_SCALE), loc, scale)


def _is_log_normal(there: torch.Tensor) -> bool:
    """Whether logarithms are roughly symmetric and so little spread that means are no matter of the far tail."""
    logs = there.log()
    scale = logs.std(correction=0)
    skewness = ((logs - logs.mean()) / scale.clamp(min=1e-12)).pow(3).mean()
    return bool(scale <= 1 and skewness.abs() <= 1)


def moments(there: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation to six digits, the second 1 where all values are one."""
    loc, scale = there.mean(), there.std(correction=0)
    return float(f"{loc:.6g}"), float(f"{scale:.6g}") if scale > 0 else 1.0
