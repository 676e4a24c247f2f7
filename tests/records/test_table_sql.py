"""Expressions, conditions and queries: over files, databases and columns in memory, and nothing else."""

from __future__ import annotations

import sqlite3
import warnings

import duckdb
import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.records.table import read_table

COLUMNS = {"N_billion": [7.0, 13.0], "D_trillion": [1.4, 2.0], "val loss": [3.0, 2.0], "run": ["a", "b"]}


@pytest.fixture(params=["file", "memory"])
def source(request, tmp_path):
    """The same two rows in a file and in memory."""
    if request.param == "memory":
        return COLUMNS
    path = tmp_path / "runs.csv"
    rows = zip(*COLUMNS.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [COLUMNS, *rows]))
    return path


def test_expressions_columns_and_constants(source):
    table = read_table(
        source, {"N": "N_billion * 1e9", "loss": "val loss", "tokens": "300B", "C": "6 * N * D_trillion*1e12"}
    )
    assert table["N"].tolist() == [7e9, 13e9] and table["loss"].tolist() == [3, 2]
    assert table["tokens"].tolist() == [3e11, 3e11]
    assert table["C"] == pytest.approx([6 * 7e9 * 1.4e12, 6 * 13e9 * 2e12])
    assert table["run"].tolist() == ["a", "b"] and table["val loss"].tolist() == [3, 2]


BIG = {"N": [7 * 10**9, 10**9], "D": [14 * 10**11, 2 * 10**10], "run": [2**63 - 1, 2**63 - 2], "size": [3, 4]}


@pytest.fixture(params=["file", "memory"])
def whole(request, tmp_path):
    """Two rows of whole numbers, whose products leave 64 bits, in a file and in memory."""
    if request.param == "memory":
        return {name: np.array(values) for name, values in BIG.items()}
    path = tmp_path / "whole.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [BIG, *zip(*BIG.values(), strict=True)]))
    return path


def test_products_of_whole_numbers_do_not_overflow(whole):
    table = read_table(whole, {"C": "6*N*D"})
    assert table["C"].tolist() == [6 * 7e9 * 1.4e12, 6 * 1e9 * 2e10]
    assert table["run"].tolist() == BIG["run"]  # ids of 19 digits stay apart
    assert read_table(whole, where="6 * size * N * D < 1e22")["N"].tolist() == [1e9]


def test_whole_numbers_stay_whole_where_they_fit(whole):
    table = read_table(whole, {"half": "size // 2", "letter": "substr('abcd', size, 1)"})
    assert table["half"].tolist() == [1, 2] and table["letter"].tolist() == ["c", "d"]


def test_a_query_that_overflows_is_told_what_to_write(whole):
    with pytest.raises(FlopwiseError, match=r"Overflow.*as N::DOUBLE"):
        read_table(whole, sql="SELECT 6 * N * D AS C FROM source")
    assert read_table(whole, sql="SELECT 6 * N::DOUBLE * D AS C FROM source")["C"][0] == 6 * 7e9 * 1.4e12


def test_conditions_know_the_new_names(source):
    assert read_table(source, {"N": "N_billion*1e9"}, where="N > 1e10")["N"].tolist() == [13e9]
    assert read_table(source, {"loss": "val loss"}, where="loss > 2")["run"].tolist() == ["a"]


def test_a_condition_means_the_tables_own_column(source):
    table = read_table(source, {"D_trillion": "D_trillion * 1000"}, where="D_trillion < 1.5")
    assert table["D_trillion"].tolist() == [1400.0]


def test_a_query_comes_first(source):
    table = read_table(
        source,
        {"loss": "low"},
        where="n = 2",
        sql='SELECT min("val loss") AS low, count(*) AS n FROM source;',
    )
    assert table["loss"].tolist() == [2] and set(table) == {"low", "n", "loss"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N_bilion", "did you mean 'N_billion'"), ("N_bilion*1e9", "did you mean 'N_billion'"),
        ("val los", "did you mean 'val loss'"), ("*", "one column or one expression"),
        ("COLUMNS(*)", "one column or one expression"), ("run) AS x, (run", "one column or one expression"),
        ("sum(N_billion)", "GROUP BY"), (" ", "must not be empty"), ("run * 2", "run"),
        ("1); DROP TABLE source; --", "Parser Error"), ("1; SELECT 2", "Parser Error"),
        ("(SELECT content FROM read_text('/etc/hostname'))", "disabled by configuration"),
        ("(SELECT N_billion FROM secret)", "secret"), ("N\x00", "map"), ("\ud800", "map"),
    ],
)  # fmt: skip
def test_wrong_and_hostile_expressions_are_refused(source, text, message):
    secret = COLUMNS
    assert secret
    with pytest.raises(FlopwiseError, match=message) as e:
        read_table(source, {"N": text})
    assert "\n" not in str(e.value) and "row," not in str(e.value)


@pytest.mark.parametrize(
    "sql",
    [
        "", "  ", ";", "DROP TABLE source", "SELECT 1 AS a; SELECT 2 AS a", "SELECT * FROM '/etc/passwd'",
        "COPY source TO 'out.csv'", "SET threads = 1", "SELECT * FROM secret", "SELECT",
        "SELECT nope FROM source", "INSTALL httpfs", "ATTACH 'x.duckdb'",
    ],
)  # fmt: skip
def test_wrong_and_hostile_queries_are_refused(source, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = COLUMNS
    assert secret
    with pytest.raises(FlopwiseError, match="sql") as e:
        read_table(source, sql=sql)
    assert "\n" not in str(e.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"runs.csv"}


@pytest.fixture
def duck(tmp_path):
    """A DuckDB file with two tables, types that numpy lacks, and a view of a file outside."""
    path = tmp_path / "it's.duckdb"
    with duckdb.connect(str(path)) as db:
        db.execute(
            "CREATE TABLE runs AS SELECT 1e9 AS N, 'b'::ENUM('a', 'b') AS kind, "
            "123456789012345678901234567890123456789012 AS C, now() AS at, "
            "TIME '10:00' AS clock, '{}'::JSON AS j"
        )
        db.execute("CREATE SCHEMA old")
        db.execute("CREATE TABLE old.runs AS SELECT 2e9 AS N")
        db.execute("CREATE VIEW outside AS SELECT * FROM read_text('/etc/hostname')")
    return path


def test_a_duckdb_file(duck):
    table = read_table(duck, {"M": "N * 2"}, sql="SELECT * FROM runs")
    assert table["M"].tolist() == [2e9] and table["kind"].tolist() == ["b"] and table["j"].tolist() == ["{}"]
    assert table["C"].tolist() == [1.2345678901234568e41] and table["clock"].tolist() == ["10:00:00"]
    assert read_table(duck, sql="FROM old.runs")["N"].tolist() == [2e9]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (None, r'holds 3 tables \("outside", "runs", "old"."runs"\); choose'), ("SELECT * FROM nope", "nope"),
        ("SELECT * FROM outside", "disabled"), ("DELETE FROM runs", "sql"),
    ],
)  # fmt: skip
def test_a_duckdb_file_gives_no_more_than_it_holds(duck, sql, message):
    with pytest.raises(FlopwiseError, match=message):
        read_table(duck, sql=sql)
    assert len(read_table(duck, sql="SELECT * FROM runs")["N"]) == 1


@pytest.fixture
def lite(tmp_path):
    """An SQLite file with one table of mixed values."""
    path = tmp_path / "it's %41 #2.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE runs (N, loss REAL, run TEXT)")
    db.executemany(
        "INSERT INTO runs VALUES (?, ?, ?)", [(10**9, 2.5, "a"), ("7B", None, None), (1, 1.5, "c")]
    )
    db.commit()
    db.close()
    return path


def test_an_sqlite_file(lite):
    table = read_table(lite)
    assert table["N"].tolist() == [10**9, "7B", 1] and table["loss"][:1].tolist() == [2.5]
    assert np.isnan(table["loss"][1]) and table["run"].tolist() == ["a", None, "c"]
    table = read_table(lite, {"half": "loss / 2"}, where="loss IS NOT NULL", sql="SELECT loss FROM runs")
    assert table["half"].tolist() == [1.25, 0.75]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM runs", "ATTACH 'other.db' AS x", "SELECT 1; SELECT 2", "SELECT load_extension('x')",
        "SELEC", "SELECT 1 a, 2 a", "PRAGMA user_version = 3", "BEGIN",
    ],
)  # fmt: skip
def test_an_sqlite_file_cannot_be_changed_nor_left(lite, sql):
    with pytest.raises(FlopwiseError, match="sql") as e:
        read_table(lite, sql=sql)
    assert "\n" not in str(e.value) and len(read_table(lite)["N"]) == 3


def test_what_is_no_database_is_refused(tmp_path):
    path = tmp_path / "runs.db"
    path.write_text("N,loss\n1,2\n")
    with pytest.raises(FlopwiseError, match="neither a DuckDB nor an SQLite"):
        read_table(path)


def test_names_that_differ_in_case_stay_apart(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,n,loss\n7,8,3.5\n")
    for source in (path, {"N": [7], "n": [8], "loss": [3.5]}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = read_table(source, {"samples": "n"})
            assert table["N"].tolist() == [7] and table["n"].tolist() == table["samples"].tolist() == [8]
        with pytest.warns(UserWarning, match="the column 'n' is \"n_1\" there"):
            assert len(read_table(source, where="n < 8")["N"]) == 1


def test_columns_of_every_kind_can_be_asked():
    table = {
        "N": np.arange(3.0)[::-1], "big": np.arange(3).astype(">i4"), "half": np.arange(3, dtype=np.float16),
        "long": np.arange(3, dtype=np.longdouble), "day": np.array(["2020-01-01"] * 3, dtype="M8[D]"),
        "any": np.array([[1], {"a": 2}, None], dtype=object), "huge": [10**6000, 1, "x"], "row": [4, 5, 6],
        "none": [None, None, None], "": [1, 2, 3],
    }  # fmt: skip
    kept = read_table(table, {"twice": "big * 2"}, where="N < 2 AND day > DATE '2019-01-01'")
    assert (
        kept["N"].tolist() == [1, 0] and kept["twice"].tolist() == [2, 4] and kept["row"].tolist() == [5, 6]
    )
    assert kept["any"].tolist() == [{"a": 2}, None] and kept["huge"].tolist() == [1, "x"]
    assert kept["half"].dtype == np.float16 and set(kept) == {*table, "twice"}
