"""Columns in memory: of a mapping or any dataframe, without importing its library; and as finite numbers."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.records.quantities import Reading, read_texts

Table = dict[str, np.ndarray]


def as_columns(source: Any) -> Table:
    """Columns of a mapping, a dataframe (pandas, polars, Arrow, DuckDB: anything with named columns), a
    structured array, or a list of mappings (one per row).

    Raises:
        FlopwiseError: it is none of these, two columns share a name, or they differ in length.
    """
    if type(source).__name__ == "LazyFrame":
        source = source.collect()
    if callable(getattr(source, "fetchnumpy", None)):
        from flopwise.records.database import arrays

        return arrays(source)
    if isinstance(source, list | tuple) and source and all(isinstance(row, Mapping) for row in source):
        keys = dict.fromkeys(key for row in source for key in row)
        source = {key: [row.get(key) for row in source] for key in keys}
    if isinstance(source, Mapping):
        names: Any = list(source)
    elif isinstance(source, np.ndarray) and source.dtype.names:
        names = source.dtype.names
    else:
        names = getattr(source, "column_names", getattr(source, "columns", None))
    if names is None or callable(names):
        raise FlopwiseError(
            f"table is a {type(source).__name__}, must be a path, a URL, a mapping of columns or a dataframe"
        )
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        twice = next(name for i, name in enumerate(texts) if name in texts[:i])
        raise FlopwiseError(f"table: two columns are named {twice[:60]!r}; rename one of them")
    table = {text: as_column(source[name]) for text, name in zip(texts, names, strict=True)}
    if len({values.shape for values in table.values()}) > 1 or any(v.ndim != 1 for v in table.values()):
        shapes = ", ".join(f"{name} {values.shape}" for name, values in table.items())
        raise FlopwiseError(f"table: columns must be of one length, they are {one_line(shapes, 200)}")
    return table


def as_column(values: Any) -> np.ndarray:
    """Values as an array [n]: texts and mixed values as objects, absent numbers NaN, absent texts None."""
    if isinstance(values, np.ma.MaskedArray):
        number = values.dtype.kind in "iufb"
        out = np.array(values.data, dtype=float if number else object)
        out[np.ma.getmaskarray(values)] = np.nan if number else None
        return out
    try:
        out = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # rows of several lengths, tensors elsewhere
        out = np.empty(())
    given = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if given and (out.ndim != 1 or (out.dtype.kind in "US" and not all(isinstance(v, str) for v in values))):
        # numpy would make ["a", nan] the texts "a" and "nan", and a list of lists a matrix.
        out = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            out[i] = value
    return out.astype(object) if out.dtype.kind == "T" else out


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
        hint = f"did you mean {' or '.join(repr(name[:60]) for name in close)}?"
    else:
        shown = ", ".join(name[:60] for name in names[:20]) + (", ..." if len(names) > 20 else "")
        hint = f"there are {shown}; name one with --map {column}=COLUMN or rename={{{column!r}: ...}}"
    raise FlopwiseError(one_line(f"{who}: there is no column {column!r}; {hint}", 600))


def numbers(table: Mapping[str, Any], column: str, who: str) -> np.ndarray:
    """A column as finite floats [n]. Texts are read as people write quantities (7B, 1.4T tokens, 3e21), with
    a warning that says how.

    Raises:
        FlopwiseError: no such column, or a value that is not a finite number, with its row (from 1).
    """
    require(table, column, who)
    raw = as_column(table[column])
    if raw.ndim != 1:
        raise FlopwiseError(f"{who}: column {column!r} has the shape {raw.shape}, must be a list of numbers")
    reading = Reading()
    if raw.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            values = raw.astype(float)
    elif raw.dtype.kind in "OUS":
        values, reading = from_objects(raw, column)
    else:  # dates and complex numbers: numpy would convert them
        values = np.full(len(raw), np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        value = raw[row].item() if isinstance(raw[row], np.generic) else raw[row]
        why = reading.problems.get(value, "") if isinstance(value, str) else ""
        raise FlopwiseError(
            f"{who}: column {column!r} holds {_shown(value)} in row {row + 1}, "
            f"{why or 'needs a finite number'}; {_remedy(column, value)}"
        )
    for note in reading.notes:
        warnings.warn(one_line(note), stacklevel=2)
    return values


def from_objects(raw: np.ndarray, column: str) -> tuple[np.ndarray, Reading]:
    """Texts and mixed values as floats, NaN where they are none."""
    items = [v.decode("latin-1") if isinstance(v, bytes | bytearray) else v for v in raw.tolist()]
    plain = [to_float(v) for v in items if not isinstance(v, str)]
    finite = [v for v in plain if np.isfinite(v)]
    texts = dict.fromkeys(v for v in items if isinstance(v, str))
    reading = read_texts(texts, column, (min(finite), max(finite)) if finite else None)
    others = iter(plain)
    known = reading.values
    values = (known.get(v, np.nan) if isinstance(v, str) else next(others) for v in items)
    return np.fromiter(values, dtype=float, count=len(items)), reading


def to_float(value: Any) -> float:
    """A value that is no text as a float: inf where it is too large, NaN where it is no number."""
    try:
        return float(value)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan


def missing(value: Any) -> bool:
    """Whether this is one of the libraries' ways to say nothing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Number) and value != value


def quoted(name: str) -> str:
    """A name as SQL's identifier."""
    return '"' + name.replace('"', '""') + '"'


def _shown(value: Any) -> str:
    if missing(value):
        return "nothing"
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a number beyond 1.8e308"  # Python refuses to print the longest ones
    return one_line(repr(value), 60)


def _remedy(column: str, value: Any) -> str:
    """What to do about a value, with the SQL condition that leaves such values out."""
    name = column if re.fullmatch(r"[A-Za-z_]\w*", column) else quoted(column)
    if missing(value):
        condition = f"{name} IS NOT NULL"
    elif isinstance(value, int | float):
        condition = f"isfinite({name})"
    elif isinstance(value, str) and len(value) <= 60 and value.isprintable():
        condition = f"{name} <> '{value.replace(chr(39), chr(39) * 2)}'"
    else:
        return "name a column of numbers"
    return f'correct it or leave the row out (where "{condition}")'
