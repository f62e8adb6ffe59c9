"""Questions of some cells of a row given others: scores by two marginals, draws by sampling importance resampling."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.data.cells import encode
from pyro_vae.data.kinds import Column
from pyro_vae.data.tables import Table, frame_of_cells
from pyro_vae.errors import InputError, one_of
from pyro_vae.inference.imputation import Sampler
from pyro_vae.inference.rows import columns_of, rows_for
from pyro_vae.pair import ModelAndGuide, device_of

if TYPE_CHECKING:
    from pyro_vae.inference.estimates import LogLikelihood

SAMPLES_PER_DRAW, FEWEST = 20, 2000  # importance samples behind one resampled row, and at least

logger = logging.getLogger("pyro_vae")


def conditional_log_likelihood(
    pair: ModelAndGuide, x: Any, of: Sequence[Any] | None, given: Sequence[Any] | None, num_samples: int, **options: Any
) -> LogLikelihood:
    """log p(x_of | x_given) = log p(x_of, x_given) − log p(x_given) of each row; other cells are integrated out.

    Args:
        pair: of a table.
        x: rows.
        of: names of columns; all that are not given by default.
        given: names of columns; none by default, which gives the marginal log p(x_of).
        num_samples, options: of `log_likelihood`.
    """
    from pyro_vae.inference.estimates import LogLikelihood
    from pyro_vae.inference.likelihood import log_likelihood

    columns, table = _columns(pair), rows_for(pair, x)
    if not isinstance(table, Table):
        raise InputError("of= and given= name columns; wanted: rows of a table, not a tensor.")
    behind = _places("given", given or (), columns)
    asked = _places("of", of, columns) if of is not None else [j for j in range(len(columns)) if j not in behind]
    if both := sorted(set(asked) & set(behind)):
        raise InputError(f"of= and given= both name the column {columns[both[0]].name!r}.")
    if not asked:
        raise InputError("of= names no column: there is nothing to score.")
    joint = log_likelihood(pair, _only(table, [*asked, *behind]), num_samples, **options)
    if not behind:
        return joint
    alone = log_likelihood(pair, _only(table, behind), num_samples, **options)
    return LogLikelihood(
        joint.values - alone.values,
        (joint.mc_stderr.square() + alone.mc_stderr.square()).sqrt(),
        torch.maximum(joint.khat, alone.khat),
        torch.minimum(joint.ess, alone.ess),
        num_samples,
        joint.notes,
    )


def given_rows(pair: ModelAndGuide, num_rows: int, given: Mapping[Any, Any], seed: int | None) -> Any:
    """Rows drawn from p(other cells | given), a DataFrame; `attrs` holds the weights' effective sample size and k-hat.

    Args:
        pair: of a table.
        num_rows: how many rows.
        given: a value by name of column.
        seed: of the draws; None takes one from torch's random state.
    """
    import pandas as pd

    columns = _columns(pair)
    parameter = next(iter(pair.parameters()))  # type: ignore[attr-defined]
    row = torch.full((1, len(columns)), torch.nan, dtype=parameter.dtype)
    for name, j in zip(given, _places("given", list(given), columns), strict=True):
        row[0, j] = float(encode(pd.Series([given[name]], dtype=object), columns[j], "given: ")[0])
    row = row.to(device_of(pair))
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    size = max(FEWEST, SAMPLES_PER_DRAW * num_rows)
    sampler = Sampler(pair, (row,), row.isnan(), size, seed, 2**30)
    weights = sampler.imputation()
    ess, khat = weights.ess.item(), weights.khat.item()
    if khat > 0.7:
        logger.warning("The draws given %s have k-hat %.2f: they are not to be trusted.", dict(given), khat)
    frame = frame_of_cells(sampler.resampled(num_rows, 0)[:, 0], columns)
    for name, value in given.items():  # as it was said, not as float32 has it
        frame[name] = pd.Series([value] * num_rows, dtype=frame[name].dtype)
    frame.attrs = {"ess": ess, "khat": khat, "num_samples": size}
    return frame


def _columns(pair: ModelAndGuide) -> tuple[Column, ...]:
    columns = columns_of(pair)
    if not columns:
        raise InputError("of= and given= name columns of a table, but this pair models none; see VAE.for_table.")
    return columns


def _places(argument: str, names: Sequence[Any], columns: Sequence[Column]) -> list[int]:
    if isinstance(names, str):
        raise InputError(f"{argument}={names!r} must be a list of columns.")
    known = [column.name for column in columns]
    return [known.index(one_of(argument, name, known)) for name in names]


def _only(table: Table, places: Sequence[int]) -> Table:
    """The table with the cells of all other columns missing."""
    out = torch.ones(table.x.shape[1], dtype=torch.bool)
    out[list(places)] = False
    return table.with_cells(table.x.masked_fill(out.to(table.x.device), torch.nan))
