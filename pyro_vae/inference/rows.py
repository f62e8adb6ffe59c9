"""Rows of a table as the data of a pair that models one, and cells as rows again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.kinds import Column
from pyro_vae.data.tables import Table, frame_of_cells
from pyro_vae.pair.hooks import table_columns


def columns_of(pair: Any) -> tuple[Column, ...]:
    """The columns of the table that a pair models; none if it models no table."""
    return tuple(Column.from_plain(column) for column in table_columns(pair))


def is_rows(x: Any) -> bool:
    """Whether x is a DataFrame, a `Table` or a path."""
    return isinstance(x, (Table, str, Path)) or (hasattr(x, "iloc") and hasattr(x, "columns"))


def rows_for(pair: Any, x: Any) -> Any:
    """x as a `Table` read by the pair's columns, in its dtype, if the pair models a table and x is rows; else as it is.

    Raises:
        InputError: naming column and row, where a value is none that the column can have.
    """
    columns = columns_of(pair)
    if not columns or not is_rows(x):
        return x
    table = x.like(columns) if isinstance(x, Table) else Table(x, columns=columns)
    parameter = next(iter(getattr(pair, "parameters", lambda: ())()), None)
    if parameter is not None and parameter.dtype != table.x.dtype:
        table = table.with_cells(table.x.to(parameter.dtype))
    return table


def as_rows(pair: Any, x: torch.Tensor, index: Any = None) -> Any:
    """Cells (N, C) as a DataFrame if the pair models a table; else as they are."""
    columns = columns_of(pair)
    return frame_of_cells(x, columns, index) if columns and x.shape[1:] == (len(columns),) else x
