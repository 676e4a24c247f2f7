"""Tables through DuckDB: files of every kind, databases, and SQL that reaches nothing but the table."""

from __future__ import annotations

import difflib
import re
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.columns import Table, as_column, missing, quoted, require, to_float
from flopwise.records.quantities import parse

# fetchnumpy has no array for the other types, or none for all their values (an infinite date): they come as
# numbers if they are long integers, else as text.
_NATIVE = re.compile(
    r"(BOOLEAN|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*|VARCHAR|BLOB|UUID"
    r"|STRUCT.*|MAP.*|.*\[\d*\]|\"NULL\")"
)
_WHOLE = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL.*")


@dataclass(frozen=True)
class Question:
    """What is wanted of a table: a query first, then new names and expressions, then a condition on rows."""

    rename: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None
    sql: str | None = None
    who: str = "table"


def connect() -> Any:
    """A database in memory that fetches no extensions and leaves no files."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "temp_directory": "", "autoinstall_known_extensions": False, "autoload_known_extensions": False,
        },
    )  # fmt: skip


def answer(
    db: Any, source: Any, question: Question, spelled: Mapping[str, str] | None = None, hidden: str = ""
) -> Table:
    """Columns of a relation (`spelled`: the file's names where the database gave others); closes `db`.

    Files, network and Python's variables are out of reach before anything in `question` is read. Whole
    numbers are computed with as such, so that functions which need them work; where that leaves 64 bits, as
    6 * N * D does, they are computed with in double precision.

    Raises:
        FlopwiseError: no such column, or SQL that the database refuses.
    """
    import duckdb

    try:
        for setting in ("enable_external_access = false", "python_enable_replacements = false"):
            db.execute(f"SET {setting}")
        db.execute("SET lock_configuration = true")
        try:
            table = _computed(db, source, question, spelled or {}, hidden)
        except duckdb.OutOfRangeException:
            table = _computed(db, source, question, spelled or {}, hidden, double=True)
    finally:
        db.close()
    _warn_of_case(question, {} if question.sql else spelled or {})
    return table


def _computed(
    db: Any, source: Any, question: Question, spelled: Mapping[str, str], hidden: str, double: bool = False
) -> Table:
    """`answer`, by whole numbers, whose overflow is raised as the database's own error, or by doubles."""
    import duckdb

    stage, text = f"sql {question.sql!r}" if question.sql else question.who, ""
    relation = source
    try:
        if question.sql:
            # In brackets it can only be one query, not several statements.
            query = question.sql.strip().rstrip(";")
            relation, spelled = db.sql(f"SELECT * FROM (\n{query}\n) AS answer"), {}
        if double:
            relation = _in_double(relation, question)
        names = {spelled.get(c, c): c for c in relation.columns}
        taken, moved, keep = set(map(str.casefold, relation.columns)), {}, list(relation.columns)
        for name, text in question.rename.items():
            stage = f"map {f'{name}={text}'!r}"
            expression = _expression(text, names, question.who)
            # The table's own columns go before new names, so that a condition means what it meant.
            alias = name if name.casefold() not in taken else f"{name} = {text}"
            wider = relation.project(f"*, (\n{expression}\n) AS {quoted(alias)}")
            if len(wider.columns) != len(relation.columns) + 1:
                raise FlopwiseError(f"{stage}: must be one column or one expression")
            relation = wider
            taken.add(alias.casefold())
            moved[name] = names.get(text, alias)
            if text not in names:
                keep.append(alias)
        if question.where:
            stage = f"where {question.where!r}"
            relation = relation.filter(question.where)
        found = arrays(relation, keep)
    except (duckdb.Error, UnicodeError, RuntimeError) as e:
        if isinstance(e, duckdb.OutOfRangeException) and not double:
            raise
        close = difflib.get_close_matches(text, names, n=1) if stage.startswith("map") else []
        if isinstance(e, duckdb.OutOfRangeException):
            hint = "; whole numbers beyond 9.2e18 need double precision, as N::DOUBLE"
        elif close:
            hint = f"; did you mean {close[0]!r}?"
        else:
            known = [] if relation is None else [c for c in relation.columns if c != hidden]
            hint = f"; columns are {', '.join(known)[:200]}" if known else ""
        raise FlopwiseError(one_line(f"{stage}: {reason(e)}{hint}", 600)) from e
    table = {spelled.get(c, c): found[c] for c in keep if c in names.values()}
    return table | {name: found[column] for name, column in moved.items()}


def _in_double(relation: Any, question: Question) -> Any:
    """The relation with the whole numbers that expressions or the condition name in double precision.

    Others stay: an id of 19 digits would no longer be told from its neighbours.
    """
    asked = " ".join([question.where or "", *question.rename.values()])
    changed = [
        f"{quoted(name)}::DOUBLE AS {quoted(name)}"
        for name, kind in zip(relation.columns, map(str, relation.types), strict=True)
        if _WHOLE.fullmatch(kind) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", asked, re.IGNORECASE)
    ]
    return relation.project(f"* REPLACE ({', '.join(changed)})") if changed else relation


def _warn_of_case(question: Question, spelled: Mapping[str, str]) -> None:
    """SQL takes names that differ in case only for one: say so where one is used."""
    expressions = [text for text in question.rename.values() if text not in spelled.values()]
    sql = " ".join([question.where or "", *expressions])
    for column, name in spelled.items():
        if name and name != column and re.search(rf"\b{re.escape(name)}\b", sql):
            line = f"in SQL names do not differ by case: the column {name!r} is {quoted(column)} there"
            warnings.warn(one_line(line), stacklevel=5)


def _expression(text: str, names: Mapping[str, str], who: str) -> str:
    """SQL of what a variable is mapped to: a column, a constant as 300B, or an expression."""
    if text in names:
        return quoted(names[text])
    if (constant := parse(text)) and constant.other is None:
        return f"{constant.value!r}::DOUBLE"
    if not text.strip():
        raise FlopwiseError(f"{who}: a column's name or an expression must not be empty")
    if re.fullmatch(r"\w+", text):
        require(names, text, who)
    return text


def arrays(relation: Any, keep: Sequence[str] | None = None) -> Table:
    """Columns of a DuckDB relation as arrays; absent numbers are NaN, absent texts None."""
    if len(set(relation.columns)) < len(relation.columns):
        raise FlopwiseError("table: two columns have one name; name them apart with AS")
    parts, types = [], dict(zip(relation.columns, map(str, relation.types), strict=True))
    for i, name in enumerate(keep or types):
        value, kind = quoted(name), types[name]
        if kind == "JSON":
            value = f"{value} ->> '$'"
        elif kind in ("BIGNUM", "UHUGEINT"):
            value = f"{value}::DOUBLE"
        elif not _NATIVE.fullmatch(kind):
            value = f"{value}::VARCHAR"
        parts.append(f"{value} AS c{i}")
    found = relation.project(", ".join(parts)).fetchnumpy()
    return {name: as_column(found[f"c{i}"]) for i, name in enumerate(keep or types)}


def from_columns(table: Table, question: Question) -> Table:
    """Ask columns in memory. Without SQL of any kind they are returned as they are."""
    import duckdb

    plain = {name: text for name, text in question.rename.items() if text in table}
    asked = question.where or question.sql or len(plain) < len(question.rename)
    if not (asked and table):
        return table | {name: table[text] for name, text in plain.items()}
    for text in question.rename.values() if not question.sql else ():
        _expression(text, {name: name for name in table}, question.who)
    db = connect()
    given, parts, spelled = {}, [], {}
    used: set[str] = set()
    for i, (name, values) in enumerate(table.items()):
        unique = _unused(name, used)
        given[f"c{i}"] = _sql_values(values)
        parts.append(f"c{i} AS {quoted(unique)}")
        spelled[unique] = name
    row = _unused("row", used)
    given["row"] = np.arange(len(next(iter(table.values()))))
    rows = "" if question.sql else f", row AS {quoted(row)}"
    try:
        db.register("given", given)
        db.execute(f"CREATE TABLE source AS SELECT {', '.join(parts)}{rows} FROM given")
        db.unregister("given")
    except (duckdb.Error, UnicodeError, RuntimeError) as e:
        db.close()
        raise FlopwiseError(one_line(f"{question.who} cannot be asked in SQL: {reason(e)}", 300)) from e
    found = answer(db, db.table("source"), question, spelled, hidden=row)
    if question.sql:
        return found
    kept = found.pop(row).astype(int)
    changed = {name for name in question.rename if name not in plain}
    return {
        name: found[name] if name in changed else table[plain.get(name, name)][kept]
        for name in found
    }  # fmt: skip


def _unused(name: str, used: set[str]) -> str:
    """The name, numbered if the database would take it for one that it has: `Loss` and `loss` are one."""
    unique, i = name or "column", 0
    while unique.casefold() in used:
        i += 1
        unique = f"{name}_{i}"
    used.add(unique.casefold())
    return unique


def _sql_values(values: np.ndarray) -> np.ndarray:
    """An array that the database can scan: native numbers, or texts and None."""
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype=float)
    if values.dtype.kind in "biu":
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.dtype.kind in "mM":
        return np.ascontiguousarray(values, dtype=f"{values.dtype.kind}8[us]")
    cells = [None if missing(v) else v for v in values.tolist()]
    if all(v is None or isinstance(v, int | float) for v in cells):
        return np.array([np.nan if v is None else to_float(v) for v in cells])
    cells = [to_float(v) if isinstance(v, int) and v.bit_length() > 1024 else v for v in cells]
    return np.array([v if v is None or isinstance(v, str) else str(v) for v in cells], dtype=object)


def from_duckdb(path: Path, question: Question) -> Table:
    """A DuckDB file, opened for reading only."""
    import duckdb

    db = connect()
    try:
        db.execute(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS given (READ_ONLY)")
        listing = (
            "SELECT schema_name, {0}_name FROM duckdb_{0}s() WHERE database_name = 'given' AND NOT internal"
        )
        found = db.execute(
            f"{listing.format('table')} UNION ALL {listing.format('view')} ORDER BY ALL"
        ).fetchall()
        db.execute("USE given")
        tables = [quoted(t) if s == "main" else f"{quoted(s)}.{quoted(t)}" for s, t in found]
        source = None if question.sql else db.sql(f"SELECT * FROM {_only(tables, question.who)}")
    except duckdb.Error as e:
        db.close()
        raise FlopwiseError(one_line(f"{question.who} cannot be read: {reason(e)}")) from e
    return answer(db, source, question)


def from_sqlite(path: Path, question: Question) -> Table:
    """An SQLite file, opened for reading only; the query is SQLite's, conditions are DuckDB's."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            kinds = "type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            names = db.execute(f"SELECT name FROM sqlite_master WHERE {kinds} ORDER BY name").fetchall()
            query = question.sql
            if not query:
                query = f"SELECT * FROM {_only([quoted(name) for (name,) in names], question.who)}"
            cursor = db.execute(query)
            if cursor.description is None:
                raise FlopwiseError(f"sql {question.sql!r:.200}: gives no rows, must be a SELECT")
            columns = [d[0] for d in cursor.description]
            chunks: list[list[np.ndarray]] = [[] for _ in columns]
            while rows := cursor.fetchmany(100_000):
                for chunk, cells in zip(chunks, zip(*rows, strict=True), strict=True):
                    chunk.append(_cells(cells))
    except (sqlite3.Error, sqlite3.Warning) as e:
        what = f"sql {question.sql!r}" if question.sql else f"{question.who} cannot be read"
        raise FlopwiseError(one_line(f"{what}: {e}", 600)) from e
    if len(set(columns)) < len(columns):
        raise FlopwiseError(f"sql {question.sql!r:.200}: two columns have one name; name them apart with AS")
    table = {
        name: np.concatenate(chunk) if chunk else np.empty(0)
        for name, chunk in zip(columns, chunks, strict=True)
    }
    return from_columns(table, Question(question.rename, question.where, None, question.who))


def _cells(cells: tuple[Any, ...]) -> np.ndarray:
    if any(isinstance(v, str | bytes) for v in cells):
        return as_column(np.array(cells, dtype=object))
    return np.array(cells, dtype=float)


def _only(tables: list[str], who: str) -> str:
    """The one table of a database.

    Raises:
        FlopwiseError: there are none or several.
    """
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise FlopwiseError(f"{who} holds no tables")
    shown = ", ".join(tables[:20])
    raise FlopwiseError(
        one_line(f"{who} holds {len(tables)} tables ({shown}); choose: sql='SELECT * FROM {tables[0]}'", 600)
    )


def reason(error: Exception) -> str:
    """The database's first line."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
