"""Tables as people have them: columns of several kinds with missing cells, as tensors and back.

Example:
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"age": [31.5, None, 40.25, 28.0], "sex": ["f", "m", None, "f"]})
    >>> print(Table(frame))
    Table of 4 rows and 2 columns, 2 of 8 cells missing
    age  positive  28 to 40.25  1 missing
    sex  binary    'f', 'm'     1 missing
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.cells import as_dtype, decode, describe, encode
from pyro_vae.data.items import as_tensor
from pyro_vae.data.kinds import CODED, Column, kind_of_column, numbers_among_text, refuse_unknown, said_kind
from pyro_vae.data.reading import as_labels
from pyro_vae.data.resident import Examples, Index, as_index
from pyro_vae.data.table_files import read_frame
from pyro_vae.errors import InputError, kind_of


class Table(Examples):
    """A table as data: x (N, C) in torch's default dtype, NaN where a cell is missing, one column per modelled column.

    Numbers are as in the table (dates in days, less an origin); binary, categorical and ordinal columns are numbers of
    their categories. Standardisation is the likelihood's.

    Args:
        source: a DataFrame, or the path of a CSV file (comma, semicolon, tab or bar; .gz, .bz2, .xz and .zip are
            unpacked) or Parquet file.
        kinds: kinds by column, one of real, positive, count, binary, categorical, ordinal, date; others are inferred.
        missing: further values that stand for a missing cell, such as -999 or "unknown".
        drop: columns to set aside.
        label: a column that is no part of x; it colours figures, and is what conditional models read.
        columns: columns of an earlier table, `table.columns`, by which this one is to be read.

    Attributes:
        frame: the DataFrame, all columns.
        columns: the modelled columns.
        set_aside: why other columns are not modelled, by name.
        name: of the file, or "table".

    Raises:
        InputError: on a table that is malformed, naming file, column and row.
    """

    def __init__(
        self,
        source: Any,
        kinds: Mapping[Any, str] | None = None,
        missing: Sequence[Any] = (),
        drop: Sequence[Any] = (),
        label: Any = None,
        *,
        columns: Sequence[Column] | None = None,
    ):
        self.name, self.frame = _frame_of(source, tuple(missing))
        where = f"{self.name}: " if self.name != "table" else ""
        names = list(self.frame.columns)
        refuse_unknown("kinds", list(kinds or {}), names)
        refuse_unknown("drop", list(drop), names)
        if label is not None:
            refuse_unknown("label", [label], names)
        self.label, self.set_aside = label, {name: "dropped" for name in drop}
        if columns is None:
            columns = self._inferred(dict(kinds or {}), where)
        self.columns = tuple(columns)
        if lacking := [column.name for column in self.columns if column.name not in names]:
            raise InputError(f"{where}there is no column {lacking[0]!r}, which the model was trained with.")
        import numpy as np

        cells = np.stack([encode(self.frame[column.name], column, where) for column in self.columns], axis=1)
        y = None if label is None else as_labels(self.frame[label].astype(str).to_numpy())
        super().__init__(torch.from_numpy(cells).to(torch.get_default_dtype()), y)

    def _inferred(self, kinds: dict[Any, str], where: str) -> list[Column]:
        if len(self.frame) < 2:
            raise InputError(f"{where}there is {len(self.frame)} row; a table needs at least 2 to learn from.")
        columns = []
        for name in self.frame.columns:
            if name in self.set_aside or name == self.label:
                continue
            series = self.frame[name]
            if name in kinds:
                if series.notna().sum() == 0:
                    raise InputError(
                        f"{where}column {name!r} is said to be {kinds[name]}, but has no value in any row."
                    )
                columns.append(describe(series, name, said_kind(name, kinds[name]), where))
                continue
            series = _numeric_if_mostly(series, name, where)
            kind, reason = kind_of_column(series, name)
            if reason:
                self.set_aside[name] = reason
            else:
                columns.append(describe(series, name, kind, where))
        if not columns:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.set_aside.items())[:5])
            raise InputError(f"{where}no column is left to model ({reasons}).")
        return columns

    @property
    def kinds(self) -> dict[Any, str]:
        """The kind of each modelled column."""
        return {column.name: column.kind for column in self.columns}

    @property
    def index(self) -> Any:
        """The DataFrame's index."""
        return self.frame.index

    def __str__(self) -> str:
        holes = int(self.x.isnan().sum())
        lines = [
            f"Table of {len(self)} rows and {len(self.columns)} columns, {holes} of {self.x.numel()} cells missing"
        ]
        cells = [
            [str(c.name), c.kind, _extent(c, self.x[:, j]), _holes(self.x[:, j])] for j, c in enumerate(self.columns)
        ]
        lines += _aligned(cells)
        lines += [f"set aside: {name}: {reason}" for name, reason in self.set_aside.items()]
        if self.label is not None:
            lines.append(f"label: {self.label}")
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"Table({len(self)} rows, {len(self.columns)} columns)"

    def take(self, index: Index) -> Table:
        """The rows at `index`, in that order."""
        new: Any = super().take(index)
        at = as_index(index)
        new.frame = self.frame.iloc[at if isinstance(at, slice) else at.cpu().numpy()]
        return new

    def like(self, columns: Sequence[Column]) -> Table:
        """This table read by the columns of another; itself if it was read so already."""
        if tuple(columns) == self.columns:
            return self
        return Table(self.frame, columns=columns)

    def with_cells(self, x: torch.Tensor) -> Table:
        """The same rows with other cells, shape (N, C); `frame` stays as it is."""
        new = copy.copy(self)
        new.x = x
        return new

    def splits(self, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Any:
        """Rows to train, to validate and to test, the same in every run: `data.Splits` of three tables.

        Args:
            validation, test: shares of the rows.
            seed: of the choice.
        """
        from pyro_vae.data.named import Splits

        if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
            raise InputError(
                f"validation={validation!r} and test={test!r} must be shares of the rows that leave some to train."
            )
        sizes = [max(1, int(share * len(self))) for share in (validation, test)]
        if len(self) - sum(sizes) < 2:
            raise InputError(f"{self.name} holds {len(self)} rows, too few to be split in three.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        parts = [piece.sort().values for piece in order.split([len(self) - sum(sizes), *sizes])]
        return Splits(self.name, *(self.take(part) for part in parts))

    def to_frame(self, x: torch.Tensor | None = None) -> Any:
        """Cells as a DataFrame of the modelled columns, with names and dtypes; this table's own by default."""
        return frame_of_cells(self.x if x is None else x, self.columns, self.index if x is None else None)


def table_or_array(path: Path, kinds: Mapping[Any, str] | None = None, label: Any = None) -> Examples:
    """A file of a table: as an array if it holds numbers alone, none missing, and no kinds are said; else a `Table`.

    Args:
        path: of the file.
        kinds: kinds by column; {} always gives a `Table`.
        label: the column of labels.
    """
    import pandas as pd

    frame = read_frame(path)
    rest = frame.drop(columns=[label]) if label in frame.columns else frame
    numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in rest.dtypes)
    if kinds is not None or not numeric or rest.isna().to_numpy().any() or not rest.size:
        return Table(path, kinds, label=label)
    if label is not None:
        refuse_unknown("label", [label], list(frame.columns))
    x = as_tensor(rest.to_numpy(dtype=float))
    return Examples(x, None if label is None else as_labels(frame[label].to_numpy()))


def frame_of_cells(x: torch.Tensor, columns: Sequence[Column], index: Any = None) -> Any:
    """Cells (N, C) as a DataFrame with names and dtypes; a missing cell is one in the frame too.

    A dtype that cannot hold a missing value (int64, bool) becomes one that can (Int64, boolean) where there is one.
    """
    import pandas as pd

    index = pd.RangeIndex(len(x)) if index is None else index
    values = x.detach().to("cpu", torch.float64).numpy()
    series = [_series(values[:, j], column, index) for j, column in enumerate(columns)]
    return pd.concat(series, axis=1) if series else pd.DataFrame(index=index)


def _series(values: Any, column: Column, index: Any) -> Any:
    import numpy as np
    import pandas as pd

    there = ~np.isnan(values)
    if there.all():
        return as_dtype(decode(values, column), column, index)
    cells: list[Any] = [None] * len(values)
    for i, value in zip(np.flatnonzero(there), decode(values[there], column), strict=True):
        cells[i] = value
    nullable = {"bool": "boolean"} | {
        f"{u}int{n}": f"{'UI' if u else 'I'}nt{n}" for u in ("", "u") for n in (8, 16, 32, 64)
    }
    if column.dtype in nullable:
        return pd.Series(cells, index=index, name=column.name, dtype=nullable[column.dtype])
    return as_dtype(cells, column, index)


def filled_frame(frame: Any, x: torch.Tensor, missing: torch.Tensor, columns: Sequence[Column]) -> Any:
    """A copy of a frame with its missing cells filled; all else, dtypes and observed cells included, as it was.

    Args:
        frame: N rows.
        x: (N, C) cells of the modelled columns.
        missing: (N, C) which of them to take.
        columns: the C columns.
    """
    frame = frame.copy()
    for j, column in enumerate(columns):
        at = missing[:, j].cpu().numpy()
        if not at.any():
            continue
        values = decode(x[missing[:, j], j].double().cpu().numpy(), column)
        series = frame[column.name]
        if str(series.dtype) in ("float32", "Float32"):
            values = [float(v) for v in values]
        place = frame.columns.get_loc(column.name)
        if series.isna().all():  # such a column's dtype in the frame says nothing of what belongs there
            cells = x[:, j].masked_fill(~missing[:, j], torch.nan).double().cpu().numpy()
            frame.isetitem(place, _series(cells, column, frame.index))
            continue
        new = series.copy()
        new.iloc[at.nonzero()[0]] = as_dtype(values, column, frame.index[at]).astype(series.dtype).array
        frame.isetitem(place, new)
    return frame


def _frame_of(source: Any, missing: tuple[Any, ...]) -> tuple[str, Any]:
    import pandas as pd

    if isinstance(source, Table):
        return source.name, source.frame
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        name, frame = path.name, read_frame(path, missing)
    else:
        source = source.to_pandas() if hasattr(source, "to_pandas") else source
        if not isinstance(source, pd.DataFrame):
            raise InputError(f"source must be a DataFrame or the path of a table, not {kind_of(source)}.")
        name, frame = "table", source
    where = f"{name}: " if name != "table" else ""
    if isinstance(frame.columns, pd.MultiIndex):
        raise InputError(f"{where}columns have {frame.columns.nlevels} levels of names; wanted: one.")
    if (twice := frame.columns[frame.columns.duplicated()]).size:
        at = [i + 1 for i, column in enumerate(frame.columns) if column == twice[0]]
        raise InputError(
            f"{where}column {twice[0]!r} occurs twice, as columns {at[0]} and {at[1]}; give each a name of its own."
        )
    if not len(frame.columns) or not len(frame):
        raise InputError(f"{where}there are {len(frame)} rows and {len(frame.columns)} columns: no data.")
    return name, frame.mask(frame.isin(list(missing))) if missing else frame


def _numeric_if_mostly(series: Any, name: Any, where: str) -> Any:
    """A text column as numbers if nearly all of its values are.

    Raises:
        InputError: naming the first word among the numbers.
    """
    found = numbers_among_text(series)
    if found is None:
        return series
    numbers, words = found
    if words.any():
        i = int(words.to_numpy().argmax())
        raise InputError(
            f"{where}column {name!r}, row {series.index[i]!r}: {series.iloc[i]!r} stands among numbers; correct it, or "
            f"say missing=[{series.iloc[i]!r}] or kinds={{{name!r}: 'categorical'}}."
        )
    return numbers


def _extent(column: Column, values: torch.Tensor) -> str:
    if column.kind in CODED:
        shown = ", ".join(repr(category) for category in column.categories[:4])
        return shown + (f", ... ({len(column.categories)})" if len(column.categories) > 4 else "")
    there = values[~values.isnan()]
    low, high = decode([there.min().item(), there.max().item()], column)
    return f"{low:.6g} to {high:.6g}" if isinstance(low, (int, float)) else f"{low!s:.10} to {high!s:.10}"


def _holes(values: torch.Tensor) -> str:
    count = int(values.isnan().sum())
    return f"{count} missing" if count else ""


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
