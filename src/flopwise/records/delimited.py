"""CSV and its kin as people's tools write them: any of four signs, any line end, large files in seconds."""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
import zlib
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.quantities import parse

_TYPES = "['BOOLEAN', 'BIGINT', 'DOUBLE', 'DATE', 'TIMESTAMP', 'VARCHAR']"
# Above this many bytes the types are told from the first rows, and whole numbers are read as floats: a column
# that looks whole there would round the fractions further down.
_LARGE = 64_000_000
_SIGNS = ",;\t|"


def load_csv(db: Any, path: Path, sign: str, packing: str, who: str) -> list[str]:
    """Make the table `source` of a file; returns its first line's names.

    Args:
        sign: what stands between fields; "" to find out.
        packing: "none", "gzip" or "zstd".

    Raises:
        duckdb.Error: it cannot be read.
        FlopwiseError: its first line holds no names, or its rows differ in length, with the line.
    """
    import duckdb

    try:
        return _read(db, path, sign, packing, who)
    except duckdb.Error:
        with tempfile.TemporaryDirectory() as folder, suppress(duckdb.Error):
            even = Path(folder) / "table"
            if _even_lines(path, even, packing):
                return _read(db, even, sign, "none", who)
        if problem := _ragged(path, sign, packing):
            raise FlopwiseError(f"{who}: {problem}") from None
        raise


def _read(db: Any, path: Path, sign: str, packing: str, who: str) -> list[str]:
    import duckdb

    from flopwise.records.files import as_literal

    literal = as_literal(path)
    base = f"compression = '{packing}', hive_partitioning = false" + (f", delim = '{sign}'" if sign else "")
    create = (
        f"CREATE TABLE source AS SELECT * FROM read_csv(?, header = true, skip = 0, {base}, sample_size = "
    )
    floats = _TYPES.replace("'BIGINT', ", "")
    done = False
    if path.stat().st_size > _LARGE:
        with suppress(duckdb.Error):
            db.execute(f"{create} 200000, auto_type_candidates = {floats})", [literal])
            done = True
    if not done:
        db.execute(f"{create} -1, auto_type_candidates = {_TYPES})", [literal])
    names = [d[0] for d in db.execute("SELECT * FROM source LIMIT 0").description]
    if all(parse(name) for name in names):
        shown = one_line(", ".join(names), 60)
        raise FlopwiseError(f"{who}: its first line holds numbers ({shown}), must hold the columns' names")
    if len(names) == 1 and (problem := _ragged(path, sign, packing)):
        raise FlopwiseError(f"{who}: {problem}")
    if not any(re.search(r"_\d+$", name) for name in names):
        return names
    with suppress(duckdb.Error):
        lines = f"read_csv(?, header = false, skip = 0, all_varchar = true, {base})"
        first = db.execute(f"SELECT * FROM {lines} LIMIT 1", [literal]).fetchone()
        return [str(name) for name in first or ()]
    return names


def _opened(path: Path, packing: str) -> IO[bytes]:
    return gzip.open(path, "rb") if packing == "gzip" else open(path, "rb")  # type: ignore[return-value]


def _even_lines(path: Path, to: Path, packing: str) -> bool:
    """Write the text with one kind of line end and no empty lines above; False where it has been so already,
    or cannot be read."""
    changed, last, begun = False, b"", False
    if packing == "zstd":
        return False
    with (
        suppress(EOFError, zlib.error, gzip.BadGzipFile),
        _opened(path, packing) as source,
        open(to, "wb") as out,
    ):
        while chunk := source.read(1 << 20):
            # A pair may be cut between two chunks.
            chunk, last = last + chunk, b""
            if chunk.endswith(b"\r"):
                chunk, last = chunk[:-1], b"\r"
            even = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            even, begun = (even, True) if begun else (even.lstrip(b"\n"), bool(even.strip(b"\n")))
            changed |= even != chunk
            out.write(even)
        out.write(b"\n" if last else b"")
        return changed or bool(last)
    return False


def _ragged(path: Path, sign: str, packing: str) -> str:
    """Which of the first million lines has another number of fields than the first, if one does."""
    if packing == "zstd":
        return ""
    unreadable = suppress(EOFError, zlib.error, gzip.BadGzipFile, UnicodeError, csv.Error)
    with unreadable, _opened(path, packing) as source:
        lines = (line.decode("utf-8-sig") for line in source)
        above, first = next(((i, s) for i, s in enumerate(lines) if s.strip() and s[0] != "#"), (0, ""))
        sign = sign or max(_SIGNS, key=first.count)
        fields = len(next(csv.reader([first], delimiter=sign), []))
        rows = csv.reader(lines, delimiter=sign)
        for row in islice(rows, 1_000_000):
            if row and len(row) != fields:
                line = above + rows.line_num + 1
                return f"line {line} has {len(row)} fields, the first {fields}; mend that line"
    return ""
