"""Tables in files: CSV, TSV, semicolons, compressed or not, and Parquet, as DataFrames; what is malformed is refused."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from pyro_vae.data.opening import check_unpacked, memory_limit, regular_file
from pyro_vae.errors import InputError, first_sentence

TEXT = (".csv", ".tsv", ".txt", ".tab")
PARQUET = (".parquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
DELIMITERS = ",;\t|"
MISSING = ("?",)  # beside what pandas takes for a missing cell, such as an empty one, NA or NaN

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def is_table_file(path: Path) -> bool:
    """Whether a path's ending is that of a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in TEXT + PARQUET


def read_frame(path: Path, missing: tuple[Any, ...] = ()) -> Any:
    """A file as a DataFrame.

    Args:
        path: of the file.
        missing: texts that stand for a missing cell, beside the empty cell and what pandas takes for one.

    Raises:
        InputError: in one sentence that names the file, and the line and column where one is at fault.
    """
    regular_file(path)
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path)
    return parsed(_text_of(path), path.name, missing)


def parsed(text: str, name: str, missing: tuple[Any, ...] = ()) -> Any:
    """The text of a CSV file as a DataFrame; delimiter, header, index and decimal commas are found out.

    Raises:
        InputError: naming line and column.
    """
    import pandas as pd

    if not text.strip():
        raise InputError(f"{name} is empty.")
    delimiter = _delimiter_of(text)
    rows, count = _checked_rows(text, delimiter, name)
    first = rows[0]
    header = not all(_NUMBER.match(cell.strip()) for cell in first) or first == [str(i) for i in range(len(first))]
    if header and count == 1:
        raise InputError(f"{name} has a header, but no rows below it.")
    names = [cell.strip() for cell in first] if header else [f"column_{i}" for i in range(1, len(first) + 1)]
    index = 0 if header and len(first) > 1 and names[0] == "" else None
    _refuse_bad_names(names, name, index)
    body = rows[1:] if header else rows
    decimal = "," if delimiter != "," and _has_decimal_commas(body) else "."
    try:
        frame = pd.read_csv(
            io.StringIO(text.lstrip("\ufeff")),
            sep=delimiter,
            header=0 if header else None,
            names=names,
            index_col=index,
            decimal=decimal,
            na_values=[*MISSING, *map(str, missing)],
            skipinitialspace=True,
            skip_blank_lines=len(names) > 1,
            low_memory=False,
        )
    except (pd.errors.ParserError, ValueError) as error:
        raise InputError(f"{name} can't be read as a table: {first_sentence(error)}.") from error
    if index is not None:
        frame.index.name = None
    return _with_dates(frame)


def _text_of(path: Path) -> str:
    """The text of a file, unpacked, in UTF-8 or in what its byte order mark says."""
    raw = _unpacked(path)
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path.name}, line {line}: byte {error.start} is no {encoding.upper()}; save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path.name}, line {line}: there is a zero byte, so this is no text.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unpacked(path: Path) -> bytes:
    import bz2
    import gzip
    import lzma
    import zipfile

    suffix = path.suffix.lower()
    try:
        raw = path.read_bytes()
        if suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                inner = archive.namelist()
                if len(inner) != 1:
                    raise InputError(f"{path.name} holds {len(inner)} files; wanted: one table.")
                check_unpacked(path, archive.getinfo(inner[0]).file_size)
                return archive.read(inner[0])
        if suffix == ".zst":
            raise InputError(f"{path.name} is packed with zstd, which is not read; unpack it, or use gzip.")
        opened: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
        if suffix not in opened:
            return raw
        with opened[suffix](path) as packed:
            content: bytes = packed.read(memory_limit() + 1)
        check_unpacked(path, len(content))
        return content
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} can't be read: {first_sentence(error)}.") from error


def _delimiter_of(text: str) -> str:
    """The delimiter that the first line has most of, outside quotes; a comma where it has none."""
    line = next(line for line in text.split("\n") if line.strip())
    bare = re.sub(r'"[^"]*"', "", line)
    return max(DELIMITERS, key=lambda mark: bare.count(mark))


def _checked_rows(text: str, delimiter: str, name: str) -> tuple[list[list[str]], int]:
    """The first rows as lists of cells, and how many rows there are, each as long as the first.

    Raises:
        InputError: naming the line of a row that is shorter or longer, or of a quote that is not closed.
    """
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    before, count = 1, 0
    try:
        for row in reader:
            if row or (rows and len(rows[0]) == 1):
                if rows and len(row or [""]) != len(rows[0]):
                    raise InputError(
                        f"{name}, line {before}: there are {len(row)} cells, but {len(rows[0])} columns "
                        f"({', '.join(rows[0][:4])}{', ...' if len(rows[0]) > 4 else ''}); wanted: one for each."
                    )
                count += 1
                if count <= 200:
                    rows.append(row or [""])
            before = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}, line {before}: {first_sentence(error)}; is a quote not closed?") from error
    return rows, count


def _refuse_bad_names(names: list[str], file: str, index: int | None) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if i == index:
            continue
        if name == "":
            raise InputError(f"{file}: column {i + 1} has no name in the header; give it one.")
        if name in seen:
            raise InputError(
                f"{file}: column {name!r} occurs twice, as columns {seen[name] + 1} and {i + 1}; give each its own name."
            )
        seen[name] = i


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    cells = [cell.strip() for row in rows for cell in row]
    return any(re.match(r"[+-]?\d+,\d+$", cell) for cell in cells) and not any(
        re.match(r"[+-]?\d*\.\d+$", cell) for cell in cells
    )


def _with_dates(frame: Any) -> Any:
    """The frame with columns of text that are all dates as datetimes."""
    import pandas as pd

    from pyro_vae.data.kinds import are_dates

    for name in frame.columns:
        series = frame[name]
        there = series.dropna()
        if len(there) and isinstance(there.iloc[0], str) and are_dates(there):
            times = pd.to_datetime(
                series, format="ISO8601", errors="coerce", utc=bool(there.str.contains("[Zz+]").any())
            )
            if times.notna().sum() == len(there):
                frame[name] = times
    return frame


def _read_parquet(path: Path) -> Any:
    import pandas as pd

    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow to be read: run `pip install pyarrow`.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_unpacked(path, 8 * file.metadata.num_rows * max(1, file.metadata.num_columns))
        return pd.read_parquet(path, engine="pyarrow")
    except InputError:
        raise
    except Exception as error:  # pyarrow's errors have no common base
        raise InputError(f"{path.name} can't be read as .parquet: {first_sentence(error)}.") from error


def check_writable(path: Path) -> Path:
    """`path` after a look that its ending is one that tables are written in."""
    if path.suffix.lower() not in (".csv", ".tsv", *PARQUET):
        raise InputError(
            f"{path.name}: tables are written as .csv, .tsv or .parquet, not as {path.suffix or 'a file without ending'}."
        )
    return path


def write_frame(frame: Any, path: Path) -> None:
    """Writes a DataFrame as CSV, TSV or Parquet, whole or not at all; an index that just counts rows is left out."""
    import pandas as pd

    from pyro_vae.data.files import replacing

    check_writable(path)
    plain = pd.DataFrame(frame)
    index = not isinstance(plain.index, pd.RangeIndex)
    with replacing(path) as temporary:
        if path.suffix.lower() in PARQUET:
            plain.to_parquet(temporary, index=index)
        else:
            plain.to_csv(temporary, index=index, sep="\t" if path.suffix.lower() == ".tsv" else ",")
