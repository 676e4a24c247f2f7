"""Files as tables: CSV, TSV, Parquet, JSON and JSON lines, compressed or not, and databases."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.columns import Table, quoted
from flopwise.records.database import Question, answer, connect, from_duckdb, from_sqlite, reason

KINDS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
_DATABASES = (".duckdb", ".sqlite", ".sqlite3", ".db")
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def suffix(path: str | Path) -> str:
    """What a file is by its name, as ".csv" of runs.csv.gz."""
    parts = [s.lower() for s in Path(path).suffixes]
    return parts[-2] if len(parts) > 1 and parts[-1] in (".gz", ".zst") else (parts or [""])[-1]


def from_file(path: Path, question: Question) -> Table:
    """Read a file and answer a question about it. What it holds goes before what its name says.

    Raises:
        FlopwiseError: no such file, of no known kind, unreadable, or what `answer` raises.
    """
    import duckdb

    from flopwise.records.delimited import load_csv

    who, kind = question.who, suffix(path)
    known = f"{', '.join((*KINDS, *_DATABASES))} (.gz too)"
    if not os.path.isfile(path):
        raise FlopwiseError(f"{who} does not exist; give a file ({known}) or a folder of runs")
    try:
        with open(path, "rb") as f:
            head = f.read(4096)
    except OSError as e:
        raise FlopwiseError(f"{who} cannot be read: {e.strerror or e}") from e
    if head.startswith(b"SQLite format 3\x00"):
        return from_sqlite(path, question)
    if head[8:12] == b"DUCK":
        return from_duckdb(path, question)
    if kind not in (*KINDS, *_DATABASES):
        raise FlopwiseError(f"{who} ends in {one_line(kind, 20) or 'nothing'}, must be one of {known}")
    if not head.strip():
        raise FlopwiseError(f"{who} is empty and has no rows")
    if kind in _DATABASES:
        raise FlopwiseError(f"{who} cannot be read: it is neither a DuckDB nor an SQLite database")
    if head.startswith(b"PK\x03\x04"):
        raise FlopwiseError(f"{who} is a zip archive or a spreadsheet; unpack it or save it as CSV")
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), "none")
    kind = ".parquet" if head.startswith(b"PAR1") else kind
    if kind != ".parquet" and packing == "none" and b"\x00" in head and not head.startswith(_UTF16):
        raise FlopwiseError(f"{who} cannot be read as {kind[1:]}: it is not text")
    db = connect()
    try:
        if kind in (".csv", ".tsv"):
            given = load_csv(db, path, "\t" if kind == ".tsv" else "", packing, who)
        else:
            given = _load(db, path, kind, packing)
        spelled = _spelling(db, given, who)
        _tidy(db)
    except (duckdb.Error, UnicodeError, OSError, RuntimeError) as e:
        db.close()
        why = _advice(e, head).replace(str(path), "the file")
        raise FlopwiseError(one_line(f"{who} cannot be read as {kind[1:]}: {why}", 600)) from e
    except FlopwiseError:
        db.close()
        raise
    return answer(db, db.table("source"), question, spelled)


def _load(db: Any, path: Path, kind: str, packing: str) -> list[str]:
    """Make the table `source`; returns the file's own names of its columns."""
    literal = as_literal(path)
    if kind == ".parquet":
        reader = "read_parquet(?, hive_partitioning = false)"
        names = "SELECT name FROM parquet_schema(?)"
    else:
        form = "auto" if kind == ".json" else "newline_delimited"
        options = f"format = '{form}', compression = '{packing}'"
        # All rows tell the types: a column that looks whole in the first ones would round later fractions.
        reader = f"read_json(?, {options}, hive_partitioning = false, sample_size = -1)"
        some = f"SELECT json FROM read_json_objects(?, {options}) LIMIT 1000"
        names = f"SELECT DISTINCT unnest(json_keys(json)) FROM ({some})"
    db.execute(f"CREATE TABLE source AS SELECT * FROM {reader}", [literal])
    return [name for (name,) in db.execute(names, [literal]).fetchall()]


def _spelling(db: Any, given: Sequence[str], who: str) -> dict[str, str]:
    """The file's names of columns that the database has numbered: it takes `N` and `n` for one name."""
    columns, out = [d[0] for d in db.execute("SELECT * FROM source LIMIT 0").description], {}
    for column in columns:
        match = re.fullmatch(r"(.*)_\d+", column, re.DOTALL)
        if not match or column in given or match[1] not in given:
            continue
        if match[1] in columns:
            warnings.warn(
                one_line(f"{who} has two columns named {match[1]!r}; the later one is {column!r}"),
                stacklevel=5,
            )
        else:
            out[column] = match[1]
    return out


def _tidy(db: Any) -> None:
    """NaN is NULL, so that IS NOT NULL means what it says; JSON values are plain texts."""
    for name, kind, *_ in db.execute("DESCRIBE source").fetchall():
        column = quoted(name)
        if kind in ("FLOAT", "DOUBLE"):
            db.execute(f"UPDATE source SET {column} = NULL WHERE isnan({column})")
        elif kind == "JSON":
            db.execute(f"ALTER TABLE source ALTER {column} TYPE VARCHAR USING {column} ->> '$'")


def as_literal(path: Path) -> str:
    """A path in which * ? [ are letters, not patterns."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def _advice(error: Exception, head: bytes) -> str:
    """Why a file cannot be read, in one line, with the next step where it is known."""
    if head.startswith(_UTF16):
        return "it is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, UnicodeError) or any("not utf-8" in line.lower() for line in lines):
        return "it is not UTF-8 text; convert it, as with iconv -f LATIN1 -t UTF-8"
    if lines and "Error when sniffing" in lines[0]:
        return "its rows do not follow one pattern of fields and quotes"
    # A parser's complaint names the line first, the cause two lines later.
    causes = (line for line in lines[1:4] if re.match(r"(Expected|Error when|Value with)", line))
    return f"{reason(error)} {next(causes, '')}".strip()
