"""Hostile tables: damaged files, and random columns of hostile values, end in an answer or in one line."""

from __future__ import annotations

import csv
import gzip
import json
import math
import warnings

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.laws import fit
from flopwise.records import delimited
from flopwise.records.table import numbers, read_table

LONG = b"N,loss\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 1000) for i in range(100_000))


@pytest.mark.parametrize(
    ("content", "N", "loss"),
    [
        (b"N;loss\n7;3.5\n8;2.5\n", [7, 8], [3.5, 2.5]), (b"N\tloss\n7\t3.5\n", [7], [3.5]),
        (b"N|loss\n7|3.5\n", [7], [3.5]), (b"\xef\xbb\xbfN,loss\n7,3.5\n", [7], [3.5]),
        (b"N,loss\r7,3.5\r8,2.5\r", [7, 8], [3.5, 2.5]), (b"N,loss\r\n7,3.5\r\n", [7], [3.5]),
        (b"N,loss\r\n7,3.5\n8,2.5\r9,1\n", [7, 8, 9], [3.5, 2.5, 1]), (b"N, loss\n7, 3.5\n", [7], [3.5]),
        (b'N,loss\n"1,400,000",3.5\n"7,000",2.5\n', [1.4e6, 7e3], [3.5, 2.5]), (b"N,loss\n7,3.5", [7], [3.5]),
        (b"N,loss\n1e-300,1e300\n", [1e-300], [1e300]), (b"# from a sweep\nN,loss\n7,3.5\n", [7], [3.5]),
        (b"N,loss\n1400000000000000000000,1\n", [1.4e21], [1]), (b"\n\nN,loss\n7,3.5\n", [7], [3.5]),
        (b"N,loss\n7,3.5\n\n8,2.5\n\n", [7, 8], [3.5, 2.5]),
        (gzip.compress(b"N,loss\n7,3.5\r8,2.5\n", mtime=0), [7, 8], [3.5, 2.5]),
        ("N,loss,größe\n7,3.5,ä\n".encode(), [7], [3.5]), (b'N,loss,note\n7,3.5,"a\nb, c"\n', [7], [3.5]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["runs.csv", "runs.csv.gz"])
def test_odd_files_are_read_rightly(tmp_path, content, N, loss, name):
    path = tmp_path / name
    path.write_bytes(content)
    table = read_table(path)
    assert numbers(table, "N", "fit").tolist() == N and numbers(table, "loss", "fit").tolist() == loss


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"), ("a.csv", b"\n \n", "is empty"), ("a.csv", b"N,loss\n", "no rows"),
        ("a.csv", b"7,8,3.5\n8,9,3.2\n", r"first line holds numbers \(7, 8, 3.5\)"),
        ("a.csv", b"N,loss\n1,2\n3\n4,5,6\n", "line 3 has 1 fields, the first 2"),
        ("a.csv", b"N,loss\n1,2\n4,5,6\n", "line 3 has 3 fields, the first 2"),
        ("a.csv", "N,loss\n1,2\n".encode("utf-16"), "UTF-16"), ("a.csv", b"N,n\xe4me\n1,2\n", "not UTF-8"),
        ("a.csv", b"N,name\n1,\xe4\n", "not UTF-8"), ("a.csv", b"\x89PNG\r\n\x1a\n\x00\x00", "not text"),
        ("a.csv", b"\x00" * 50, "not text"), ("a.csv", b"PK\x03\x04abc", "zip archive or a spreadsheet"),
        ("a.csv.gz", gzip.compress(LONG, mtime=0)[:9000], "Unexpected end of GZIP"),
        ("a.parquet", b"PAR1abc", "parquet"),
        ("a.jsonl", b'{"N": 1}\n{"N"', "Malformed JSON"), ("a.json", b"[]", "no rows"),
        ("a.json", b"[1", "json"), ("a.jsonl.gz", gzip.compress(LONG, mtime=0)[:50], "cannot be read"),
        ("a.parquet", b"N,loss\n1,2\n", "parquet"),
        ("a.csv", b"runs\nN,loss\n1,2\n", "line 2 has 2 fields, the first 1"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FlopwiseError, match=message) as e:
        read_table(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize("source", ["", "x" * 5000 + ".csv", "a\x00b.csv", "a\nb.csv", "\x1b[31m.csv"])
def test_names_of_no_file(source):
    with pytest.raises(FlopwiseError, match="does not exist") as e:
        read_table(source)
    assert str(e.value).isprintable()


def test_hostile_columns_names_are_shown_without_codes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'"N\n\x1b[31m",loss\n1,2\n')
    with pytest.raises(FlopwiseError, match=r"there are N \?\[31m, loss") as e:
        read_table(path, {"N": "zzz"})
    assert str(e.value).isprintable()


def test_two_columns_of_one_name_are_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("N,N,loss\n7,8,3.5\n")
    with pytest.warns(UserWarning, match="two columns named 'N'; the later one is 'N_1'"):
        assert read_table(path)["N_1"].tolist() == [8]
    path.write_text("N,N_1,loss\n7,8,3.5\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table(path)["N_1"].tolist() == [8]


@pytest.mark.parametrize("late", ["1.5", "7B", "1e300", "nan", "99999999999999999999"])
def test_a_large_file_is_read_like_a_small_one(tmp_path, late, monkeypatch):
    """Types are told from the first 200000 rows of a large file: what comes later must not be rounded."""
    path = tmp_path / "a.csv"
    path.write_text("N,loss\n" + "".join(f"{i},{i}\n" for i in range(1, 200_002)) + f"{late},3\n")
    monkeypatch.setattr(delimited, "_LARGE", 1000)
    table = read_table(path, where="loss <= 3")
    values = table["N"].tolist()
    assert values[:3] == ([1, 2, 3] if late != "7B" else ["1", "2", "3"])
    assert str(values[3]) == late if late in ("nan", "7B") else values[3] == float(late)


def test_a_number_far_down_a_json_file_is_not_rounded(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"N": {i}}}\n' for i in range(30_000)) + '{"N": 1.5, "loss": NaN}\n')
    table = read_table(path, where="loss IS NULL AND (N < 1 OR N % 1 > 0)")
    assert table["N"].tolist() == [0, 1.5]


# Random tables: a column is sound, of one value, or hostile.
HOSTILE = st.sampled_from([
    math.nan, math.inf, -math.inf, 0, -1.0, -0.0, 1e-300, 1e300, 5e-324, 1e400, None, "", "x", "NA", "nan",
    "7B", "1.4T", "1,250", "37%", "5 PF-days", "300B tokens", "1e400", "'; DROP TABLE source; --", 2**63,
    10**30, "\u00e4", "=1+1",
])  # fmt: skip
SOUND = st.floats(1e-3, 1e13).map(lambda v: float(f"{v:.4g}"))
COLUMN = st.one_of(
    st.just(SOUND), st.just(SOUND), st.sampled_from([1.0, 3.5, 1e9, 1e-300, 1e300]).map(st.just),
    st.just(st.one_of(SOUND, HOSTILE)), st.just(st.floats(allow_nan=False, allow_infinity=False)),
)  # fmt: skip


@st.composite
def tables(draw):
    rows = draw(st.sampled_from([1, 2, 7, 12, 30]))
    column = {name: draw(COLUMN) for name in ("N", "D", "C", "loss")}
    return {name: [draw(value) for _ in range(rows)] for name, value in column.items()}


def write(table, path):
    rows = list(zip(*table.values(), strict=True))
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([list(table), *rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows))
    else:
        cells = {
            name: np.array([None if v is None else str(v) for v in values], dtype=object)
            if any(isinstance(v, str | int) or v is None for v in values)
            else np.array(values, dtype=float)
            for name, values in table.items()
        }
        db = duckdb.connect()
        db.register("cells", cells)
        db.execute(f"COPY (SELECT * FROM cells) TO '{path}' (FORMAT parquet)")
        db.close()


def answered(law, source):
    """A fit with finite parameters and intervals that are numbers, or one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fit(law, source, starts=2, intervals="delta")
            ends = [end for name in found.params for end in found.interval(name)]
    except FlopwiseError as e:
        assert str(e) and "\n" not in str(e)
        return
    assert all(math.isfinite(v) for v in found.params.values()), found.params
    assert math.isfinite(found.objective) and not any(math.isnan(end) for end in ends)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables(), kind=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_table_comes_back_as_it_was_written(tmp_path_factory, table, kind):
    path = tmp_path_factory.mktemp("any") / f"runs.{kind}"
    write(table, path)
    got = read_table(path)
    assert list(got) == list(table) and {len(v) for v in got.values()} == {len(table["N"])}
    for name, values in table.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                there = numbers({name: values}, name, "fit").tolist()
        except FlopwiseError as e:
            with pytest.raises(FlopwiseError) as again:
                numbers(got, name, "fit")
            assert f"in row {str(e).split('in row ')[1].split(',')[0]}," in str(again.value)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                assert numbers(got, name, "fit").tolist() == there


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables(), kind=st.sampled_from(["csv", "jsonl", "parquet", "memory"]))
@pytest.mark.parametrize("law", ["chinchilla", "power"])
def test_any_table_is_fitted_or_refused(tmp_path_factory, law, table, kind):
    if kind == "memory":
        answered(law, table)
        return
    path = tmp_path_factory.mktemp("fit") / f"runs.{kind}"
    write(table, path)
    answered(law, path)
