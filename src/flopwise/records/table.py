"""Tables of observations: a person's own file, a folder of runs, a dataframe. What a law is fitted to."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError

Table = dict[str, np.ndarray]
SPENT = ("train_flops", "generate_flops", "score_flops")
READERS = {
    ".csv": "read_csv(?, header = true, sample_size = -1)",
    ".tsv": "read_csv(?, header = true, sample_size = -1, delim = '\t')",
    ".parquet": "read_parquet(?)",
    ".jsonl": "read_json(?, format = 'newline_delimited')",
    ".ndjson": "read_json(?, format = 'newline_delimited')",
    ".json": "read_json(?)",
}


def read_table(
    source: Any, rename: Mapping[str, str] | None = None, where: str | None = None, held_out: bool = False
) -> Table:
    """Read observations as columns.

    Args:
        source: a CSV, TSV, Parquet or JSON-lines file (.gz too); a folder of runs, which gives one row per
            finished cooldown run of its ladder (`pretrain.law.observation`); the folder of one run, which
            gives what it logged, with the FLOPs spent until then as C; a mapping or dataframe.
        rename: which column holds a law's variable, as {"N": "n_params", "loss": "val_loss"}.
        where: an SQL condition on the source's own columns, as "loss < 4 AND split = 'val'".
        held_out: keep the runs that a ladder held out of its own fit.

    Raises:
        FlopwiseError: no such file, unreadable, no such column (the closest are named), bad SQL, no rows.
    """
    if isinstance(source, str | Path) and not Path(source).is_dir():
        table = _from_file(Path(source), where)
    else:
        table = (
            _from_folder(Path(source), held_out) if isinstance(source, str | Path) else _as_columns(source)
        )
        if where:
            table = _filtered(table, where)
    if not table or not len(next(iter(table.values()))):
        raise FlopwiseError(f"table {_name(source)} has no rows{f' where {where}' if where else ''}")
    moved = {}
    for name, column in (rename or {}).items():
        require(table, column, f"table {_name(source)}")
        moved[name] = table[column]
    return table | moved


def require(table: Mapping[str, Any], column: str, who: str) -> None:
    """Raise a FlopwiseError that names the closest columns unless `column` is one of `table`.

    >>> require({"n_params": [1]}, "n_param", "fit")
    Traceback (most recent call last):
    flopwise.errors.FlopwiseError: fit: there is no column 'n_param'; did you mean 'n_params'?
    """
    if column in table:
        return
    names = [str(name) for name in table]
    close = difflib.get_close_matches(column, names, n=3, cutoff=0.5)
    close = close or [name for name in names if name.lower() == column.lower()]
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        hint = f"there are {shown}; name one with --map {column}=COLUMN or rename={{{column!r}: ...}}"
    raise FlopwiseError(f"{who}: there is no column {column!r}; {hint}")


def numbers(table: Mapping[str, Any], column: str, who: str) -> np.ndarray:
    """A column as finite floats.

    Raises:
        FlopwiseError: no such column, or a value that is not a finite number, with its row (from 1).
    """
    require(table, column, who)
    raw = np.asarray(table[column])
    try:
        values = raw.astype(float)
    except (TypeError, ValueError):
        values = np.array([_number(v) for v in raw])
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        value = raw[row]
        what = (
            "nothing"
            if value is None or value != value
            else repr(value.item() if hasattr(value, "item") else value)
        )
        raise FlopwiseError(
            f"{who}: column {column!r} holds {what[:60]} in row {row + 1}, needs a finite number; "
            f"correct it or leave the row out (where '{column} IS NOT NULL')"
        )
    return values


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def _from_file(path: Path, where: str | None) -> Table:
    import duckdb

    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in (".gz", ".zst") else (suffixes or [""])[-1]
    if not path.is_file():
        raise FlopwiseError(
            f"table {path} does not exist; give a file ({', '.join(READERS)}) or a folder of runs"
        )
    if kind not in READERS:
        raise FlopwiseError(f"table {path} ends in {kind or 'nothing'}, must be one of {', '.join(READERS)}")
    # The path is a bound value, and its * ? [ are letters, not patterns.
    literal = re.sub(r"([*?\[])", r"[\1]", str(path))
    db = duckdb.connect(":memory:")
    try:
        db.execute(f"CREATE TABLE source AS SELECT * FROM {READERS[kind]}", [literal])
    except (duckdb.Error, UnicodeDecodeError) as e:
        db.close()
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise FlopwiseError(f"table {path} cannot be read as {kind[1:]}: {reason[:200]}") from e
    return _select(db, where)


def _filtered(table: Table, where: str) -> Table:
    """Rows of columns in memory that satisfy an SQL condition."""
    import duckdb

    from flopwise.records.store import _create

    if not table:
        return table
    rows = zip(*([None if v != v else v for v in values.tolist()] for values in table.values()), strict=True)
    db = duckdb.connect(":memory:")
    _create(db, "source", [dict(zip(table, row, strict=True)) | {"_row": i} for i, row in enumerate(rows)])
    kept = _select(db, where)["_row"].astype(int)
    return {name: values[kept] for name, values in table.items()}


def _select(db: Any, where: str | None) -> Table:
    """The columns of `source`; files, network and Python's variables are closed before `where` is read."""
    import duckdb

    try:
        for setting in ("enable_external_access = false", "python_enable_replacements = false"):
            db.execute(f"SET {setting}")
        db.execute("SET lock_configuration = true")
        relation = db.table("source")
        arrays = (relation.filter(where) if where else relation).fetchnumpy()
    except duckdb.Error as e:
        columns = ", ".join(d[0] for d in db.execute("SELECT * FROM source LIMIT 0").description)
        raise FlopwiseError(f"where {where!r}: {str(e).splitlines()[0]}; columns are {columns[:200]}") from e
    finally:
        db.close()
    return {name: _plain(values) for name, values in arrays.items()}


def _plain(values: Any) -> np.ndarray:
    """Without a mask: absent numbers are NaN, absent texts None."""
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    number = values.dtype.kind in "iufb"
    out = np.array(values.data, dtype=float if number else object)
    out[np.ma.getmaskarray(values)] = np.nan if number else None
    return out


def _from_folder(path: Path, held_out: bool) -> Table:
    """One run's curve, or the ladder of a folder of runs."""
    from flopwise.records.folder import SPEC_FILE, RunFolder

    if not (path / SPEC_FILE).is_file():
        return _ladder(path, held_out)
    rows = RunFolder(path).curve()
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    spent = [numbers(table, n, str(path)) for n in SPENT if n in table]
    return table | ({"C": np.sum(spent, axis=0)} if spent else {})


def _ladder(root: Path, held_out: bool) -> Table:
    """One row per finished cooldown run, in an order that does not depend on ids or times."""
    from flopwise.pretrain.law import columns, observation
    from flopwise.records.store import RunStore

    store = RunStore(root)
    found = [r for r in store.records() if (r.kind, r.method, r.status) == ("pretrain", "cooldown", "done")]
    for line in store.problems:
        warnings.warn(f"left out {line}", stacklevel=3)
    rows = [observation(r) for r in found if held_out or not r.extra.get("held_out")]
    if not rows:
        raise FlopwiseError(f"{root} has no finished cooldown run of a ladder; see `flopwise runs {root}`")
    return columns(sorted(rows, key=lambda row: (row["N"], row["seed"], row["D"])))


def _as_columns(source: Any) -> Table:
    """A mapping of columns, or a dataframe (pandas, polars, arrow: anything with named columns)."""
    names = (
        source
        if isinstance(source, Mapping)
        else getattr(source, "column_names", getattr(source, "columns", None))
    )
    if names is None or callable(names):
        raise FlopwiseError(
            f"table is a {type(source).__name__}, must be a path, a mapping of columns or a dataframe"
        )
    table = {str(name): np.asarray(source[name]) for name in names}
    lengths = {name: values.shape for name, values in table.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        shapes = ", ".join(f"{name} {shape}" for name, shape in lengths.items())
        raise FlopwiseError(f"table: columns must be of one length, they are {shapes[:200]}")
    return table


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "given"
