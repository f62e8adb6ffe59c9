"""One column of a table as numbers for the model, and numbers as values of the column's own dtype."""

from __future__ import annotations

from typing import Any

from pyro_vae.data.kinds import CODED, Column
from pyro_vae.errors import InputError, nearest

DAY = 86_400.0  # seconds
LARGEST = 1e30  # float32 ends at 3e38, and squares of standardised numbers must fit too


def describe(series: Any, name: Any, kind: str, where: str) -> Column:
    """The column of a series whose kind is known.

    Raises:
        InputError: naming column and row, where a value breaks the kind.
    """
    import numpy as np

    dtype = str(series.dtype)
    if kind in CODED:
        return _describe_codes(series, name, kind, where)
    values = to_days(series, name, where) if kind == "date" else to_numbers(series, name, where)
    refuse_infinite_cells(values, series, name, where)
    there = values[~np.isnan(values)]
    if kind == "positive":
        _refuse(series, name, where, values <= 0, "a positive number")
    if kind == "count":
        _refuse(
            series, name, where, (values < 0) | (values != np.round(values)), "a count: 0, 1, 2 ...", ~np.isnan(values)
        )
    spread = float(there.std()) or 1.0
    far = kind == "date" or (kind == "real" and abs(there.mean()) > 1e4 * spread)
    origin = float(np.floor(there.min())) if far else 0.0
    whole = bool((there == np.round(there)).all())
    return Column(name, kind, dtype, whole=whole, origin=origin)


def _describe_codes(series: Any, name: Any, kind: str, where: str) -> Column:
    import pandas as pd

    dtype = str(series.dtype)
    there = series.dropna()
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = tuple(map(_plain, series.dtype.categories))
        used = set(map(_plain, there))
        categories = tuple(level for level in levels if level in used)
        ordered = bool(series.dtype.ordered)
        _refuse_strange(categories, name, where)
        if kind == "binary" and len(categories) != 2:
            raise InputError(f"{where}column {name!r} is said to be binary, but has {len(categories)} values.")
        return Column(name, kind, dtype, categories, levels, ordered)
    categories = tuple(_plain(value) for value in there.unique())
    _refuse_strange(categories, name, where)
    try:
        categories = tuple(sorted(categories))
    except TypeError:
        categories = tuple(sorted(categories, key=str))
    if kind == "binary" and len(categories) != 2:
        raise InputError(f"{where}column {name!r} is said to be binary, but has {len(categories)} values.")
    return Column(name, kind, dtype, categories)


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    return value.item() if hasattr(value, "item") else value


def _refuse_strange(categories: tuple[Any, ...], name: Any, where: str) -> None:
    for value in categories:
        if not isinstance(value, (str, int, float, bool)):
            raise InputError(
                f"{where}column {name!r} has the category {value!r} of type {type(value).__name__}; wanted: text, numbers "
                "or booleans."
            )
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{where}column {name!r} holds {value}; wanted: finite numbers, or a cell that is empty.")


def encode(series: Any, column: Column, where: str) -> Any:
    """A series as float64 numbers, NaN where a cell is missing.

    Raises:
        InputError: naming column and row, where a value is none that the column can have.
    """
    import numpy as np

    if column.kind in CODED:
        return _codes(series, column, where)
    name = column.name
    values = to_days(series, name, where) if column.kind == "date" else to_numbers(series, name, where)
    refuse_infinite_cells(values, series, name, where)
    if column.kind == "positive":
        _refuse(series, name, where, values <= 0, "a positive number")
    if column.kind == "count":
        _refuse(
            series, name, where, (values < 0) | (values != np.round(values)), "a count: 0, 1, 2 ...", ~np.isnan(values)
        )
    return values - column.origin


def _codes(series: Any, column: Column, where: str) -> Any:
    import numpy as np

    numbers = {category: float(i) for i, category in enumerate(column.categories)}
    missing = series.isna().to_numpy()
    codes = np.full(len(series), np.nan)
    for i, value in enumerate(series):
        if missing[i]:
            continue
        code = numbers.get(_plain(value))
        if code is None:
            known = list(map(str, column.categories))
            hint, more = nearest(str(value), known), ", ..." if len(known) > 6 else ""
            raise InputError(
                f"{where}column {column.name!r}, {row_name(series, i)}: {_plain(value)!r} is none of the "
                f"{len(known)} values that were there in training ({', '.join(known[:6])}{more})."
                f"{hint}"
            )
        codes[i] = code
    return codes


def decode(values: Any, column: Column) -> Any:
    """Numbers of the model, float64 without NaN, as a list of values that the column's dtype can hold."""
    import numpy as np
    import pandas as pd

    values = np.asarray(values, dtype=np.float64)
    if column.kind in CODED:
        codes = np.clip(np.round(values), 0, len(column.categories) - 1).astype(int)
        return [column.categories[code] for code in codes]
    values = values + column.origin
    if column.kind == "date":
        values = np.floor(values) if column.whole else values
        times = pd.to_datetime(np.round(values * DAY), unit="s")
        if column.dtype.startswith("datetime64"):
            zone = column.dtype.partition(", ")[2].rstrip("]")
            return list(times.tz_localize("UTC").tz_convert(zone) if zone else times)
        if column.dtype == "object" and not column.whole:
            return list(times.to_pydatetime())
        return list(times.strftime("%Y-%m-%d" if column.whole else "%Y-%m-%dT%H:%M:%S"))
    if column.kind == "count":
        values = np.maximum(values, 0)
    if column.whole or column.kind == "count" or column.dtype.lower().startswith(("int", "uint")):
        values = np.round(values)
        return [int(v) for v in values] if "int" in column.dtype.lower() else list(values)
    return list(values)


def as_dtype(values: list[Any], column: Column, index: Any) -> Any:
    """Values as a series of the column's dtype."""
    import pandas as pd

    if column.levels or column.dtype == "category":
        dtype: Any = pd.CategoricalDtype(list(column.levels or column.categories), column.ordered)
    else:
        dtype = column.dtype
    return pd.Series(values, index=index, name=column.name, dtype=dtype)


def to_numbers(series: Any, name: Any, where: str) -> Any:
    """A series as float64; text that is a number is one.

    Raises:
        InputError: naming the first value that is none.
    """
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    numbers = pd.to_numeric(series.astype(object).where(series.notna(), None), errors="coerce")
    numbers = numbers.astype(float)
    _refuse(series, name, where, (numbers.isna() & series.notna()).to_numpy(), "a number")
    return numbers.to_numpy()


def to_days(series: Any, name: Any, where: str) -> Any:
    """A series of dates as float64 days since 1970 (UTC where there is a time zone).

    Raises:
        InputError: naming the first value that is no date.
    """
    import numpy as np
    import pandas as pd

    # Text may mix dates with and without a time; each is read as ISO 8601.
    times = pd.to_datetime(series, errors="coerce", utc=True, format=None if _is_time(series) else "ISO8601")
    _refuse(series, name, where, (times.isna() & series.notna()).to_numpy(), "a date such as 2024-05-31")
    days = np.array((times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1), dtype=np.float64)
    return days


def _is_time(series: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_datetime64_any_dtype(series))


def refuse_infinite_cells(values: Any, series: Any, name: Any, where: str) -> None:
    """Raises an InputError for the first infinite value."""
    import numpy as np

    _refuse(series, name, where, np.isinf(values), "a finite number, or a cell that is empty")
    size = np.abs(values)
    strange = (size > LARGEST) | ((size > 0) & (size < 1 / LARGEST))
    _refuse(
        series,
        name,
        where,
        strange,
        f"a number from {1 / LARGEST:g} to {LARGEST:g} in size, which the model computes with",
    )


def _refuse(series: Any, name: Any, where: str, bad: Any, wanted: str, there: Any = None) -> None:
    import numpy as np

    bad = np.asarray(bad) if there is None else np.asarray(bad) & there
    if bad.any():
        i = int(bad.argmax())
        value = series.iloc[i]
        raise InputError(
            f"{where}column {name!r}, {row_name(series, i)}: {_plain(value)!r} is not {wanted}; correct it, name it in "
            "missing=[...], or say another kind: "
            f"kinds={{{name!r}: ...}}."
        )


def row_name(series: Any, i: int) -> str:
    """Where a value stands: the row's label in the index, which counts rows from 0 unless it says otherwise."""
    return f"row {series.index[i]!r}"
