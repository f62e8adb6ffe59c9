"""Tables: read rightly or refused in one sentence, kinds inferred, and back to the names, dtypes and index that went in."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Table
from pyro_vae.data.tables import filled_frame, frame_of_cells
from pyro_vae.errors import InputError

ROWS = 40


def mixed(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """A table with every kind of column and several dtypes, a fifth of the cells missing, and an index of its own."""
    g = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "real": g.normal(size=rows),
            "positive": np.exp(g.normal(size=rows)),
            "count": g.poisson(20, rows),
            "whole": pd.array(g.integers(0, 40, rows), dtype="Int64"),
            "flag": pd.array(g.random(rows) < 0.5, dtype="boolean"),
            "pure": g.random(rows) < 0.5,
            "word": g.choice(["red", "green", "blue"], rows),
            "class": pd.Categorical(g.choice(["a", "b"], rows), categories=["b", "a", "never"]),
            "grade": pd.Categorical(g.choice(["low", "mid", "top"], rows), ["low", "mid", "top"], ordered=True),
            "level": g.integers(1, 6, rows),
            "day": pd.Timestamp("2020-02-01") + pd.to_timedelta(g.integers(0, 900, rows), unit="D"),
            "moment": pd.date_range("2021-03-05 10:00", periods=rows, freq="37min", tz="Europe/Berlin"),
            "text_day": (pd.Timestamp("2020-02-01") + pd.to_timedelta(g.integers(0, 900, rows), unit="D")).strftime(
                "%Y-%m-%d"
            ),
        },
        index=[f"row {i}" for i in range(rows)],
    )
    for name in frame.columns.drop(["count", "pure", "level"]):
        frame.loc[frame.index[g.random(rows) < 0.2], name] = None
    return frame


KINDS = {
    "real": "real",
    "positive": "positive",
    "count": "count",
    "whole": "count",
    "flag": "binary",
    "pure": "binary",
    "word": "categorical",
    "class": "binary",
    "grade": "ordinal",
    "level": "ordinal",
    "day": "date",
    "moment": "date",
    "text_day": "date",
}


def test_kinds_are_inferred_and_shown():
    table = Table(mixed())
    assert table.kinds == KINDS
    assert table.event_shape == (len(KINDS),)
    shown = str(table)
    assert all(f"{name} " in shown and kind in shown for name, kind in KINDS.items())
    assert repr(table) == f"Table({ROWS} rows, {len(KINDS)} columns)"


def test_tensors_become_the_frame_again():
    """Names, order, index, dtypes and values; a missing cell stays one."""
    frame = mixed()
    again = Table(frame).to_frame()
    pd.testing.assert_frame_equal(again[["real", "positive"]], frame[["real", "positive"]], rtol=1e-6)
    moments = again.pop("moment") - frame["moment"]
    assert moments.abs().max() < pd.Timedelta(seconds=2)  # float32 holds days to some seconds
    rest = [name for name in again.columns if name not in ("real", "positive")]
    pd.testing.assert_frame_equal(again[rest], frame[rest])


def test_filled_cells_take_the_columns_dtype_and_no_other_cell_moves():
    frame = mixed().assign(name=[f"person {i}" for i in range(ROWS)])
    table = Table(frame)
    assert table.set_aside == {"name": "an identifier: text, different in each row"}
    missing = table.x.isnan()
    filled = filled_frame(frame, table.x.nan_to_num(1.0), missing, table.columns)
    assert filled.dtypes.equals(frame.dtypes)
    assert filled.index.equals(frame.index)
    assert list(filled.columns) == list(frame.columns)
    there = frame.notna()
    pd.testing.assert_frame_equal(filled.where(there), frame.where(there))
    assert filled.notna().all(axis=None)


def test_no_column_is_a_label_unless_the_user_says_so(tmp_path):
    frame = pd.DataFrame({"a": np.linspace(-1, 1, 30), "target": np.arange(30) % 3, "y": np.linspace(5, 9, 30)})
    assert list(Table(frame).kinds) == ["a", "target", "y"]
    said = Table(frame, label="target")
    assert list(said.kinds) == ["a", "y"]
    assert said.y.tolist() == frame["target"].tolist()
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert data.load(tmp_path / "t.csv").event_shape == (3,)
    assert data.load(tmp_path / "t.csv", label="target").train.y is not None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([3.5] * 30, "constant: 3.5"),
        ([None] * 30, "no value in any row"),
        (range(100, 130), "an identifier: whole numbers, each once"),
        ([f"n{i}" for i in range(30)], "an identifier: text, different in each row"),
        (pd.to_timedelta(range(30), unit="D"), "of dtype timedelta64"),
        ([[i] for i in range(30)], "holds list objects"),
    ],
)
def test_columns_without_use_are_set_aside_with_a_reason(values, reason):
    table = Table(pd.DataFrame({"odd": values, "kept": np.arange(30) % 7 / 2}))
    assert table.set_aside["odd"].startswith(reason)
    assert list(table.kinds) == ["kept"]


def test_many_texts_are_set_aside_and_modelled_if_said():
    frame = pd.DataFrame({"city": [f"c{i % 110}" for i in range(220)], "x": np.linspace(0.5, 2, 220)})
    assert Table(frame).set_aside == {"city": "110 different texts"}
    assert Table(frame, kinds={"city": "categorical"}).kinds["city"] == "categorical"


def test_values_that_break_a_kind_are_told_by_column_and_row():
    frame = pd.DataFrame({"n": [1.0, 4.0, 300.0], "c": ["a", "b", "c"], "p": [0.5, 1.5, 2.5]}, index=["x", "y", "z"])
    table = Table(frame, kinds={"n": "count", "c": "categorical"})
    for name, value, message in (
        ("n", -1.0, r"column 'n', row 'y': -1.0 is not a count"),
        ("n", 1.5, r"column 'n', row 'y': 1.5 is not a count"),
        ("c", "d", r"column 'c', row 'y': 'd' is none of the 3 values .*\(a, b, c\)"),
        ("p", 0.0, r"column 'p', row 'y': 0.0 is not a positive number"),
        ("p", math.inf, r"column 'p', row 'y': inf is not a finite number"),
    ):
        bad = frame.copy()
        bad.loc["y", name] = value
        with pytest.raises(InputError, match=message):
            Table(bad, columns=table.columns)
    with pytest.raises(InputError, match="there is no column 'c'"):
        Table(frame[["n", "p"]], columns=table.columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": {"a": "reel"}}, r"kinds\['a'\]='reel' is not known. Did you mean 'real'"),
        ({"kinds": {"b": "real"}}, "kinds='b' is not known"),
        ({"drop": ["b"]}, "drop='b' is not known"),
        ({"label": "b"}, "label='b' is not known"),
        ({"kinds": {"a": "binary"}}, "column 'a' is said to be binary, but has 3 values"),
        ({"kinds": {"w": "real"}}, "column 'w', row 0: 'u' is not a number"),
        ({"kinds": {"w": "date"}}, "column 'w', row 0: 'u' is not a date"),
        ({"drop": ["a", "w"]}, r"no column is left to model \(a: dropped; w: dropped\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Table(pd.DataFrame({"a": [0.5, 1.5, 2.5], "w": ["u", "v", "u"]}), **arguments)


def test_missing_values_are_what_the_user_says(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1.5,x\n-999,unknown\n2.5,y\n?,z\n")
    table = Table(tmp_path / "t.csv", missing=[-999, "unknown"])
    assert table.x.isnan().tolist() == [[False, False], [True, True], [False, False], [True, False]]
    assert Table(pd.DataFrame({"a": [1.5, -999.0, 2.5]}), missing=[-999]).x.isnan().sum() == 1


def test_splits_are_the_same_in_every_run_and_hold_each_row_once():
    frame = mixed(100)
    one, two = Table(frame).splits(), Table(frame).splits()
    parts = [one.train, one.validation, one.test]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(name for part in parts for name in part.index) == sorted(frame.index)
    assert one.test.index.equals(two.test.index)
    assert torch.equal(one.train.x.nan_to_num(-7.0), two.train.x.nan_to_num(-7.0))
    pd.testing.assert_frame_equal(one.test.frame, frame.loc[one.test.index])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_files_hold_what_the_frame_holds(tmp_path, suffix):
    frame = mixed().reset_index(drop=True).drop(columns=["moment"])
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    table = Table(path)
    expected = {**KINDS, "grade": "categorical"} if suffix != ".parquet" else dict(KINDS)
    del expected["moment"]
    assert table.kinds == expected
    assert int(table.x.isnan().sum()) == int(frame.isna().sum().sum())
    assert torch.allclose(table.x[:, 0], Table(frame).x[:, 0], equal_nan=True)


PLAIN = "a,b\n1.5,x\n2.5,y\n3.5,z\n"
# Each is read as (rows, columns), or refused with a message that names file, and line or column and row.
MALFORMED = {
    "empty": (b"", r"t\.csv is empty"),
    "blank lines alone": (b"\n\n \n", r"t\.csv is empty"),
    "header alone": (b"a,b\n", r"t\.csv has a header, but no rows"),
    "one row": (b"a,b\n1,2\n", r"t\.csv: there is 1 row"),
    "row too short": (b"a,b,c\n1,2,3\n4,5\n", r"t\.csv, line 3: there are 2 cells, but 3 columns"),
    "row too long": (b"a,b\n1,2\n3,4,5\n", r"t\.csv, line 3: there are 3 cells, but 2 columns"),
    "row too long at the end of many": (b"a,b\n" + b"1,2\n" * 500 + b"1,2,3\n", r"t\.csv, line 502: there are 3 cells"),
    "one name twice": (b"a,b,a\n1,2,3\n2,3,4\n", r"t\.csv: column 'a' occurs twice, as columns 1 and 3"),
    "no name": (b"a,,b\n1,2,3\n2,3,4\n", r"t\.csv: column 2 has no name"),
    "open quote": (b'a,b\n1,"x\n2,y\n', r"t\.csv, line 2: unexpected end of data; is a quote not closed"),
    "text after a quote": (b'a,b\n1,"x"y\n2,y\n', r"t\.csv, line 2: .*is a quote not closed"),
    "zero byte": (b"a,b\n1,2\n\x00,3\n", r"t\.csv, line 3: there is a zero byte"),
    "Latin-1": ("a,b\n1,Köln\n2,y\n".encode("latin-1"), r"t\.csv, line 2: byte 7 is no UTF-8"),
    "infinity": (b"a,b\n1.5,2\ninf,3\n2.5,9\n", r"t\.csv: column 'a', row 1: inf is not a finite number"),
    "minus infinity": (b"a,b\n1.5,2\n-inf,3\n2.5,9\n", r"t\.csv: column 'a', row 1: -inf is not a finite number"),
    "a word among numbers": (
        b"a\n" + b"1\n2\n3\n4\n" * 3 + b"n.a.x\n",
        r"t\.csv: column 'a', row 12: 'n\.a\.x' stands among",
    ),
    "all missing": (b"a,b\n,\n,\n", r"t\.csv: no column is left to model \(a: no value in any row; b: no value"),
    "constants alone": (b"a,b\n1,2\n1,2\n", r"t\.csv: no column is left to model \(a: constant: 1"),
    "not a table at all": (bytes(range(256)) * 4, r"t\.csv, line \d+: byte \d+ is no UTF-8"),
    "two tables": (b"a,b\n1,2\n\nc,d,e\n1,2,3\n", r"t\.csv, line 4: there are 3 cells, but 2 columns"),
    "broken gzip": ((b"\x1f\x8b broken", "t.csv.gz"), r"t\.csv\.gz can't be read"),
    "broken parquet": ((b"PAR1 broken", "t.parquet"), r"t\.parquet can't be read as \.parquet"),
    "empty zip": ((b"PK\x05\x06" + bytes(18), "t.csv.zip"), r"t\.csv\.zip holds 0 files"),
    "UTF-16 cut short": (b"\xff\xfea\x00,\x00b", r"t\.csv, line 1: byte \d+ is no UTF-16"),
    "one column all missing": (b"a,b\n1.5,\n2.5,\n", (2, 1)),
    "plain": (PLAIN.encode(), (3, 2)),
    "byte order mark": (b"\xef\xbb\xbf" + PLAIN.encode(), (3, 2)),
    "UTF-16": (PLAIN.encode("utf-16"), (3, 2)),
    "Windows line ends": (PLAIN.replace("\n", "\r\n").encode(), (3, 2)),
    "old Mac line ends": (PLAIN.replace("\n", "\r").encode(), (3, 2)),
    "no line end at the end": (PLAIN.rstrip().encode(), (3, 2)),
    "blank lines between": (PLAIN.replace("\n", "\n\n").encode(), (3, 2)),
    "semicolons and decimal commas": (PLAIN.replace(",", ";").replace(".", ",").encode(), (3, 2)),
    "tabs": (PLAIN.replace(",", "\t").encode(), (3, 2)),
    "bars": (PLAIN.replace(",", "|").encode(), (3, 2)),
    "delimiter in quotes": (b'a,b\n1.5,"x, y"\n2.5,"u"\n3.5,"w ""q"""\n', (3, 2)),
    "line end in quotes": (b'a,b\n1.5,"x\ny"\n2.5,u\n3.5,w\n', (3, 2)),
    "blanks around": (b"a, b\n 1.5, x\n2.5, y\n3.5, z\n", (3, 2)),
    "unicode": ("größe,名前\n1.5,東京\n2.5,Zürich\n3.5,🙂\n".encode(), (3, 2)),
    "no header": (b"1.5,2\n2.5,3\n3.5,7\n", (3, 2)),
    "index of pandas": (b",a,b\n0,1.5,x\n1,2.5,y\n2,3.5,z\n", (3, 2)),
    "missing in many words": (b"a,b\n1.5,x\nNA,?\nnan,\n3.5,z\n2.5,y\n", (5, 2)),
    "10,000 categories": (b"a,b\n" + b"".join(b"%d.5,c%d\n" % (i % 7, i) for i in range(10_000)), (10_000, 1)),
    "huge numbers": (
        b"a,b\n1e300,1.5\n2e300,2.5\n1e-300,3\n",
        r"t\.csv: column 'a', row 0: 1e.300 is not a number from 1e-30 to 1e.30 in size",
    ),
    "booleans with holes": (b"a,b\n1.5,True\n2.5,\n3.5,False\n", (3, 2)),
    "mixed dates": (b"a,b\n1.5,2020-01-02\n2.5,2020-01-03T10:00:00\n3.5,\n", (3, 2)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tables_are_read_rightly_or_refused_in_a_sentence(tmp_path, name):
    content, expected = MALFORMED[name]
    content, file = content if isinstance(content, tuple) else (content, "t.csv")
    path: Path = tmp_path / file
    path.write_bytes(content)
    if isinstance(expected, tuple):
        table = Table(path)
        assert (len(table), len(table.columns)) == expected
        if table.columns[0].name == "a" and expected == (3, 2):
            assert table.x[:, 0].tolist() == [1.5, 2.5, 3.5]
        return
    with pytest.raises(InputError, match=expected) as caught:
        Table(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


def test_at_least_forty_tables_are_malformed():
    assert len(MALFORMED) >= 40


def test_frames_that_are_no_tables_are_refused():
    twice = pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    levels = pd.DataFrame([[1, 2], [3, 4]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    for source, message in (
        (twice, "column 'a' occurs twice, as columns 1 and 2"),
        (levels, "columns have 2 levels of names"),
        (pd.DataFrame(), "there are 0 rows and 0 columns"),
        ([1, 2], "source must be a DataFrame or the path of a table, not a list"),
        ("nothing.csv", r"nothing\.csv can't be read"),
        (pd.DataFrame({"a": [1, "x", 2, 3, 4, 5]}), "column 'a', row 1: 'x' stands among numbers"),
    ):
        with pytest.raises(InputError, match=message):
            Table(source)


def test_a_compressed_file_is_unpacked(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(PLAIN.encode()))
    assert Table(tmp_path / "t.csv.gz").x[:, 0].tolist() == [1.5, 2.5, 3.5]


def test_missing_cells_need_a_dtype_that_holds_them():
    table = Table(pd.DataFrame({"n": [3, 40, 500], "b": [True, False, True]}))
    x = table.x.clone()
    x[0] = math.nan
    frame = frame_of_cells(x, table.columns)
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "boolean"]
    assert frame.isna().iloc[0].all()


@pytest.mark.parametrize(
    ("name", "rows", "kinds"),
    [
        ("Wine", 6497, {"positive": 11, "ordinal": 1, "binary": 1}),
        ("Breast", 699, {"ordinal": 9, "binary": 1}),
        ("Adult", 32_561, {"count": 4, "ordinal": 4, "positive": 1, "binary": 1, "real": 2}),
    ],
)
def test_real_tables_are_read(name, rows, kinds):
    """The tables of HI-VAE's authors; their categories are whole numbers, taken for levels unless kinds are said."""
    folder = Path(os.environ.get("PYRO_VAE_DATA", "nowhere")) / "tables" / name
    if not folder.is_dir():
        pytest.skip("the tables are not here: PYRO_VAE_DATA names no folder with tables/")
    table = Table(folder / "data.csv")
    found = list(table.kinds.values())
    assert len(table) == rows
    assert {kind: found.count(kind) for kind in kinds} == kinds
