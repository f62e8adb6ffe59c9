"""What the columns of a table hold: their kinds, inferred from the values or said by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyro_vae.errors import InputError, one_of

#: What a column may be. Dates are real numbers, in days.
KINDS = ("real", "positive", "count", "binary", "categorical", "ordinal", "date")
CODED = ("binary", "categorical", "ordinal")

MAX_CATEGORIES = 100  # text with more values than this is set aside unless its kind is said
MAX_ORDINAL = 12  # whole numbers in a row with at most so many values are ordinal
MAX_COUNT = 1000  # whole numbers from 0 to this are counts; larger ones are treated as real or positive numbers
NUMERIC_SHARE = 0.8  # of a text column's values: from there on the others are taken for mistakes

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$")


@dataclass(frozen=True)
class Column:
    """A column that the model sees.

    Attributes:
        name: in the table.
        kind: one of `KINDS`.
        dtype: the pandas dtype that values have on the way back.
        categories: the values of a binary, categorical or ordinal column; the model sees their numbers.
        levels: all categories of a pandas categorical dtype, those that do not occur among them.
        ordered: whether that dtype is ordered.
        whole: whether all numbers are whole, so that drawn ones are rounded.
        origin: what is subtracted before the numbers become float32; for dates the days since 1970.
    """

    name: Any
    kind: str
    dtype: str
    categories: tuple[Any, ...] = ()
    levels: tuple[Any, ...] = ()
    ordered: bool = False
    whole: bool = False
    origin: float = 0.0

    def plain(self) -> dict[str, Any]:
        """The column as plain values, for a config; what is as by default is left out."""
        defaults = asdict(Column(self.name, self.kind, self.dtype))
        mine = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {key: v for key, v in mine.items() if key in ("name", "kind", "dtype") or tuple_of(v) != defaults[key]}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Column:
        """What `plain` returned, as a column."""
        return cls(**{key: tuple_of(value) for key, value in content.items()})


def tuple_of(value: Any) -> Any:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def kind_of_column(series: Any, name: Any) -> tuple[str, str]:
    """The kind of a column's values, or ("", reason) where the column is to be set aside.

    Args:
        series: a pandas Series.
        name: of the column.
    """
    import pandas as pd

    there = series.dropna()
    try:
        distinct = there.nunique()
    except TypeError:
        return "", f"holds {type(there.iloc[0]).__name__} objects"
    if not len(there):
        return "", "no value in any row"
    if distinct == 1:
        return "", f"constant: {there.iloc[0]!s:.40}"
    types = pd.api.types
    if types.is_timedelta64_dtype(series) or types.is_complex_dtype(series):
        return "", f"of dtype {series.dtype}, which is not read"
    if types.is_datetime64_any_dtype(series):
        return "date", ""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _kind_of_categories(series.dtype, distinct)
    if types.is_bool_dtype(series):
        return "binary", ""
    if types.is_numeric_dtype(series):
        return _kind_of_numbers(there, distinct, name)
    return _kind_of_text(there, distinct)


def _kind_of_categories(dtype: Any, distinct: int) -> tuple[str, str]:
    if dtype.ordered:
        return "ordinal", ""
    if distinct > MAX_CATEGORIES:
        return "", f"{distinct} categories"
    return ("binary" if distinct == 2 else "categorical"), ""


def _kind_of_numbers(there: Any, distinct: int, name: Any) -> tuple[str, str]:
    import numpy as np

    values = there.to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    whole = bool((finite == np.round(finite)).all())
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if whole and distinct == 2:
        return "binary", ""
    if whole and distinct == len(values) >= 20:
        steps = np.diff(np.sort(values))
        if (steps == 1).all() or re.search(r"(^|[_\W])(id|key|number|no)$", str(name).lower()):
            return "", "an identifier: whole numbers, each once"
    if whole and distinct <= MAX_ORDINAL and high - low < MAX_ORDINAL:
        return "ordinal", ""
    if whole and low >= 0 and high <= MAX_COUNT:
        return "count", ""
    return ("positive" if low > 0 else "real"), ""


def _kind_of_text(there: Any, distinct: int) -> tuple[str, str]:
    if all(type(value) is bool for value in there):
        return "binary", ""
    if are_dates(there):
        return "date", ""
    if distinct == 2:
        return "binary", ""
    if distinct == len(there) and len(there) >= 20:
        return "", "an identifier: text, different in each row"
    if distinct > MAX_CATEGORIES:
        return "", f"{distinct} different texts"
    return "categorical", ""


def are_dates(there: Any) -> bool:
    """Whether all values of a column are dates: objects of `datetime`, or text such as 2024-05-31."""
    import datetime

    few = there.iloc[:100]
    if all(isinstance(value, (datetime.date, datetime.datetime)) for value in few):
        return True
    if not all(isinstance(value, str) and _DATE.match(value) for value in few):
        return False
    return all(isinstance(value, str) and bool(_DATE.match(value)) for value in there)


def numbers_among_text(series: Any) -> tuple[Any, Any] | None:
    """Numbers of a text column, and where there are words among them; None if most values are words.

    Returns:
        the values as numbers, NaN where they are none; and a mask of what is there but is no number.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series) or isinstance(series.dtype, pd.CategoricalDtype):
        return None
    if pd.api.types.is_datetime64_any_dtype(series) or series.map(lambda v: isinstance(v, bool)).any():
        return None
    numbers = pd.to_numeric(series.astype(object).where(series.notna(), None), errors="coerce").astype(float)
    words = series.notna() & numbers.isna()
    count = int(series.notna().sum())
    return (numbers, words) if count and 1 - words.sum() / count >= NUMERIC_SHARE else None


def refuse_unknown(what: str, names: Sequence[Any], known: Sequence[Any]) -> None:
    """Raises an InputError for the first name that is not among the columns."""
    for name in names:
        if name not in known:
            one_of(what, name, known)


def said_kind(name: Any, kind: Any) -> str:
    """A kind that the user says for a column."""
    if kind == "bool":
        raise InputError(f"kinds[{name!r}]='bool' is not known; say 'binary'.")
    return str(one_of(f"kinds[{name!r}]", kind, KINDS))
